"""Submanifold convolutions in half precision on a CPU: gather all neighbours, then multiply once.

`sparse_conv` multiplies the pairs of every tap by themselves, as many as there happen to be.
oneDNN, which multiplies bfloat16, prepares itself for every new size of a matrix, and takes longer
for that than for the products. Here a band of voxels gathers what it sees under all taps, zeros
where there is no neighbour, and takes one product of a size that does not depend on the data. The
faster products make up for those with zeros: an encoder gains where 12 to 51 % of the taps of its
grids meet a voxel (a key frame), and where 36 to 63 % do.

The way back looks from an input to the outputs that see it, which is the same with the taps in
reverse order. What is gathered for it serves both gradients.

Shapes: N voxels, C input channels, O output channels, K taps, R voxels of a band.
"""
from typing import Any, Iterator, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bevfusion_enhanced.ops.precision import full_precision

BYTES_AT_ONCE = 2 ** 22  # gathered; they stay in the cache


def _gathered(x: Tensor, neighbours: Tensor) -> Iterator[Tuple[slice, Tensor]]:
    """Bands of voxels, and what they see (R, K * C)."""
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])                       # (N + 1, C)
    taps = neighbours.shape[1]
    height = max(1, BYTES_AT_ONCE // (taps * x.shape[1] * x.element_size()))
    for first in range(0, len(neighbours), height):
        rows = slice(first, first + height)
        yield rows, padded.index_select(0, neighbours[rows].flatten()).view(
            -1, taps * x.shape[1])


class _GatheredConv(torch.autograd.Function):
    """`x` may be in half precision and the weight not: its copy is rounded, its gradient not."""

    @staticmethod
    @full_precision
    def forward(ctx: Any, x: Tensor, weight: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, neighbours)
        taps = weight.to(x.dtype).flatten(1).t()                              # (K * C, O)
        y = x.new_empty(len(x), len(weight))
        for rows, seen in _gathered(x, neighbours):
            torch.mm(seen, taps, out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor], None]:
        x, weight, neighbours = ctx.saved_tensors
        outputs, count, inputs = weight.shape
        taps = weight.to(x.dtype).transpose(0, 1).reshape(-1, inputs)         # (K * O, C)
        for_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for_taps = torch.zeros_like(taps, dtype=weight.dtype) if ctx.needs_input_grad[1] else None
        for rows, seen in _gathered(grad, neighbours.flip(1)):
            if for_x is not None:
                torch.mm(seen, taps, out=for_x[rows])
            if for_taps is not None:
                for_taps += seen.t() @ x[rows]
        for_weight = None if for_taps is None else for_taps.view(
            count, outputs, inputs).transpose(0, 1)
        return for_x, for_weight, None


def gathered_conv(x: Tensor, weight: Tensor, neighbours: Tensor) -> Tensor:
    """For every voxel, the sum of `weight[:, k] @ x[neighbours[voxel, k]]` over its neighbours.

    Args:
        x: (N, C).
        weight: (O, K, C), in the precision of `x` or a higher one.
        neighbours: (N, K) int32, N for none; symmetric, so that a voxel sees another under tap k
            where it is seen by it under tap K - 1 - k.

    Returns:
        (N, O) in the precision of `x`.
    """
    return _GatheredConv.apply(x, weight, neighbours)
