import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevfusion_enhanced.ops.bev_pool import bev_pool, plan_pooling


def materialised(depth, context, cells, num_cells):
    """The plain way: the product of every pixel and bin, added to its cell."""
    product = depth[:, :, None] * context[:, None, :]                             # (P, D, C)
    inside = cells >= 0
    out = context.new_zeros(num_cells, context.shape[1])
    return out.index_add(0, cells[inside].long(), product[inside])


def case(seed=0, pixels=40, bins=9, channels=6, num_cells=25, outside=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(num_cells, (pixels, bins), generator=generator)
    cells[torch.rand(pixels, bins, generator=generator) < outside] = -1
    depth = torch.rand(pixels, bins, generator=generator, dtype=dtype)
    context = torch.randn(pixels, channels, generator=generator, dtype=dtype)
    return depth, context, cells.int(), num_cells


@pytest.mark.parametrize('outside', [0.0, 0.3, 1.0])
def test_equals_the_materialised_product(outside):
    depth, context, cells, num_cells = case(outside=outside)
    out = bev_pool(depth, context, plan_pooling(cells, num_cells=num_cells))
    assert_close(out, materialised(depth, context, cells, num_cells))


def test_cells_that_nothing_hits_are_zero():
    depth, context = torch.ones(2, 3), torch.ones(2, 4)
    cells = torch.tensor([[0, 0, -1], [5, -1, 0]])
    out = bev_pool(depth, context, plan_pooling(cells, num_cells=7))
    assert out[:, 0].tolist() == [3, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize('outside', [0.3, 1.0])
@pytest.mark.parametrize('num_cells', [2, 3, 6, 100])  # from more bins than cells to fewer
def test_gradients(outside, num_cells):
    depth, context, cells, num_cells = case(pixels=8, bins=4, channels=3, num_cells=num_cells,
                                            outside=outside)
    plan = plan_pooling(cells, num_cells=num_cells)
    assert torch.autograd.gradcheck(
        lambda d, c: bev_pool(d, c, plan), (depth.requires_grad_(), context.requires_grad_()),
        atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(('pixels', 'bins', 'channels'), [(0, 4, 3), (5, 0, 3), (5, 4, 0)])
def test_empty_inputs_give_an_empty_map_and_zero_gradients(pixels, bins, channels):
    depth = torch.rand(pixels, bins, requires_grad=True)
    context = torch.rand(pixels, channels, requires_grad=True)
    plan = plan_pooling(torch.zeros(pixels, bins, dtype=torch.int32), num_cells=6)
    out = bev_pool(depth, context, plan)
    assert torch.equal(out, torch.zeros(6, channels))
    out.sum().backward()
    assert torch.equal(depth.grad, torch.zeros(pixels, bins))
    assert torch.equal(context.grad, torch.zeros(pixels, channels))


@pytest.mark.parametrize('needed', [(True, False), (False, True)])
def test_gradient_of_one_input_alone(needed):
    depth, context, cells, num_cells = case()
    depth.requires_grad_(needed[0])
    context.requires_grad_(needed[1])
    bev_pool(depth, context, plan_pooling(cells, num_cells=num_cells)).sum().backward()
    assert (depth.grad is not None, context.grad is not None) == needed


@pytest.mark.parametrize('num_cells', [5, 100, 3000])  # from more bins than cells to fewer
def test_runs_are_equal_bit_for_bit_whatever_the_threads_and_the_alignment(num_cells, on_threads):
    depth, context, cells, num_cells = case(pixels=4000, bins=20, channels=16, dtype=torch.float32,
                                            num_cells=num_cells)

    def run(move=torch.clone):
        d, c = (move(t).requires_grad_() for t in (depth, context))
        out = bev_pool(d, c, plan_pooling(cells, num_cells=num_cells))
        return (out, *torch.autograd.grad(out.square().sum(), (d, c)))

    first = run()
    assert all(t.count_nonzero() > 0.5 * t.numel() for t in first)
    others = [run(), run(moved_by_one_number), *(on_threads(n, run) for n in (1, 2, 3))]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def moved_by_one_number(tensor):
    """A copy whose memory starts where no vector register's load would."""
    room = tensor.new_empty(tensor.numel() + 1)
    return room[1:].view(tensor.shape).copy_(tensor).detach()


def test_the_order_of_pixels_within_a_cell_does_not_matter_much():
    depth, context, cells, num_cells = case()
    order = torch.randperm(len(depth), generator=torch.Generator().manual_seed(1))
    out = bev_pool(depth, context, plan_pooling(cells, num_cells=num_cells))
    shuffled = bev_pool(depth[order], context[order],
                        plan_pooling(cells[order], num_cells=num_cells))
    assert_close(out, shuffled)


def test_half_precision_is_summed_in_float32():
    depth, context, cells, num_cells = case(dtype=torch.float32)
    plan = plan_pooling(cells, num_cells=num_cells)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = bev_pool(depth.bfloat16(), context.bfloat16(), plan)
    assert out.dtype == torch.float32
    assert_close(out, bev_pool(depth.bfloat16().float(), context.bfloat16().float(), plan))


class LargestTensor(TorchDispatchMode):
    """Remembers how large the largest tensor that any operator returned was."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out)
                 if isinstance(t, torch.Tensor) and t.layout == torch.strided]
        self.numel = max(self.numel, *sizes, 0)
        return out


def test_the_product_never_exists():
    depth, context, cells, num_cells = case(pixels=100, bins=50, channels=40, num_cells=120)
    plan = plan_pooling(cells, num_cells=num_cells)
    depth.requires_grad_()
    context.requires_grad_()
    with LargestTensor() as largest:
        bev_pool(depth, context, plan).sum().backward()
    assert 0 < largest.numel <= depth.numel() < depth.numel() * context.shape[1]


@pytest.mark.gpu
def test_gpu_equals_cpu():
    depth, context, cells, num_cells = case(dtype=torch.float32)
    results = []
    for device in ('cpu', 'cuda'):
        d, c = (t.to(device).detach().requires_grad_() for t in (depth, context))
        out = bev_pool(d, c, plan_pooling(cells.to(device), num_cells=num_cells))
        results.append([t.cpu() for t in (out, *torch.autograd.grad(out.square().sum(), (d, c)))])
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert_close(on_gpu, on_cpu)
