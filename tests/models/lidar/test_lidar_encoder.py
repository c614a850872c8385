import pytest
import torch

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.lidar import LidarEncoder, Voxelization

RANGE = [-8., -8., -4., 8., 8., 4.]


def build(**voxelize):
    torch.manual_seed(0)
    return LidarEncoder(
        voxelize={**dict(point_cloud_range=RANGE, voxel_size=[0.5, 0.5, 0.2], max_num_points=4,
                         max_voxels=[50, 2000]), **voxelize},
        backbone=dict(type='BEVFusionSparseEncoder', in_channels=5, sparse_shape=[32, 32, 41],
                      base_channels=4, output_channels=6,
                      encoder_channels=((4, 4, 6), (6, 6, 6), (6, 6, 8), (8, 8)))).eval()


def clouds(*counts):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 5, generator=generator) * 4 for n in counts]


def test_limits_of_training_and_of_testing():
    layer = Voxelization(point_cloud_range=RANGE, voxel_size=[1., 1., 1.], max_num_points=2,
                         max_voxels=[10, 20])
    assert layer.grid_shape == (16, 16, 8)
    cloud = clouds(500)
    assert len(layer.train()(cloud).coords) == 10
    assert len(layer.eval()(cloud).coords) == 20
    assert (layer(cloud).counts <= 2).all()


def test_one_limit_for_both():
    layer = Voxelization(point_cloud_range=RANGE, voxel_size=[1., 1., 1.], max_num_points=2,
                         max_voxels=15)
    assert len(layer.train()(clouds(500)).coords) == len(layer.eval()(clouds(500)).coords) == 15


@torch.no_grad()
def test_the_map_runs_along_x_then_y():
    """Points at large x and small y come out at large dim 2 and small dim 3."""
    cloud = torch.zeros(200, 5)
    cloud[:, 0], cloud[:, 1] = 6.0, -6.0
    cloud[:, :3] += 0.4 * torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    bev = build()([cloud])[0].abs().sum(0)                                       # (X, Y)
    assert bev.shape == (4, 4)
    assert bev[3, 0] == bev.max() > 0
    assert not bev[:2].any() and not bev[:, 2:].any()


@torch.no_grad()
def test_half_precision_points_and_empty_clouds():
    encoder = build()
    first, second = clouds(300, 0)
    out = encoder([first.double(), second.double()])
    assert out.shape == (2, 12, 4, 4) and not out[1].any()
    assert torch.equal(out[0], encoder([first])[0])
    assert not encoder([second, second]).any()


def test_no_parameters_but_the_backbones():
    assert all(key.startswith('backbone.') for key in build().state_dict())


def test_points_of_other_features():
    with pytest.raises(DataError, match=r'of 5 features.*got \[4\].*use_dim'):
        build()([torch.zeros(3, 4)])


@pytest.mark.parametrize('voxelize, message', [
    (dict(voxel_size=[0.25, 0.5, 0.2]), 'sparse_shape'),
    (dict(voxel_size=[0.5, 0.5]), 'voxel_size'),
    (dict(voxel_size=[0.5, 0.5, 0.]), 'voxel_size'),
])
def test_bad_arguments(voxelize, message):
    with pytest.raises(ConfigError, match=message):
        build(**voxelize)
