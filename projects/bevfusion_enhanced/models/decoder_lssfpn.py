"""A neck for BEV maps: two levels into one.

Shapes: B samples, C_i channels, X_i and Y_i cells of level i, S the scale factor.
"""
from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> Sequence[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


@MODELS.register_module()
class LSSFPN(nn.Module):
    """Enlarge the coarser of two levels to the finer, concatenate, mix, and enlarge the result.

    The neck of the decoder in BEVFusion's camera-only models (Liu et al., ICRA 2023).

    Args:
        in_indices: which levels of the backbone, the coarser first.
        in_channels: channels of these two.
        out_channels: channels of the result.
        scale_factor: S, how many times larger than the finer level the result is.

    Raises:
        ConfigError: there are not two levels, or the scale factor is below 1.
    """

    def __init__(self, *, in_indices: Sequence[int], in_channels: Sequence[int],
                 out_channels: int, scale_factor: int = 1) -> None:
        super().__init__()
        if len(in_indices) != 2 or len(in_channels) != 2 or scale_factor < 1:
            raise ConfigError('LSSFPN takes two levels and a scale_factor of at least 1, got '
                              f'in_indices={list(in_indices)}, in_channels={list(in_channels)}, '
                              f'scale_factor={scale_factor}')
        self.in_indices = tuple(in_indices)
        self.in_channels = tuple(in_channels)
        self.fuse = nn.Sequential(*_convolution(sum(in_channels), out_channels, 1),
                                  *_convolution(out_channels, out_channels, 3))
        self.upsample = None
        if scale_factor > 1:
            self.upsample = nn.Sequential(
                nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=True),
                *_convolution(out_channels, out_channels, 3))

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Merge the levels (B, C_i, X_i, Y_i) into one of (B, out_channels, S X_1, S Y_1)."""
        coarse, fine = (inputs[index] for index in self.in_indices)
        if (coarse.shape[1], fine.shape[1]) != self.in_channels:
            raise ConfigError(f'LSSFPN expects levels of {self.in_channels} channels (in_channels),'
                              f' but the backbone gives {(coarse.shape[1], fine.shape[1])}')
        coarse = F.interpolate(coarse, size=fine.shape[2:], mode='bilinear', align_corners=True)
        x = self.fuse(torch.cat([coarse, fine], dim=1))
        return (x if self.upsample is None else self.upsample(x),)
