"""The sums and inner products of BEV pooling as Triton kernels, for GPUs.

Each program owns one run of entries (a cell's, or a pixel's) and walks it in a fixed order, so that
no two programs add to one number and results do not change from run to run. Depth is read through
the plan, so that not even its reordered copy exists.

Shapes: R runs, E entries, C channels.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 16  # of a run that a program looks at together


@triton.jit
def _sum_runs(out, table, index, depth, source, offsets, channels,
              CHANNELS: tl.constexpr, ENTRIES: tl.constexpr):
    """out[r] = sum over the entries e of run r of depth[source[e]] * table[index[e]]."""
    run = tl.program_id(0)
    start = tl.load(offsets + run)
    end = tl.load(offsets + run + 1)
    c = tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for first in range(start, end, ENTRIES):
        e = first + tl.arange(0, ENTRIES)
        here = e < end
        weight = tl.load(depth + tl.load(source + e, mask=here, other=0), mask=here, other=0.0)
        row = tl.load(index + e, mask=here, other=0).to(tl.int64)
        place = row[:, None] * channels + c[None, :]
        inside = here[:, None] & (c[None, :] < channels)
        value = tl.load(table + place, mask=inside, other=0.0)
        total += tl.sum(weight[:, None] * value, axis=0)
    tl.store(out + run.to(tl.int64) * channels + c, total, mask=c < channels)


@triton.jit
def _dot_runs(out, rows, columns, index, source, offsets, channels,
              CHANNELS: tl.constexpr, ENTRIES: tl.constexpr):
    """out[source[e]] = rows[r] . columns[index[e]] for every entry e of run r."""
    run = tl.program_id(0)
    start = tl.load(offsets + run)
    end = tl.load(offsets + run + 1)
    c = tl.arange(0, CHANNELS)
    own = tl.load(rows + run.to(tl.int64) * channels + c, mask=c < channels, other=0.0)
    for first in range(start, end, ENTRIES):
        e = first + tl.arange(0, ENTRIES)
        here = e < end
        row = tl.load(index + e, mask=here, other=0).to(tl.int64)
        place = row[:, None] * channels + c[None, :]
        inside = here[:, None] & (c[None, :] < channels)
        value = tl.load(columns + place, mask=inside, other=0.0)
        dots = tl.sum(own[None, :] * value, axis=1)
        tl.store(out + tl.load(source + e, mask=here, other=0), dots, mask=here)


def weighted_sum(table: Tensor, *, index: Tensor, offsets: Tensor, depth: Tensor,
                 source: Tensor) -> Tensor:
    """Sum depth[source[e]] * table[index[e]] over each run of entries.

    Args:
        table: (rows, C) float32, contiguous.
        index: (E) int32.
        offsets: (R + 1) int32, where each run starts.
        depth: any shape, float32, contiguous.
        source: (E) int32, positions in the flattened depth.

    Returns:
        (R, C).
    """
    runs, channels = len(offsets) - 1, table.shape[1]
    out = table.new_empty(runs, channels)
    if out.numel():
        _sum_runs[(runs,)](out, table, index, depth, source, offsets, channels,
                           CHANNELS=triton.next_power_of_2(channels), ENTRIES=ENTRIES)
    return out


def dots_at_source(rows: Tensor, columns: Tensor, *, index: Tensor, offsets: Tensor,
                   source: Tensor, size: int) -> Tensor:
    """Inner product of each run's row with the column that each entry names.

    Args:
        rows: (R, C) float32, contiguous.
        columns: (any, C) float32, contiguous.
        index: (E) int32 into `columns`.
        offsets: (R + 1) int32.
        source: (E) int32, no two equal: where each product is written.
        size: of the result.

    Returns:
        (size,), 0 where no entry writes.
    """
    out = rows.new_zeros(size)
    runs, channels = rows.shape
    if runs and channels:
        _dot_runs[(runs,)](out, rows, columns, index, source, offsets, channels,
                           CHANNELS=triton.next_power_of_2(channels), ENTRIES=ENTRIES)
    return out


def usable(tensor: Tensor) -> bool:
    """Whether the kernels take this tensor: float32, on a GPU or in Triton's interpreter."""
    return tensor.dtype == torch.float32 and (tensor.is_cuda or triton.knobs.runtime.interpret)
