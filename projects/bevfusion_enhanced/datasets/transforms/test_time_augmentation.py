"""One fixed view of a scene for test-time augmentation: mirrored, turned, or both.

Frame: LiDAR x right, y forward; degrees counter-clockwise seen from above.
"""
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from bevfusion_enhanced.datasets.transforms.bev_augmentation import advance_scene


@TRANSFORMS.register_module()
class BEVView(BaseTransform):
    """Mirror the scene, then turn it about z.

    To be placed inside `TestTimeAug`, after the truth is loaded: predictions are brought back into
    the sensor's frame (`BEVFusionTTAModel`), so boxes and masks of the truth stay there. Changed
    keys: `points` (in place), `lidar_aug_matrix`, by which the cameras follow.

    Args:
        flip_x: Mirror left and right.
        flip_y: Mirror front and back.
        rotation_deg: Degrees.
    """

    def __init__(self, *, flip_x: bool = False, flip_y: bool = False,
                 rotation_deg: float = 0.0) -> None:
        angle = np.deg2rad(rotation_deg)
        mirror = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.matrix = np.eye(4)
        self.matrix[:2, :2] = turn @ mirror

    def transform(self, results: dict) -> dict:
        """Look at the scene so; see the class."""
        advance_scene(results, self.matrix)
        return results
