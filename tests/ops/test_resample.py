"""Bilinear sampling of maps as sums of cells, against PyTorch's."""
import pytest
import torch
from torch.nn import functional as F

from bevfusion_enhanced.ops.resample import plan_sampling, sample_bilinearly


@pytest.mark.parametrize('batch, size, places', [
    (1, (5, 7), (4, 9)), (3, (1, 6), (8, 2)), (2, (4, 4), (1, 1)), (0, (3, 3), (2, 2))])
def test_it_is_grid_sample_with_its_gradient(batch, size, places):
    torch.manual_seed(0)
    grid = torch.rand(*places, 2) * 3 - 1.5  # a third lies outside
    x = torch.randn(batch, 4, *size, requires_grad=True)
    ours = sample_bilinearly(x, plan_sampling(grid, batch=batch, size=size))
    theirs = F.grid_sample(x, grid.expand(batch, -1, -1, -1), mode='bilinear',
                           align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    towards = torch.randn_like(theirs)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, towards, retain_graph=True)[0]
                                 for out in (ours, theirs)), rtol=1e-5, atol=1e-6)


def test_positions_on_edges_and_far_outside():
    edge = torch.tensor([-1., -0.75, 0., 0.75, 1., 1.25, 1e4, -1e4])
    grid = torch.stack(torch.meshgrid(edge, edge, indexing='ij'), dim=-1)
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        sample_bilinearly(x, plan_sampling(grid, batch=1, size=(4, 4))),
        F.grid_sample(x, grid[None], mode='bilinear', align_corners=False), rtol=1e-5, atol=1e-6)
