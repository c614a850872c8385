"""Convolving by gathered neighbours, against the same by pairs."""
from typing import Tuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bevfusion_enhanced.ops import gathered_conv as module
from bevfusion_enhanced.ops.gathered_conv import gathered_conv
from bevfusion_enhanced.ops.sparse_conv import ConvPlan, sparse_conv
from bevfusion_enhanced.ops.voxel_pairs import TapPairs

GRID = (2, 6, 5, 4)
CELLS = torch.ones(GRID).nonzero()
# all cells of two samples; scattered; a line along z, which most taps miss; one; none
VOXELS = dict(
    all=CELLS,
    scattered=CELLS[torch.randperm(len(CELLS), generator=torch.Generator().manual_seed(0))[:90]
                    .sort()[0]],
    line=torch.tensor([[0, 4, 3, z] for z in (0, 1, 2, 3)]),
    one=torch.tensor([[0, 2, 3, 1]]),
    none=CELLS[:0])


def plan_of(voxels: Tensor) -> ConvPlan:
    """Pairs of a 3x3x3 kernel, by comparing every voxel with every other one."""
    offsets = torch.ones(1, 3, 3, 3).nonzero() - torch.tensor([0, 1, 1, 1])   # (27, 4)
    sees = (voxels[:, None] + offsets[:, None, None]
            == voxels[None]).all(-1)                                          # (27, out, in)
    return ConvPlan(taps=[TapPairs(*(rows.int() for rows in tap.nonzero().t().flip(0)))
                          for tap in sees], num_inputs=len(voxels), num_outputs=len(voxels))


def random_inputs(count: int, dtype: torch.dtype = torch.float64) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, generator=generator, dtype=dtype)
    weight = torch.randn(7, 27, 5, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize('at_once', [1, 5_000, 2 ** 22])
@pytest.mark.parametrize('voxels', VOXELS)
def test_it_is_the_convolution_by_pairs_with_both_gradients(voxels, at_once, monkeypatch):
    monkeypatch.setattr(module, 'BYTES_AT_ONCE', at_once)
    plan = plan_of(VOXELS[voxels])
    inputs = random_inputs(len(VOXELS[voxels]))
    ours, theirs = gathered_conv(*inputs, plan.neighbours), sparse_conv(*inputs, plan)
    assert_close(ours, theirs)
    towards = torch.randn_like(theirs)
    assert_close(torch.autograd.grad(ours, inputs, towards),
                 torch.autograd.grad(theirs, inputs, towards))


@pytest.mark.parametrize('wanted', [0, 1], ids=['input', 'weight'])
def test_either_gradient_alone_is_what_it_is_beside_the_other(wanted):
    neighbours = plan_of(VOXELS['scattered']).neighbours
    both = random_inputs(90)
    alone = [value.detach().requires_grad_(i == wanted) for i, value in enumerate(both)]
    gathered_conv(*both, neighbours).square().sum().backward()
    gathered_conv(*alone, neighbours).square().sum().backward()
    assert torch.equal(alone[wanted].grad, both[wanted].grad)


def test_in_bfloat16_sums_and_the_gradient_of_the_weight_are_rounded_once():
    plan = plan_of(VOXELS['all'])
    x, weight = random_inputs(len(CELLS))
    x, weight = (value.detach().bfloat16() for value in (x, weight))
    half = x.requires_grad_(), weight.float().requires_grad_()
    exact = [value.detach().double().requires_grad_() for value in half]
    ours, theirs = gathered_conv(*half, plan.neighbours), sparse_conv(*exact, plan)
    assert ours.dtype == torch.bfloat16
    assert_close(ours.double(), theirs, rtol=2 ** -8, atol=1e-4)
    towards = torch.randn_like(ours)
    for_x, for_weight = torch.autograd.grad(ours, half, towards)
    assert (for_x.dtype, for_weight.dtype) == (torch.bfloat16, torch.float32)
    for mine, expected in zip((for_x, for_weight),
                              torch.autograd.grad(theirs, exact, towards.double()), strict=True):
        assert_close(mine.double(), expected, rtol=2 ** -8, atol=1e-4)
