"""Augmentation of the 3D scene: similarities of the LiDAR frame, for points and boxes alike.

Frame: LiDAR x right, y forward, z up; metres and radians, yaw counter-clockwise from +x. Boxes are
(x, y, z of the bottom centre, dx, dy, dz, yaw, vx, vy). `lidar_aug_matrix` (4, 4) maps the sensor's
frame to the augmented one; every augmentation multiplies onto it from the left, and whatever is
read afterwards (map masks, projections) follows the matrix.
"""
from typing import Sequence, Union

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from bevfusion_enhanced.datasets.point_columns import move_points
from bevfusion_enhanced.errors import ConfigError


def advance_scene(results: dict, matrix: np.ndarray) -> None:
    """Move the points by `matrix` (4, 4), in place, and multiply it onto `lidar_aug_matrix`."""
    if 'points' in results:
        points = results['points'].tensor.numpy()
        move_points(points, matrix, out=points)
    before = results.get('lidar_aug_matrix', np.eye(4))
    results['lidar_aug_matrix'] = (matrix @ before).astype(np.float32)


@TRANSFORMS.register_module()
class BEVFusionGlobalRotScaleTrans(BaseTransform):
    """Rotate the scene about z, then shift it, then scale it, all by random amounts.

    Changed keys: `points`, `gt_bboxes_3d` (where present), `lidar_aug_matrix`.

    Args:
        rot_range: Range of the rotation, radians; one number a means [-a, a].
        scale_ratio_range: Range of the scale.
        translation_std: Standard deviation of the shift, metres; one number, or one an axis.

    Raises:
        ConfigError: A range that is none, or a negative deviation.
    """

    def __init__(self, *, rot_range: Union[float, Sequence[float]],
                 scale_ratio_range: Sequence[float],
                 translation_std: Union[float, Sequence[float]] = 0.0) -> None:
        if isinstance(rot_range, (int, float)):
            rot_range = (-abs(rot_range), abs(rot_range))
        for name, limits in (('rot_range', rot_range), ('scale_ratio_range', scale_ratio_range)):
            if len(limits) != 2 or limits[0] > limits[1]:
                raise ConfigError(f'{name} is {list(limits)}; expected [low, high]')
        if np.min(translation_std) < 0 or scale_ratio_range[0] <= 0:
            raise ConfigError(f'translation_std {translation_std} must not be negative and '
                              f'scale_ratio_range {list(scale_ratio_range)} must be positive')
        self.rot_range = tuple(rot_range)
        self.scale_ratio_range = tuple(scale_ratio_range)
        self.translation_std = np.broadcast_to(np.asarray(translation_std, np.float64), 3)

    def transform(self, results: dict) -> dict:
        """Augment the scene; see the class."""
        angle = np.random.uniform(*self.rot_range)
        scale = np.random.uniform(*self.scale_ratio_range)
        shift = np.random.normal(scale=self.translation_std)

        matrix = np.eye(4)
        matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix[:3, 3] = shift
        matrix[:3] *= scale
        advance_scene(results, matrix)
        if 'gt_bboxes_3d' in results:
            boxes = results['gt_bboxes_3d'].clone()
            if len(boxes):
                boxes.rotate(angle)
            boxes.translate(shift.astype(np.float32))
            boxes.scale(scale)
            results['gt_bboxes_3d'] = boxes
        return results


@TRANSFORMS.register_module()
class BEVFusionRandomFlip3D(BaseTransform):
    """Mirror the scene front to back (y) and left to right (x), each for half of the samples.

    Changed keys: `points`, `gt_bboxes_3d` (where present), `lidar_aug_matrix`.
    """

    def transform(self, results: dict) -> dict:
        """Augment the scene; see the class."""
        mirror_y, mirror_x = np.random.rand(2) < 0.5
        advance_scene(results, np.diag([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0,
                                        1.0, 1.0]))
        if 'gt_bboxes_3d' in results:
            boxes = results['gt_bboxes_3d'].clone()
            if mirror_y:
                boxes.flip('horizontal')
            if mirror_x:
                boxes.flip('vertical')
            results['gt_bboxes_3d'] = boxes
        return results


@TRANSFORMS.register_module()
class BEVFusionPointShuffle(BaseTransform):
    """Put the points in a random order: MMDetection3D's `PointShuffle`, in less than half the time.

    The draws are the same, so for a seed the order is, too. Point-wise masks are not carried along.

    Changed keys: `points`.
    """

    def transform(self, results: dict) -> dict:
        """Shuffle the points; see the class."""
        points = results['points']
        order = torch.randperm(len(points))
        # rows taken by NumPy: PyTorch's indexing copies value by value; 'clip' spares it a check
        shuffled = points.tensor.numpy().take(order.numpy(), axis=0, mode='clip')
        return {**results, 'points': points.new_point(torch.from_numpy(shuffled))}
