"""Weighted sums of rows: what resampling and the transforms of a convolution are on a CPU.

PyTorch has a kernel for it, the embedding bag, that passes over memory once on all threads: it
reads the rows where they are and writes each sum where it belongs.

Shapes: N rows, C channels, R sums, S terms of all sums together.
"""
from typing import Any, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class RowSums(NamedTuple):
    """Which rows are summed, times which factors.

    Attributes:
        rows: (S,) int32, those of the first sum, of the second, ...
        factors: (S,) float32.
        starts: (R + 1,) int32, where each sum begins.
    """

    rows: Tensor
    factors: Tensor
    starts: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Sums (R, C) of rows of `values` (N, C), which no gradient is recorded for."""
        return F.embedding_bag(self.rows, values.detach(), self.starts, mode='sum',
                               per_sample_weights=self.factors.to(values.dtype),
                               include_last_offset=True)

    def transposed(self, *, num_rows: int) -> 'RowSums':
        """The way back: for each of N rows, the sums that it goes into."""
        sums = torch.repeat_interleave(self.starts.diff())
        return row_sums(sums=self.rows, rows=sums, factors=self.factors, num_sums=num_rows)


def row_sums(*, sums: Tensor, rows: Tensor, factors: Tensor, num_sums: int) -> RowSums:
    """Put terms in any order together, those of one sum in the order given.

    Args:
        sums: (S,) integers, the sum that a term belongs to.
        rows: (S,) integers, the row that it reads.
        factors: (S,) what the row is multiplied by.
        num_sums: R.
    """
    order = sums.argsort(stable=True)
    counts = torch.bincount(sums, minlength=num_sums)
    return RowSums(rows=rows[order].int(), factors=factors[order].float(),
                   starts=F.pad(counts.cumsum(0), (1, 0)).int())


class _RowSums(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, values: Tensor, there: RowSums, back: RowSums) -> Tensor:
        ctx.back = back
        return there.of(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None, None]:
        return ctx.back.of(gradient.contiguous()), None, None


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """Whether what is computed from `x` runs now and on a CPU: kernels for CPUs may serve it."""
    return not (x.device.type != 'cpu' or torch.jit.is_tracing() or torch.compiler.is_compiling())


def sum_rows(values: Tensor, there: RowSums, back: RowSums) -> Tensor:
    """Sums (R, C) of rows of `values` (N, C), with a gradient.

    Args:
        values: (N, C).
        there: the sums.
        back: the same transposed.
    """
    return _RowSums.apply(values, there, back)
