"""Fusers: the BEV maps of several sensors into one.

Shapes: B samples, C_i channels of map i, X and Y cells of the BEV map.
"""
from typing import Optional, Sequence

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.ops.winograd import conv2d


def _fusing_conv(in_channels: int, out_channels: int) -> Sequence[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


@MODELS.register_module()
class ConvFuser(nn.Sequential):
    """Concatenate the maps and mix them by one 3x3 convolution (Liu et al., BEVFusion, ICRA 2023).

    Args:
        in_channels: channels of each map, in the order of the encoders.
        out_channels: channels of the fused map.
    """

    def __init__(self, *, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(*_fusing_conv(sum(in_channels), out_channels))
        self.in_channels = list(in_channels)
        self.out_channels = out_channels

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, C_i, X, Y) into one (B, out_channels, X, Y)."""
        check_maps(inputs, self.in_channels)
        conv, norm, activate = self
        # the convolution of joined maps is the sum of theirs, without the copy that joins them
        fused: Optional[Tensor] = None
        for x, weight in zip(inputs, conv.weight.split(self.in_channels, dim=1), strict=True):
            part = conv2d(x, weight, padding=1)
            fused = part if fused is None else fused.add_(part)
        return activate(norm(fused))


@MODELS.register_module()
class AddFuser(nn.Module):
    """Bring each map to the same channels by its own 3x3 convolution, and average.

    In training whole maps may be dropped, so that no task comes to rely on one sensor.

    Args:
        in_channels: channels of each map, in the order of the encoders.
        out_channels: channels of the fused map.
        dropout: probability, in training, that one map of the batch is left out.
    """

    def __init__(self, *, in_channels: Sequence[int], out_channels: int,
                 dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigError(f'AddFuser dropout must lie in [0, 1), got {dropout}')
        self.in_channels = list(in_channels)
        self.out_channels = out_channels
        self.dropout = dropout
        self.transforms = nn.ModuleList(
            nn.Sequential(*_fusing_conv(channels, out_channels)) for channels in in_channels)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, C_i, X, Y) into one (B, out_channels, X, Y)."""
        check_maps(inputs, self.in_channels)
        maps = torch.stack(                                                       # (L, B, C, X, Y)
            [transform(x) for transform, x in zip(self.transforms, inputs, strict=True)])
        kept = maps.new_ones(len(maps))
        if self.training and len(maps) > 1 and float(torch.rand(())) < self.dropout:
            kept[int(torch.randint(len(maps), ()))] = 0
        return torch.einsum('l,lbcxy->bcxy', kept / kept.sum(), maps)


def check_maps(inputs: Sequence[Tensor], in_channels: Sequence[int]) -> None:
    """Refuse maps that a fuser was not made for, before a convolution does it less readably.

    Raises:
        ConfigError: another number of maps, other channels, or maps of different size.
    """
    channels = [x.shape[1] for x in inputs]
    if channels != list(in_channels):
        raise ConfigError(f'the fuser expects maps of {list(in_channels)} channels (in_channels), '
                          f'but the encoders give {channels}')
    sizes = {tuple(x.shape[2:]) for x in inputs}
    if len(sizes) > 1:
        raise ConfigError(f'the encoders\' BEV maps differ in size: {sorted(sizes)}; match the '
                          'view transform\'s bounds and downsample to the sparse encoder\'s grid '
                          'over 8')
