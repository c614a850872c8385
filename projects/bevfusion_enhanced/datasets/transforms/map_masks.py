"""The map task's ground truth in a pipeline: masks that follow the augmented LiDAR frame."""
from typing import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from bevfusion_enhanced.datasets.map_masks import MapMasks, bev_pose, require_maps
from bevfusion_enhanced.errors import DataError


@TRANSFORMS.register_module()
class LoadBEVMapMasks(BaseTransform):
    """Draw the map around the vehicle; to be placed after the augmentations of the scene.

    Required keys: `location`, `ego2global`, `lidar_points`, `lidar_aug_matrix`, `token`. Added key:
    `gt_bev_masks` (C, X, Y) uint8, see `datasets/map_masks.py`, and `map_grid`, which says what
    they are masks of: classes, xbound, ybound and raster.

    Args:
        data_root: The dataset root, whose maps/expansion/ is read.
        classes: Map classes, the order of C.
        xbound: (first, last, step) along LiDAR x, metres.
        ybound: The same along LiDAR y.
        raster: 'devkit' (comparable with published scores) or 'cell_center'.

    Raises:
        ConfigError: An unknown class, raster or bound.
        DataError: There are no maps, or no map of this sample's location.
    """

    def __init__(self, *, data_root: str, classes: Sequence[str], xbound: Sequence[float],
                 ybound: Sequence[float], raster: str = 'devkit') -> None:
        self.masks = MapMasks(data_root=data_root, classes=classes, xbound=xbound, ybound=ybound,
                              raster=raster)
        self.grid = dict(classes=list(classes), xbound=list(xbound), ybound=list(ybound),
                         raster=raster)
        require_maps(data_root)

    def transform(self, results: dict) -> dict:
        """Draw the masks; see the class."""
        if not results.get('location'):
            raise DataError(f'sample {results["token"]} has no map location; make its info file '
                            'again with tools/create_data.py')
        lidar2global = (np.asarray(results['ego2global'], np.float64)
                        @ np.asarray(results['lidar_points']['lidar2ego'], np.float64))
        results['gt_bev_masks'] = self.masks.rasterise(
            location=results['location'],
            bev2global=bev_pose(lidar2global, results['lidar_aug_matrix']))
        results['map_grid'] = self.grid
        return results
