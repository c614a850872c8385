"""Sparse convolutions on a CPU: gather, multiply, and sum by output row.

A sparse convolution is a list of pairs (input voxel, output voxel) for every tap of its kernel, as
in Graham et al., '3D Semantic Segmentation with Submanifold Sparse Convolutional Networks', CVPR
2018, and as `voxel_pairs` finds them. The algorithm that spconv has for CPUs gathers the inputs of
a tap and adds its products to the outputs on one thread. Here a band of outputs first collects the
products of all its pairs, then every output sums its own; gathering and summing take all threads.
The gradient for the input is the same with inputs and outputs swapped. The order of every sum is
fixed by the pairs, so two runs on one machine are equal bit for bit.

Shapes: N input rows (voxels), M output rows, C input channels, O output channels, K taps, P pairs,
P_k those of one tap.
"""
from functools import cached_property
from itertools import count
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bevfusion_enhanced.ops.voxel_pairs import TapPairs

PAIRS_AT_ONCE = 2 ** 17  # their products stay in the cache, 16 MB for 32 channels

Rows = Union[Tensor, slice]  # (P_k) int32, or all from one to another


class _Band(NamedTuple):
    """Rows that are summed together.

    Attributes:
        rows: the range of the targets.
        taps: all pairs with these targets, by tap: the tap, the rows to read, and the rows to add
            to, each in rising order.
        positions: (P) of the pairs, counted through `taps`, sorted by target.
        offsets: (rows + 1) where each target's run of positions starts.
    """

    rows: slice
    taps: List[Tuple[int, Rows, Rows]]
    positions: Tensor
    offsets: Tensor


class ConvPlan:
    """Which input row meets which output row under which tap; layers may share it.

    Args:
        taps: the pairs of every tap.
        num_inputs: N.
        num_outputs: M.
    """

    def __init__(self, *, taps: Sequence[TapPairs], num_inputs: int, num_outputs: int) -> None:
        self.taps = list(taps)
        self.num_inputs = num_inputs
        self.num_outputs = num_outputs

    @cached_property
    def by_output(self) -> List[_Band]:
        """The output rows in bands."""
        return _bands(self.taps, num_targets=self.num_outputs)

    @cached_property
    def by_input(self) -> List[_Band]:
        """The input rows in bands; the backward pass alone needs it."""
        return _bands([(outputs, inputs) for inputs, outputs in self.taps],
                      num_targets=self.num_inputs)

    @cached_property
    def neighbours(self) -> Tensor:
        """The input row that every output meets under every tap, (M, K) int32; N for none."""
        rows = torch.full((self.num_outputs, len(self.taps)), self.num_inputs, dtype=torch.int32)
        for tap, (inputs, outputs) in enumerate(self.taps):
            rows[outputs, tap] = inputs
        return rows


def _bands(taps: Sequence[Tuple[Tensor, Tensor]], *, num_targets: int) -> List[_Band]:
    """Cut the pairs of every tap, sources and targets (P_k), by bands of targets."""
    if num_targets == 0:
        return []
    pairs = sum(len(targets) for _, targets in taps)
    height = max(1, num_targets * PAIRS_AT_ONCE // max(1, pairs))
    edges = torch.arange(0, num_targets + height, height, dtype=torch.int32)   # (bands + 1)
    cuts = torch.stack([torch.searchsorted(targets, edges) for _, targets in taps])
    positions, offsets = _positions(taps, cuts, num_targets=num_targets)
    bands = zip(edges.tolist(), cuts[:, :-1].T.tolist(), cuts[:, 1:].T.tolist())
    return [_band(slice(row, min(row + height, num_targets)),
                  [(k, _rows(sources[first:last]), _rows(targets[first:last]))
                   for k, (sources, targets), first, last in zip(count(), taps, firsts, lasts)
                   if last > first], positions, offsets)
            for row, firsts, lasts in bands]


def _positions(taps: Sequence[Tuple[Tensor, Tensor]], cuts: Tensor, *,
               num_targets: int) -> Tuple[Tensor, Tensor]:
    """All pairs by target: where in its band each is, (P), and each target's first, (targets + 1).

    Args:
        taps: sources and targets (P_k) of every tap; in a band they follow one another.
        cuts: (K, bands + 1) where each band starts among the pairs of a tap.
        num_targets: rows.
    """
    lengths = cuts.diff(dim=1)                                                 # (K, bands)
    before = lengths.flatten().cumsum(0).view_as(lengths) - lengths            # by tap, then band
    in_band = lengths.cumsum(0) - lengths                                      # by band, then tap
    targets = torch.cat([targets for _, targets in taps])                      # (P)
    places = torch.arange(len(targets)) + (in_band - before).flatten().repeat_interleave(
        lengths.flatten())
    offsets = F.pad(torch.bincount(targets, minlength=num_targets).cumsum(0), (1, 0))
    return places.index_select(0, torch.argsort(targets, stable=True)), offsets


def _band(rows: slice, taps: List[Tuple[int, Rows, Rows]], positions: Tensor,
          offsets: Tensor) -> _Band:
    """The part of all positions (P) and offsets (targets + 1) that belongs to some rows."""
    offsets = offsets[rows.start:rows.stop + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    return _Band(rows, taps, positions[first:last], offsets - first)


def _rows(rising: Tensor) -> Rows:
    """Rows (P_k > 0); as a slice, which is read without a copy, where none between is missing."""
    first, last = int(rising[0]), int(rising[-1])
    return slice(first, last + 1) if last - first == len(rising) - 1 else rising


def _read(x: Tensor, rows: Rows) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


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
                gathered = _read(x, sources)                                      # (P_k, C)
                first, last = last, last + len(gathered)
                torch.mm(gathered, weight[:, tap].t(), out=products[first:last])
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
                gathered = _read(grad, sources)                                   # (P_k, O)
                first, last = last, last + len(gathered)
                if for_x is not None:
                    torch.mm(gathered, weight[:, tap], out=products[first:last])
                if for_weight is not None:
                    for_weight[:, tap].addmm_(gathered.t(), _read(x, targets))
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
