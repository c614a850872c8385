"""Layers of the training step that are not PyTorch's own, forward and backward.

Shapes: P proposals, X and Y cells, V voxels.
"""
from typing import List, Tuple

import torch
from spconv.pytorch import ConvAlgo
from spconv.pytorch import functional as spconv_functional
from spconv.pytorch import ops as spconv_ops
from torch import Tensor
from torch.nn import functional as F

from bevfusion_enhanced.benchmarks.measure import (
    Measurement,
    check_equal,
    milliseconds,
    peak_growth_mb,
    side_by_side,
)
from bevfusion_enhanced.benchmarks.scene import cloud
from bevfusion_enhanced.ops.dropped_attention import dropped_attention
from bevfusion_enhanced.ops.gathered_conv import gathered_conv
from bevfusion_enhanced.ops.memory import keep_freed_memory
from bevfusion_enhanced.ops.sparse_conv import ConvPlan, sparse_conv
from bevfusion_enhanced.ops.voxel_pairs import submanifold_pairs
from bevfusion_enhanced.ops.winograd import winograd_conv2d

CHANNELS = (512, 256)  # into and out of a branch of the map head's ASPP
MAP_SIZE = (200, 200)
DILATION = 6
KEYS, PROPOSALS, HEADS, WIDTH = 180 * 180, 200, 8, 16
DROPOUT = 0.1
VOXEL = (0.3, 0.3, 0.8)  # metres along x, y, z on the third grid of the sparse encoder
GRID = (360, 360, 11)
VOXEL_CHANNELS = 64


def convolution() -> Measurement:
    """A dilated 3x3 convolution of the map head; the reference is PyTorch's."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = CHANNELS
    x = torch.randn(1, inputs, *MAP_SIZE, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = (0.02 * torch.randn(outputs, inputs, 3, 3, generator=generator)).requires_grad_()
    towards = torch.randn(1, outputs, *MAP_SIZE, generator=generator).contiguous(
        memory_format=torch.channels_last)

    def step(convolve) -> Tuple[Tensor, ...]:
        y = convolve(x, weight, padding=DILATION, dilation=DILATION)
        return (y.detach(), *torch.autograd.grad(y, (x, weight), towards))

    for mine, theirs in zip(step(winograd_conv2d), step(F.conv2d)):
        check_equal(mine / theirs.abs().max(), theirs / theirs.abs().max(), atol=5e-5)
    peak = peak_growth_mb(lambda: step(winograd_conv2d))
    keep_freed_memory()  # as tools/train.py does; the peak is told better without
    ours_ms, reference_ms = side_by_side(
        lambda: step(winograd_conv2d), lambda: step(F.conv2d), repeats=5)
    with torch.no_grad():
        forward_ms = milliseconds(
            lambda: winograd_conv2d(x, weight, padding=DILATION, dilation=DILATION), repeats=5)
    products = inputs * outputs * MAP_SIZE[0] * MAP_SIZE[1] * 36 / 16
    return Measurement(
        ours_ms=ours_ms, reference_ms=reference_ms, operations=3 * 2 * products,
        peak_mb=peak,
        conditions=f'{inputs} to {outputs} channels, {MAP_SIZE[0]} x {MAP_SIZE[1]} cells, dilation '
                   f'{DILATION}, forward and both gradients; the bound counts the products of '
                   'F(4x4, 3x3)',
        details={'forward_ms': round(forward_ms, 1)})


def cross_attention() -> Measurement:
    """The proposals' look at the map while training; the reference is PyTorch's."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, HEADS, count, WIDTH, generator=generator).requires_grad_()
                         for count in (PROPOSALS, KEYS, KEYS))
    towards = torch.randn(1, HEADS, PROPOSALS, WIDTH, generator=generator)

    def ours(dropout: float = DROPOUT) -> Tuple[Tensor, ...]:
        seen = dropped_attention(query, key, value, dropout=dropout)
        return torch.autograd.grad(seen, (query, key, value), towards)

    def reference(dropout: float = DROPOUT) -> Tuple[Tensor, ...]:
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return torch.autograd.grad(seen, (query, key, value), towards)

    for mine, theirs in zip(ours(1e-9), reference(0.0)):  # with dropout the draws differ
        check_equal(mine, theirs, atol=1e-5)
    peaks = peak_growth_mb(ours), peak_growth_mb(reference)
    keep_freed_memory()
    ours_ms, reference_ms = side_by_side(ours, reference, repeats=5)
    return Measurement(
        ours_ms=ours_ms, reference_ms=reference_ms, peak_mb=peaks[0],
        operations=14.0 * HEADS * PROPOSALS * KEYS * WIDTH,
        traffic=4.0 * 4 * HEADS * KEYS * WIDTH,
        conditions=f'{PROPOSALS} proposals, {KEYS:,} cells, {HEADS} heads of {WIDTH} channels, '
                   f'dropout {DROPOUT}, forward and backward; equal without dropout',
        details={'reference_peak_mb': round(peaks[1], 1)})


def _voxels() -> Tensor:
    """The cloud's (V, 4) on the third grid of the sparse encoder, in order of place."""
    cells = (cloud()[:, :3] / torch.tensor(VOXEL) + torch.tensor(GRID) / 2).int()
    inside = ((cells >= 0) & (cells < torch.tensor(GRID))).all(1)
    return F.pad(cells[inside], (1, 0)).unique(dim=0)


def sparse_convolution() -> Measurement:
    """A submanifold layer of the sparse encoder; the reference is spconv's for CPUs."""
    generator = torch.Generator().manual_seed(0)
    voxels = _voxels()

    def spconv_pairs() -> List[Tensor]:
        return spconv_ops.get_indice_pairs(
            voxels, 1, list(GRID), ConvAlgo.Native, [3] * 3, [1] * 3, [1] * 3, [1] * 3, [0] * 3,
            subm=True)[1:]

    table, counts = spconv_pairs()
    plan = ConvPlan(taps=submanifold_pairs(voxels, shape=GRID), num_inputs=len(voxels),
                    num_outputs=len(voxels))
    x = torch.randn(len(voxels), VOXEL_CHANNELS, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(VOXEL_CHANNELS, 3, 3, 3, VOXEL_CHANNELS, generator=generator)
              ).requires_grad_()
    half = x.detach().bfloat16().requires_grad_()
    towards = torch.randn(len(voxels), VOXEL_CHANNELS, generator=generator)

    def ours() -> Tuple[Tensor, ...]:
        y = sparse_conv(x, weight.flatten(1, 3), plan)
        return (y.detach(), *torch.autograd.grad(y, (x, weight), towards))

    def reference() -> Tuple[Tensor, ...]:
        y = spconv_functional.indice_subm_conv(x, weight, table, counts, len(voxels),
                                               ConvAlgo.Native)
        return (y.detach(), *torch.autograd.grad(y, (x, weight), towards))

    def in_bfloat16() -> Tuple[Tensor, ...]:
        y = gathered_conv(half, weight.flatten(1, 3), plan.neighbours)
        return torch.autograd.grad(y, (half, weight), towards.bfloat16())

    for mine, theirs in zip(ours(), reference()):
        check_equal(mine / theirs.abs().max(), theirs / theirs.abs().max(), atol=1e-5)
    peak = peak_growth_mb(ours)
    keep_freed_memory()
    ours_ms, reference_ms = side_by_side(ours, reference, repeats=7)
    half_ms = milliseconds(in_bfloat16, repeats=7)
    with torch.no_grad():
        forward_ms = milliseconds(lambda: sparse_conv(x, weight.flatten(1, 3), plan), repeats=7)
    pairs = int((plan.neighbours < len(voxels)).sum())
    pairs_ms = side_by_side(lambda: submanifold_pairs(voxels, shape=GRID), spconv_pairs, repeats=7)
    return Measurement(
        ours_ms=ours_ms, reference_ms=reference_ms, peak_mb=peak,
        operations=3 * 2.0 * pairs * VOXEL_CHANNELS ** 2,
        conditions=f'{len(voxels):,} voxels, {pairs:,} pairs, {VOXEL_CHANNELS} channels, forward '
                   'and both gradients; the pairs are there',
        details={'forward_ms': round(forward_ms, 1), 'bfloat16_ms': round(half_ms, 1),
                 'pairs_ms': round(pairs_ms[0], 1), 'pairs_by_spconv_ms': round(pairs_ms[1], 1)})
