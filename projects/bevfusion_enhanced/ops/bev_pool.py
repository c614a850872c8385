"""BEV pooling straight from depth and context, without the product of the two.

The contribution of pixel p at depth bin d to the BEV map is depth[p, d] * context[p, :], summed
into the cell that holds that piece of the pixel's frustum. The plain way stores that product for
every pixel and bin; here a plan, computed once per calibration, lists for every cell which
(pixel, bin) pairs fall into it, and pooling is a sparse matrix (cells x pixels, its values taken
from depth) times a dense one (pixels x channels). After Huang and Huang, 'BEVPoolv2: A
Cutting-edge Implementation of BEVDet Toward Deployment', 2022.

On a GPU the sums are Triton kernels (`bev_pool_triton`), where Triton is installed; otherwise
PyTorch's own operators. The order of every sum is fixed by the plan, so two runs on one machine are
equal bit for bit.

Shapes: P pixels of all cameras of the batch, D depth bins, C channels, K cells of the batch,
E entries = (pixel, bin) pairs that fall inside the map (E <= P * D).
"""
import os
import warnings
from types import ModuleType
from typing import Any, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class PoolingPlan(NamedTuple):
    """Which (pixel, bin) pairs fall into which cell, sorted both ways; all int32.

    Attributes:
        cell_offsets: (K + 1) where each cell's entries start in the two `by_cell` lists.
        pixel_by_cell: (E) pixel of each entry, sorted by cell, then by pixel and bin.
        source_by_cell: (E) position of each entry in the flattened depth (P * D), same order.
        pixel_offsets: (P + 1) where each pixel's entries start in the two `by_pixel` lists.
        cell_by_pixel: (E) cell of each entry, sorted by pixel and bin.
        source_by_pixel: (E) position of each entry in the flattened depth, same order.
    """

    cell_offsets: Tensor
    pixel_by_cell: Tensor
    source_by_cell: Tensor
    pixel_offsets: Tensor
    cell_by_pixel: Tensor
    source_by_pixel: Tensor


def _offsets(ids: Tensor, count: int) -> Tensor:
    """Where each id's run starts in the sorted `ids` (E): (count + 1) int32."""
    offsets = ids.new_zeros(count + 1, dtype=torch.int32)
    offsets[1:] = torch.bincount(ids, minlength=count).cumsum(0)
    return offsets


def plan_pooling(cells: Tensor, *, num_cells: int) -> PoolingPlan:
    """Sort the (pixel, bin) pairs by cell.

    Args:
        cells: (P, D) integers, the cell of each pair, or a negative number for a pair that falls
            outside the map and is ignored.
        num_cells: cells of the map, K; every entry of `cells` is below it.
    """
    num_pixels, num_bins = cells.shape
    flat = cells.reshape(-1)
    source = torch.nonzero(flat >= 0).squeeze(1)                                  # (E)
    cell = flat[source].int()
    pixel = torch.div(source, num_bins, rounding_mode='floor').int()
    source = source.int()
    _, order = torch.sort(cell, stable=True)
    return PoolingPlan(
        cell_offsets=_offsets(cell, num_cells),
        pixel_by_cell=pixel[order],
        source_by_cell=source[order],
        pixel_offsets=_offsets(pixel, num_pixels),
        cell_by_pixel=cell,
        source_by_pixel=source)


def _weighted_sum(table: Tensor, index: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Sum weight[e] * table[index[e]] over each run of entries: (rows, C), (E), (R + 1), (E)."""
    return F.embedding_bag(index, table, offsets, mode='sum', per_sample_weights=weight,
                           include_last_offset=True)                              # (R, C)


def _dots(rows: Tensor, columns: Tensor, offsets: Tensor, index: Tensor) -> Tensor:
    """Inner product of each run's row with the row of `columns` that each entry names: (E)."""
    if len(index) == 0:
        return rows.new_zeros(0)
    # torch lets a sparse matrix hold no more entries than it has places, but a pixel may meet one
    # cell in several bins; columns that no entry names make room for them
    missing = -(-len(index) // len(rows)) - len(columns)
    if missing > 0:
        columns = F.pad(columns, (0, 0, 0, missing))
    with warnings.catch_warnings():  # torch calls its sparse tensors a beta feature, once
        warnings.simplefilter('ignore', UserWarning)
        pattern = torch.sparse_csr_tensor(
            offsets, index, rows.new_zeros(len(index)), size=(len(rows), len(columns)),
            check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, rows, columns.t(), beta=0.).values()


def _pooled(table: Tensor, index: Tensor, offsets: Tensor, depth: Tensor,
            source: Tensor) -> Tensor:
    """Sum depth[source[e]] * table[index[e]] over each run of entries: (R, C)."""
    kernels = _kernels(table)
    if kernels is not None:
        return kernels.weighted_sum(table, index=index, offsets=offsets, depth=depth,
                                    source=source)
    return _weighted_sum(table, index, offsets, depth.view(-1).index_select(0, source))


def _depth_gradient(depth: Tensor, context: Tensor, grad: Tensor, plan: PoolingPlan) -> Tensor:
    kernels = _kernels(grad)
    if kernels is not None:
        return kernels.dots_at_source(
            context, grad, index=plan.cell_by_pixel, offsets=plan.pixel_offsets,
            source=plan.source_by_pixel, size=depth.numel()).view_as(depth)
    dots = _dots(context, grad, plan.pixel_offsets, plan.cell_by_pixel)           # (E)
    grad_depth = torch.zeros_like(depth)                                          # (P, D)
    grad_depth.view(-1)[plan.source_by_pixel.long()] = dots
    return grad_depth


def _kernels(tensor: Tensor) -> Optional[ModuleType]:
    """The Triton kernels, where they are there and take the tensor; None means PyTorch."""
    if not tensor.is_cuda and os.environ.get('TRITON_INTERPRET') != '1':
        return None  # the import of Triton takes a while, which nobody on a CPU needs
    try:
        from bevfusion_enhanced.ops import bev_pool_triton
    except ImportError:
        return None
    return bev_pool_triton if bev_pool_triton.usable(tensor) else None


class _BEVPool(torch.autograd.Function):
    """Sparse times dense, with both gradients from the plan's other ordering."""

    @staticmethod
    def forward(ctx: Any, depth: Tensor, context: Tensor, plan: PoolingPlan) -> Tensor:
        ctx.save_for_backward(depth, context)
        ctx.plan = plan
        return _pooled(context, plan.pixel_by_cell, plan.cell_offsets, depth,
                       plan.source_by_cell)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, None]:
        depth, context = ctx.saved_tensors
        plan = ctx.plan
        grad = grad.contiguous()                                                  # (K, C)
        grad_depth = grad_context = None
        if ctx.needs_input_grad[0]:
            grad_depth = _depth_gradient(depth, context, grad, plan)              # (P, D)
        if ctx.needs_input_grad[1]:
            grad_context = _pooled(grad, plan.cell_by_pixel, plan.pixel_offsets, depth,
                                   plan.source_by_pixel)                          # (P, C)
        return grad_depth, grad_context, None


def bev_pool(depth: Tensor, context: Tensor, plan: PoolingPlan) -> Tensor:
    """Sum depth[p, d] * context[p] into the cell of every (p, d) that the plan holds.

    Args:
        depth: (P, D) weight of each bin of each pixel.
        context: (P, C) feature of each pixel.
        plan: from `plan_pooling` on cells of shape (P, D).

    Returns:
        (K, C), zero where no pair falls; at least float32, whatever autocast says.
    """
    dtype = torch.promote_types(torch.promote_types(depth.dtype, context.dtype), torch.float32)
    with torch.autocast(device_type=depth.device.type, enabled=False):
        return _BEVPool.apply(depth.to(dtype).contiguous(), context.to(dtype).contiguous(), plan)
