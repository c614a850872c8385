"""Voxelization of LiDAR clouds, with separate limits for training and testing."""
from typing import List, Sequence, Tuple, Union

from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.ops.voxelize import Voxels, grid_shape, voxelize


class Voxelization(nn.Module):
    """Gather points into voxels and average them.

    Args:
        point_cloud_range: x, y, z minimum, then maximum, in metres, in the LiDAR frame.
        voxel_size: x, y, z in metres.
        max_num_points: points kept in a voxel, the first of the cloud.
        max_voxels: voxels kept of a cloud, the first to be hit: one number, or one for training
            and one for testing.
    """

    def __init__(self, *, point_cloud_range: Sequence[float], voxel_size: Sequence[float],
                 max_num_points: int, max_voxels: Union[int, Sequence[int]]) -> None:
        super().__init__()
        if len(point_cloud_range) != 6 or len(voxel_size) != 3 or min(voxel_size) <= 0:
            raise ConfigError('voxelize needs a point_cloud_range of 6 numbers and a voxel_size of '
                              f'3 positive ones, got {point_cloud_range} and {voxel_size}')
        self.point_cloud_range = [float(v) for v in point_cloud_range]
        self.voxel_size = [float(v) for v in voxel_size]
        self.max_num_points = max_num_points
        limits = [max_voxels] * 2 if isinstance(max_voxels, int) else list(max_voxels)
        self.max_voxels_train, self.max_voxels_test = limits

    @property
    def grid_shape(self) -> Tuple[int, int, int]:
        """Voxels along x, y and z."""
        return grid_shape(self.point_cloud_range, self.voxel_size)

    def forward(self, points: Sequence[Tensor]) -> Voxels:
        """Voxelize B clouds (P, F); the limit of voxels depends on training or testing."""
        clouds: List[Tensor] = [cloud.float() for cloud in points]
        return voxelize(
            clouds, point_cloud_range=self.point_cloud_range, voxel_size=self.voxel_size,
            max_num_points=self.max_num_points,
            max_voxels=self.max_voxels_train if self.training else self.max_voxels_test)
