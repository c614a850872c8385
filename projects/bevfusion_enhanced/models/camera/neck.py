"""The camera neck: a top-down pyramid that concatenates instead of adding.

Shapes: B images, C_i channels and h_i x w_i cells at level i, from fine to coarse.
"""
from typing import Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError


@MODELS.register_module()
class GeneralizedLSSFPN(BaseModule):
    """Upsample each level to the next finer one, concatenate, and mix by a 1x1 and a 3x3 layer.

    The neck of BEVFusion (Liu et al., ICRA 2023). The coarsest level is only an input: L levels
    in, L - 1 levels out.

    Args:
        in_channels: channels of the L levels, from fine to coarse.
        out_channels: channels of every output.
        num_outs: kept for published configs; outputs beyond L - 1 do not exist.
        start_level: first level that is used.
        norm_cfg: the norm after every convolution.
        act_cfg: the activation after every norm.
        upsample_cfg: how `torch.nn.functional.interpolate` enlarges a level.
    """

    def __init__(self, *, in_channels: Sequence[int], out_channels: int,
                 num_outs: Optional[int] = None, start_level: int = 0,
                 norm_cfg: Optional[Dict] = None, act_cfg: Optional[Dict] = None,
                 upsample_cfg: Optional[Dict] = None) -> None:
        super().__init__()
        channels = list(in_channels)[start_level:]
        if len(channels) < 2:
            raise ConfigError(f'GeneralizedLSSFPN needs at least two levels, got in_channels='
                              f'{list(in_channels)} from start_level={start_level}')
        self.num_levels = len(in_channels)
        self.start_level = start_level
        self.upsample_cfg = dict(upsample_cfg or dict(mode='bilinear', align_corners=True))
        layer = dict(norm_cfg=norm_cfg or dict(type='BN2d'), act_cfg=act_cfg or dict(type='ReLU'),
                     inplace=False)
        coarser = [out_channels] * (len(channels) - 2) + [channels[-1]]
        self.lateral_convs = nn.ModuleList(
            ConvModule(fine + coarse, out_channels, 1, **layer)
            for fine, coarse in zip(channels[:-1], coarser, strict=True))
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, **layer) for _ in coarser)

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Merge L levels (B, C_i, h_i, w_i) into L - 1 levels (B, out_channels, h_i, w_i)."""
        if len(inputs) != self.num_levels:
            raise ConfigError(f'the neck expects {self.num_levels} levels, but the camera backbone '
                              f'gives {len(inputs)}: match its out_indices and in_channels')
        *finer, x = inputs[self.start_level:]
        outputs = []
        for level in reversed(range(len(finer))):
            x = F.interpolate(x, size=finer[level].shape[2:], **self.upsample_cfg)
            x = self.lateral_convs[level](torch.cat([finer[level], x], dim=1))
            x = self.fpn_convs[level](x)
            outputs.append(x)
        return tuple(reversed(outputs))
