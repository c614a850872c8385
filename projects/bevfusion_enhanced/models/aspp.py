"""Atrous spatial pyramid pooling: one map seen at several scales at once.

Shapes: B samples, C input channels, O output channels, X and Y cells of the BEV map.
"""
from typing import Optional, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.recompute import recomputed
from bevfusion_enhanced.ops.group_norm import GroupNorm


class ASPP(BaseModule):
    """Parallel convolutions of growing dilation and a global branch, fused by a 1x1 convolution.

    Chen et al., 'Rethinking Atrous Convolution for Semantic Image Segmentation' (DeepLabv3, 2017),
    with group norms, which do not depend on the batch, in place of batch norms.

    Args:
        in_channels: C.
        out_channels: O; each branch has as many, and so has the result.
        dilations: cells between the taps of each 3x3 branch; the first branch is a 1x1.
        num_groups: groups of every norm.
        with_cp: keep less for the backward pass, see `models/recompute.py`.
    """

    def __init__(self, *, in_channels: int, out_channels: int,
                 dilations: Sequence[int] = (6, 12, 18), num_groups: int = 32,
                 with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp = with_cp
        if out_channels % num_groups:
            raise ConfigError(f'out_channels of ASPP must be a multiple of num_groups '
                              f'({num_groups}), got {out_channels}')
        self.convs = nn.ModuleList(
            [nn.Conv2d(in_channels, out_channels, 1, bias=False)]
            + [nn.Conv2d(in_channels, out_channels, 3, padding=d, dilation=d, bias=False)
               for d in dilations])
        self.bns = nn.ModuleList(GroupNorm(num_groups, out_channels) for _ in self.convs)
        self.global_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.global_norm = GroupNorm(num_groups, out_channels)
        self.project = nn.Conv2d(
            (len(self.convs) + 1) * out_channels, out_channels, 1, bias=False)
        self.project_norm = GroupNorm(num_groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Turn `x` (B, C, X, Y) into (B, O, X, Y)."""
        # a convolution of joined branches is the sum of theirs, without the copy that joins them
        *weights, for_pooled = self.project.weight.split(self.project.out_channels, dim=1)
        pooled = x.mean(dim=(2, 3), keepdim=True)                                 # (B, C, 1, 1)
        pooled = F.relu(self.global_norm(self.global_conv(pooled)))               # (B, O, 1, 1)
        shift = F.conv2d(pooled, for_pooled)                                      # (B, O, 1, 1)
        run = recomputed(_fold_in) if self.with_cp else _fold_in
        fused: Optional[Tensor] = None
        for conv, norm, weight in zip(self.convs, self.bns, weights):
            branch = run(conv(x), norm, weight)                                   # (B, O, X, Y)
            fused = branch + shift if fused is None else fused.add_(branch)
        return F.relu(self.project_norm(fused), inplace=True)


def _fold_in(branch: Tensor, norm: nn.Module, weight: Tensor) -> Tensor:
    """What one branch adds to the fused map."""
    return F.conv2d(F.relu(norm(branch), inplace=True), weight)
