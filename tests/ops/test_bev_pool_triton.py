"""The Triton kernels against PyTorch: in Triton's interpreter on a CPU, compiled on a GPU."""
import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from bevfusion_enhanced.ops.bev_pool import bev_pool, plan_pooling

IN_INTERPRETER = os.environ.get('TRITON_INTERPRET') == '1'


def case(*, pixels: int, bins: int, channels: int, cells: int, outside: float,
         device: str = 'cpu'):
    generator = torch.Generator().manual_seed(0)
    cell = torch.randint(cells, (pixels, bins), generator=generator)
    cell[torch.rand(pixels, bins, generator=generator) < outside] = -1
    depth = torch.rand(pixels, bins, generator=generator)
    context = torch.randn(pixels, channels, generator=generator)
    upstream = torch.randn(cells, channels, generator=generator)
    return [t.to(device) for t in (cell.int(), depth, context, upstream)]


def pooled_with_gradients(cell, depth, context, upstream):
    depth, context = depth.clone().requires_grad_(), context.clone().requires_grad_()
    out = bev_pool(depth, context, plan_pooling(cell, num_cells=len(upstream)))
    out.backward(upstream)
    return out.detach(), depth.grad, context.grad


CASES = [dict(pixels=12, bins=5, channels=8, cells=10, outside=0.3),
         dict(pixels=30, bins=40, channels=80, cells=4, outside=0.0),  # runs of many blocks
         dict(pixels=7, bins=3, channels=5, cells=50, outside=0.9),    # channels no power of two
         dict(pixels=4, bins=3, channels=6, cells=9, outside=1.0)]     # nothing falls on the map


@pytest.mark.skipif(not IN_INTERPRETER, reason='run by the test below, in a process of its own')
@pytest.mark.parametrize('shape', CASES)
def test_in_the_interpreter(shape, monkeypatch):
    tensors = case(**shape)
    from bevfusion_enhanced.ops import bev_pool_triton
    called = []
    for name in ('weighted_sum', 'dots_at_source'):
        inner = getattr(bev_pool_triton, name)
        monkeypatch.setattr(bev_pool_triton, name, lambda *a, inner=inner, name=name, **k:
                            called.append(name) or inner(*a, **k))
    ours = pooled_with_gradients(*tensors)
    assert called == ['weighted_sum', 'dots_at_source', 'weighted_sum']
    monkeypatch.setattr(bev_pool_triton, 'usable', lambda tensor: False)
    for mine, theirs in zip(ours, pooled_with_gradients(*tensors)):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-4)  # hundreds of summands, in another order


@pytest.mark.skipif(IN_INTERPRETER, reason='this is the process that it starts')
def test_kernels_equal_pytorch_in_tritons_interpreter():
    pytest.importorskip('triton')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__],
        env=dict(os.environ, TRITON_INTERPRET='1'), capture_output=True, text=True)
    assert done.returncode == 0 and f'{len(CASES)} passed' in done.stdout, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('shape', CASES)
def test_on_a_gpu(shape):
    on_gpu = pooled_with_gradients(*case(**shape, device='cuda'))
    for ours, theirs in zip(on_gpu, pooled_with_gradients(*case(**shape))):
        assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_two_runs_on_a_gpu_are_equal_bit_for_bit():
    tensors = case(pixels=3000, bins=60, channels=80, cells=500, outside=0.2, device='cuda')
    for one, other in zip(pooled_with_gradients(*tensors), pooled_with_gradients(*tensors)):
        assert torch.equal(one, other)
