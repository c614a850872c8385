"""Sparse convolutions on a CPU: gather, multiply, and sum by output row.

A sparse convolution is a list of pairs (input voxel, output voxel) for every tap of its kernel, as
in Graham et al., '3D Semantic Segmentation with Submanifold Sparse Convolutional Networks', CVPR
2018, and as spconv finds them. The algorithm that spconv has for CPUs gathers the inputs of a tap
and adds its products to the outputs on one thread. Here a band of outputs first collects the
products of all its pairs, then every output sums its own; gathering and summing take all threads.
The gradient for the input is the same with inputs and outputs swapped. The order of every sum is
fixed by the pairs, so two runs on one machine are equal bit for bit.

Shapes: N input rows (voxels), M output rows, C input channels, O output channels, K taps, P pairs,
P_k those of one tap.
"""
from functools import cached_property
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PAIRS_AT_ONCE = 2 ** 17  # their products stay in the cache, 16 MB for 32 channels


class _TapPairs(NamedTuple):
    """Some pairs of one tap: the rows to read (P_k), and the rows to add to (P_k)."""

    tap: int
    sources: Tensor
    targets: Tensor


class _Band(NamedTuple):
    """Rows that are summed together.

    Attributes:
        rows: the range of the targets.
        taps: all pairs with these targets, by tap.
        positions: (P) of the pairs, counted through `taps`, sorted by target.
        offsets: (rows + 1) where each target's run of positions starts.
    """

    rows: slice
    taps: List[_TapPairs]
    positions: Tensor
    offsets: Tensor


class ConvPlan:
    """Which input row meets which output row under which tap; layers may share it.

    Args:
        pairs: for every tap, the input rows (P_k) and the output rows (P_k) of its pairs, int32.
        num_inputs: N.
        num_outputs: M.
    """

    def __init__(self, *, pairs: Sequence[Tuple[Tensor, Tensor]], num_inputs: int,
                 num_outputs: int) -> None:
        self._inputs = torch.cat([inputs for inputs, _ in pairs])                 # (P)
        self._outputs = torch.cat([outputs for _, outputs in pairs])              # (P)
        lengths = torch.tensor([len(inputs) for inputs, _ in pairs])
        self._tap = torch.repeat_interleave(
            torch.arange(len(pairs), dtype=torch.int32), lengths)                 # (P)
        self.num_inputs = num_inputs
        self.num_outputs = num_outputs
        self.num_taps = len(pairs)

    @cached_property
    def by_output(self) -> List[_Band]:
        """The output rows in bands."""
        return _bands(self._inputs, self._outputs, self._tap, num_targets=self.num_outputs)

    @cached_property
    def by_input(self) -> List[_Band]:
        """The input rows in bands; the backward pass alone needs it."""
        return _bands(self._outputs, self._inputs, self._tap, num_targets=self.num_inputs)

    @cached_property
    def neighbours(self) -> Tensor:
        """The input row that every output meets under every tap, (M, K) int32; N for none."""
        rows = torch.full((self.num_outputs, self.num_taps), self.num_inputs, dtype=torch.int32)
        rows[self._outputs, self._tap] = self._inputs
        return rows


def _bands(sources: Tensor, targets: Tensor, tap: Tensor, *, num_targets: int) -> List[_Band]:
    """Sort pairs (P) by band of targets, within a band by tap."""
    if num_targets == 0:
        return []
    height = max(1, num_targets * PAIRS_AT_ONCE // max(1, len(tap)))
    bands = [slice(first, min(first + height, num_targets))
             for first in range(0, num_targets, height)]
    taps = int(tap.max()) + 1 if len(tap) else 0
    key = torch.div(targets, height, rounding_mode='floor') * taps + tap          # (P)
    lengths = torch.bincount(key, minlength=len(bands) * taps).tolist()
    order = torch.argsort(key, stable=True)
    sources, targets = sources.index_select(0, order), targets.index_select(0, order)
    parts = zip(sources.split(lengths), targets.split(lengths))
    positions = torch.argsort(targets, stable=True)
    offsets = F.pad(torch.bincount(targets, minlength=num_targets).cumsum(0), (1, 0))
    return [_band(rows, [_TapPairs(k, *next(parts)) for k in range(taps)], positions, offsets)
            for rows in bands]


def _band(rows: slice, taps: List[_TapPairs], positions: Tensor, offsets: Tensor) -> _Band:
    """The part of all positions (P) and offsets (targets + 1) that belongs to some rows."""
    offsets = offsets[rows.start:rows.stop + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    return _Band(rows, [pairs for pairs in taps if len(pairs.sources)],
                 positions[first:last] - first, offsets - first)


def plan_convolution(pairs: Tensor, counts: Tensor, *, num_inputs: int, num_outputs: int,
                     submanifold: bool) -> ConvPlan:
    """Read the pairs as spconv's native algorithm lays them out.

    For a submanifold convolution spconv counts the pairs of the first half of the taps only: those
    of the other half are the same ones mirrored, and the centre pairs every voxel with itself.

    Args:
        pairs: (2, K, >= P_k) int32, input and output row of every pair.
        counts: (K) pairs of every tap.
        num_inputs: N.
        num_outputs: M.
        submanifold: whether the outputs are the inputs' voxels, and K is odd.
    """
    lengths = counts.tolist()
    centre = len(lengths) // 2
    if submanifold:
        lengths[centre + 1:] = lengths[:centre][::-1]
    taps = [(pairs[0, k, :length], pairs[1, k, :length]) for k, length in enumerate(lengths)]
    if submanifold:
        everyone = torch.arange(num_inputs, dtype=pairs.dtype)
        taps[centre] = everyone, everyone
    return ConvPlan(pairs=taps, num_inputs=num_inputs, num_outputs=num_outputs)


def _sums(products: Tensor, band: _Band) -> Tensor:
    """Sum the products (P, O) of every target of a band: (rows, O)."""
    return F.embedding_bag(band.positions, products, band.offsets, mode='sum',
                           include_last_offset=True)


class _SparseConv(torch.autograd.Function):
    """What was gathered is gathered again for the backward pass, rather than kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: ConvPlan) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plan = plan
        y = x.new_empty(plan.num_outputs, len(weight))                            # (M, O)
        for band in plan.by_output:
            products = x.new_empty(len(band.positions), len(weight))              # (P, O)
            last = 0
            for tap, sources, _ in band.taps:
                first, last = last, last + len(sources)
                torch.mm(x.index_select(0, sources), weight[:, tap].t(), out=products[first:last])
            y[band.rows] = _sums(products, band)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor], None]:
        x, weight = ctx.saved_tensors
        for_x = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None         # (N, C)
        for_weight = weight.new_zeros(weight.shape) if ctx.needs_input_grad[1] else None
        for band in ctx.plan.by_input:
            if for_x is not None:
                products = x.new_empty(len(band.positions), x.shape[1])           # (P, C)
            last = 0
            for tap, sources, targets in band.taps:
                first, last = last, last + len(sources)
                gathered = grad.index_select(0, sources)                          # (P_k, O)
                if for_x is not None:
                    torch.mm(gathered, weight[:, tap], out=products[first:last])
                if for_weight is not None:
                    for_weight[:, tap].addmm_(gathered.t(), x.index_select(0, targets))
            if for_x is not None:
                for_x[band.rows] = _sums(products, band)
        return for_x, for_weight, None


def sparse_conv(x: Tensor, weight: Tensor, plan: ConvPlan) -> Tensor:
    """For every output row, the sum of `weight[:, k] @ x[input row]` over its pairs.

    Args:
        x: (N, C).
        weight: (O, K, C).
        plan: the pairs.

    Returns:
        (M, O), zero where an output row has no pair.
    """
    return _SparseConv.apply(x, weight, plan)
