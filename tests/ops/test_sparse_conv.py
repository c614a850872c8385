"""Our sparse convolution on a CPU, against spconv's native algorithm."""
from typing import Sequence, Tuple

import pytest
import torch
from spconv.pytorch import ConvAlgo, SparseConvTensor
from spconv.pytorch import functional as spconv_functional
from spconv.pytorch import ops as spconv_ops
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from bevfusion_enhanced.models.lidar import sparse_encoder
from bevfusion_enhanced.models.lidar.sparse_encoder import StridedConv, SubmanifoldConv
from bevfusion_enhanced.ops import sparse_conv as module
from bevfusion_enhanced.ops.sparse_conv import ConvPlan, sparse_conv
from bevfusion_enhanced.ops.voxel_pairs import (
    TapPairs,
    places_of,
    strided_pairs,
    submanifold_pairs,
)

SHAPE = (9, 7, 6)
SUBMANIFOLD = dict(ksize=[3, 3, 3], stride=[1] * 3, padding=[1] * 3, subm=True)
HALVING = dict(ksize=[3, 3, 3], stride=[2, 2, 2], padding=[1, 1, 0], subm=False)
FOLDING = dict(ksize=[1, 1, 3], stride=[1, 1, 2], padding=[0, 0, 0], subm=False)
KINDS = dict(submanifold=SUBMANIFOLD, halving=HALVING, folding=FOLDING)
# all cells of two samples; scattered; a line along z, which most taps miss; one voxel
CELLS = torch.ones(2, *SHAPE).nonzero().int().contiguous()
VOXELS = dict(
    all=CELLS,
    scattered=CELLS[torch.rand(756, generator=torch.Generator().manual_seed(0)) < 0.2],
    line=torch.tensor([[0, 4, 3, z] for z in (0, 1, 2, 5)], dtype=torch.int32),
    one=torch.tensor([[0, 2, 3, 1]], dtype=torch.int32))


def plan_of(coords: Tensor, kind: dict) -> Tuple[ConvPlan, Tensor]:
    """Our plan, and the outputs' voxels."""
    if kind['subm']:
        voxels, taps = coords, submanifold_pairs(coords, shape=SHAPE)
    else:
        voxels, taps = strided_pairs(coords, shape=SHAPE, kernel=kind['ksize'],
                                     stride=kind['stride'], padding=kind['padding'])
    return ConvPlan(taps=taps, num_inputs=len(coords), num_outputs=len(voxels)), voxels


def in_order(voxels: Tensor) -> Tensor:
    return places_of(voxels, shape=SHAPE).argsort()


def random_inputs(count: int, kernel: Sequence[int], dtype=torch.float32) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, generator=generator, dtype=dtype)
    weight = torch.randn(8, *kernel, 5, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize('at_once', [1, 100, 2 ** 18])
@pytest.mark.parametrize('voxels', VOXELS)
@pytest.mark.parametrize('kind', KINDS)
def test_it_is_what_spconv_computes_with_both_gradients(kind, voxels, at_once, monkeypatch):
    monkeypatch.setattr(module, 'PAIRS_AT_ONCE', at_once)
    coords, kind = VOXELS[voxels], KINDS[kind]
    plan, voxels = plan_of(coords, kind)
    found, table, counts = spconv_ops.get_indice_pairs(
        coords, 2, list(SHAPE), ConvAlgo.Native, dilation=[1] * 3, out_padding=[0] * 3, **kind)
    x, weight = random_inputs(len(coords), kind['ksize'])
    native = (spconv_functional.indice_subm_conv if kind['subm']
              else spconv_functional.indice_conv)
    theirs = native(x, weight, table, counts, len(found), ConvAlgo.Native)
    theirs = theirs[in_order(found)]
    assert torch.equal(voxels, found[in_order(found)])
    ours = sparse_conv(x, weight.flatten(1, 3), plan)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    towards = torch.randn_like(theirs)
    for mine, expected in zip(torch.autograd.grad(ours, (x, weight), towards),
                              torch.autograd.grad(theirs, (x, weight), towards)):
        assert_close(mine, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_of_all_kinds_are_those_of_finite_differences(kind):
    coords, kind = VOXELS['line'], KINDS[kind]
    plan, _ = plan_of(coords, kind)
    x, weight = random_inputs(len(coords), kind['ksize'], torch.float64)
    assert gradcheck(lambda x, w: sparse_conv(x, w.flatten(1, 3), plan), (x, weight))


def rows(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def test_rows_and_taps_without_pairs():
    plan = ConvPlan(taps=[TapPairs(rows(0, 2), rows(1, 3)), TapPairs(rows(), rows()),
                          TapPairs(rows(2), rows(1))], num_inputs=4, num_outputs=5)
    x, weight = torch.randn(4, 3).requires_grad_(), torch.randn(2, 3, 3).requires_grad_()
    out = sparse_conv(x, weight, plan)
    expected = torch.zeros(5, 2)
    expected[3] = weight[:, 0] @ x[2]
    expected[1] = weight[:, 0] @ x[0] + weight[:, 2] @ x[2]
    assert_close(out, expected)
    out.sum().backward()
    assert not x.grad[[1, 3]].any() and x.grad[[0, 2]].any()
    assert not weight.grad[:, 1].any() and weight.grad[:, [0, 2]].any()


def test_no_pairs_at_all():
    plan = ConvPlan(taps=[TapPairs(rows(), rows())] * 3, num_inputs=2, num_outputs=0)
    x, weight = torch.randn(2, 3).requires_grad_(), torch.randn(4, 3, 3).requires_grad_()
    out = sparse_conv(x, weight, plan)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.any() and not weight.grad.any()


def test_only_the_gradients_that_are_asked_for():
    plan, voxels = plan_of(VOXELS['scattered'], SUBMANIFOLD)
    x, weight = random_inputs(len(voxels), [27])
    both = torch.autograd.grad(sparse_conv(x, weight, plan).sum(), (x, weight))
    for_x, = torch.autograd.grad(sparse_conv(x, weight.detach(), plan).sum(), x)
    for_weight, = torch.autograd.grad(sparse_conv(x.detach(), weight, plan).sum(), weight)
    assert torch.equal(for_x, both[0]) and torch.equal(for_weight, both[1])


def grid(channels: int) -> SparseConvTensor:
    coords = VOXELS['scattered']
    return SparseConvTensor(torch.randn(len(coords), channels), coords, list(SHAPE), 2)


def test_it_is_the_same_bit_for_bit_in_every_run():
    x, conv = grid(5), SubmanifoldConv(in_channels=5, out_channels=8, indice_key='a')
    assert torch.equal(conv(x).features, conv(x).features)


def test_layers_with_one_key_share_a_plan(monkeypatch):
    """The pairs are found once, and sorted once for each direction."""
    found, sorted_ = [], []
    find, sort = sparse_encoder.submanifold_pairs, module._bands
    monkeypatch.setattr(sparse_encoder, 'submanifold_pairs', lambda *a, **k: (found.append(1),
                                                                              find(*a, **k))[1])
    monkeypatch.setattr(module, '_bands', lambda *a, **k: (sorted_.append(1),
                                                             sort(*a, **k))[1])
    first = SubmanifoldConv(in_channels=5, out_channels=4, indice_key='a')
    second = SubmanifoldConv(in_channels=4, out_channels=3, indice_key='a')
    out = second(first(grid(5)))
    assert len(found) == len(sorted_) == 1
    out.features.sum().backward()
    assert len(found) == 1 and len(sorted_) == 2
    alone = SubmanifoldConv(in_channels=4, out_channels=3, indice_key='b')
    assert set(alone(first(grid(5))).indice_dict) == {'a', 'b'}
    assert len(found) == 3


def test_a_key_of_another_grid_is_refused():
    first = SubmanifoldConv(in_channels=5, out_channels=4, indice_key='a')
    halving = StridedConv(in_channels=4, out_channels=4, kernel_size=3, stride=2, padding=1)
    with pytest.raises(ValueError, match='share a key where they share a grid'):
        SubmanifoldConv(in_channels=4, out_channels=4, indice_key='a')(halving(first(grid(5))))


@pytest.mark.parametrize('conv', [
    SubmanifoldConv(in_channels=5, out_channels=4),
    StridedConv(in_channels=5, out_channels=4, kernel_size=3, stride=2, padding=1)],
    ids=['submanifold', 'strided'])
@pytest.mark.parametrize('rows', [[1, 0, 2], [0, 1, 1]], ids=['out of order', 'one twice'])
def test_voxels_that_are_not_sorted_are_refused(conv, rows):
    x = SparseConvTensor(torch.randn(3, 5), VOXELS['line'][rows], list(SHAPE), 2)
    with pytest.raises(ValueError, match='not in the order of sample, x, y, z'):
        conv(x)


@pytest.mark.parametrize('mode', [torch.inference_mode, torch.no_grad])
def test_layers_run_without_gradients(mode):
    x = grid(5)
    conv = StridedConv(in_channels=5, out_channels=4, kernel_size=(1, 1, 3), stride=(1, 1, 2),
                       padding=0)
    with mode():
        out = conv(x)
    assert not out.features.requires_grad
    assert out.spatial_shape == [9, 7, 2]
    assert torch.equal(out.features, conv(x).features)
