import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bevfusion_enhanced.ops.voxelize import grid_shape, voxelize

RANGE, SIZE = [-4., -4., -2., 4., 4., 2.], [1., 0.5, 1.]


def run(clouds, *, max_num_points=3, max_voxels=1000):
    return voxelize(clouds, point_cloud_range=RANGE, voxel_size=SIZE,
                    max_num_points=max_num_points, max_voxels=max_voxels)


def slow_voxelize(cloud, *, max_num_points, max_voxels):
    """One point at a time: {voxel: kept points}, in the order of first points."""
    voxels = {}
    low, size = np.float32(RANGE[:3]), np.float32(SIZE)
    for point in cloud.numpy():
        cell = np.floor((point[:3] - low) / size)
        if not (np.isfinite(cell).all() and (cell >= 0).all() and (cell < grid()).all()):
            continue
        key = tuple(int(c) for c in cell)
        if key not in voxels and len(voxels) >= max_voxels:
            continue
        kept = voxels.setdefault(key, [])
        if len(kept) < max_num_points:
            kept.append(point)
    return voxels


def grid():
    return np.array(grid_shape(RANGE, SIZE))


def random_cloud(seed, count=3000):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) * 2.5


def test_grid_counts_along_x_y_z():
    assert grid_shape(RANGE, SIZE) == (8, 16, 4)
    assert grid_shape([-54., -54., -5., 54., 54., 3.], [0.075, 0.075, 0.2]) == (1440, 1440, 40)


@pytest.mark.parametrize('max_num_points', [1, 3, 1000])
@pytest.mark.parametrize('max_voxels', [1, 50, 1000])
def test_equals_a_loop_over_points(max_num_points, max_voxels):
    limits = dict(max_num_points=max_num_points, max_voxels=max_voxels)
    clouds = [random_cloud(0), random_cloud(1, count=900), torch.zeros(0, 5), random_cloud(2)]
    voxels = run(clouds, **limits)
    coords, features, counts = [], [], []
    for b, cloud in enumerate(clouds):
        for cell, kept in slow_voxelize(cloud, **limits).items():
            coords.append([b, *cell])
            features.append(np.mean(kept, axis=0))
            counts.append(len(kept))
    assert torch.equal(voxels.coords, torch.tensor(coords, dtype=torch.int32))
    assert torch.equal(voxels.counts, torch.tensor(counts))
    assert_close(voxels.features, torch.from_numpy(np.stack(features)))


def test_a_point_on_the_lower_limit_is_inside_and_on_the_upper_is_not():
    voxels = run([torch.tensor([RANGE[:3], RANGE[3:], [4.0, 0, 0], [3.999, 0, 0]])])
    assert voxels.coords[:, 1:].tolist() == [[0, 0, 0], [7, 8, 2]]


def test_points_that_are_not_numbers_are_dropped():
    cloud = random_cloud(3)
    broken = cloud.clone()
    broken[::2, 1] = float('nan')
    broken[1::4, 2] = float('inf')
    keep = torch.isfinite(broken).all(1)
    for got, expected in zip(run([broken]), run([cloud[keep]]), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize('clouds', [[torch.zeros(0, 5)], [torch.zeros(0, 5)] * 2,
                                    [torch.full((3, 5), 100.)]])
def test_no_points_give_no_voxels(clouds):
    voxels = run(clouds)
    assert voxels.features.shape == (0, 5)
    assert voxels.coords.shape == (0, 4) and voxels.coords.dtype == torch.int32
    assert voxels.counts.shape == (0,)


def test_batch_equals_its_items():
    clouds = [random_cloud(4), random_cloud(5)]
    both = run(clouds, max_voxels=60)
    for b, cloud in enumerate(clouds):
        alone = run([cloud], max_voxels=60)
        mine = both.coords[:, 0] == b
        assert torch.equal(both.coords[mine, 1:], alone.coords[:, 1:])
        assert torch.equal(both.features[mine], alone.features)


def test_repeatable_on_any_threads_contiguous_and_input_untouched(on_threads):
    cloud = random_cloud(6, count=40_000)
    kept = cloud.clone()
    first = run([cloud], max_num_points=10)
    for threads in (1, 1, 2, 3):
        again = on_threads(threads, lambda: run([cloud], max_num_points=10))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.coords.is_contiguous()
    assert torch.equal(cloud, kept)
