"""The LiDAR branch: clouds to a BEV map.

Shapes: B samples, P points, F features a point, C channels, X and Y cells of the BEV map.
"""
from typing import Dict, Sequence

from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.lidar.voxelization import Voxelization


class LidarEncoder(BaseModule):
    """Voxelize, and encode the voxels.

    Args:
        voxelize: arguments of `Voxelization`.
        backbone: config of the sparse encoder.
    """

    def __init__(self, *, voxelize: Dict, backbone: Dict) -> None:
        super().__init__()
        self.voxelize = Voxelization(**voxelize)
        self.backbone = MODELS.build(backbone)
        grid, shape = self.voxelize.grid_shape, list(self.backbone.sparse_shape)
        if any(n > limit for n, limit in zip(grid, shape, strict=True)):
            raise ConfigError(f'encoders.lidar: the range holds {list(grid)} voxels, but the '
                              f'backbone\'s sparse_shape is {shape}: make it at least as large '
                              '(along z, one more)')

    def forward(self, points: Sequence[Tensor]) -> Tensor:
        """Encode B clouds (P, F) in the LiDAR frame, metres: (B, C, X, Y).

        Raises:
            DataError: the points do not have the backbone's number of features.
        """
        features = sorted({cloud.shape[1] for cloud in points})
        if features != [self.backbone.in_channels]:
            raise DataError(f'the LiDAR encoder expects points of {self.backbone.in_channels} '
                            f'features (backbone in_channels), got {features}: set use_dim where '
                            'the pipeline loads points')
        voxels = self.voxelize(points)
        return self.backbone(voxels.features, voxels.coords, len(points))
