"""Group normalization whose gradient on a CPU takes all threads and passes over memory twice.

Wu and He, 'Group Normalization', ECCV 2018. With mean m and inverse deviation r of a group of n
values, y = (x - m) r w + b, and the gradient for x is, for every channel, a sum of multiples of the
gradient g for y, of x, and of one:

    w r g  +  r^3 (m B - A) / n  x  -  (m r^2 (m B - A) + B) r / n,    A = sum w g x,  B = sum w g

with sums over the group. PyTorch's own kernel is several times slower where channels lie side by
side in memory, as convolutions on a CPU want them.

Shapes: B samples, C channels, G groups, H x W cells.
"""
from typing import Any, Iterator, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bevfusion_enhanced.ops.row_sums import runs_eagerly_on_cpu

VALUES_AT_ONCE = 2 ** 19  # stay in the cache


class _GroupNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int,
                eps: float) -> Tensor:
        B, C, H, W = x.shape
        y, mean, scale = torch.native_group_norm(x, weight, bias, B, C, H * W, num_groups, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight, mean, scale = ctx.saved_tensors
        B, C, H, W = x.shape
        cells, towards = (value.permute(0, 2, 3, 1).reshape(B, H * W, C) for value in (x, gradient))
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with_x = weight.new_zeros(B, C, dtype=dtype)                     # sum over cells of g x
        alone = torch.zeros_like(with_x)                                 # and of g
        for rows in _bands(B, H * W, C):
            with_x += (cells[:, rows] * towards[:, rows]).sum(1)
            alone += towards[:, rows].sum(1)
        m, r = mean.to(dtype), scale.to(dtype)                                       # (B, G)
        groups = (B, m.shape[1], C // m.shape[1])
        n = H * W * groups[2]
        A, S = ((sums * weight).view(groups).sum(2) for sums in (with_x, alone))     # (B, G)
        slope = r ** 3 * (m * S - A) / n
        shift = -(m * slope + S * r / n)
        of_g, of_x, of_one = (
            per_group.unsqueeze(2).expand(groups).reshape(B, 1, C)
            for per_group in (r, slope, shift))
        of_g = (of_g * weight).to(x.dtype)
        of_x, of_one = of_x.to(x.dtype), of_one.to(x.dtype)
        for_x = torch.empty_like(cells)
        for rows in _bands(B, H * W, C):
            torch.addcmul(of_one, cells[:, rows], of_x, out=for_x[:, rows])
            for_x[:, rows].addcmul_(towards[:, rows], of_g)
        per_channel = (with_x.view(groups) - alone.view(groups) * m.unsqueeze(2)) * r.unsqueeze(2)
        return (for_x.view(B, H, W, C).permute(0, 3, 1, 2),
                per_channel.view(B, C).sum(0).to(weight.dtype), alone.sum(0).to(weight.dtype),
                None, None)


def _bands(samples: int, cells: int, channels: int) -> Iterator[slice]:
    height = max(1, VALUES_AT_ONCE // max(1, samples * channels))
    return (slice(first, first + height) for first in range(0, cells, height))


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm of maps (B, C, H, W), with the gradient of this module on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (B, C, H, W)."""
        if (torch.is_grad_enabled() and runs_eagerly_on_cpu(input) and input.dim() == 4
                and input.is_contiguous(memory_format=torch.channels_last)):
            with torch.autocast('cpu', enabled=False):
                return _GroupNorm.apply(input, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(input)
