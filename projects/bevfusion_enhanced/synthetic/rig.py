"""The ego vehicle's sensors: where they sit, what they see, when they fire.

Frames: ego x forward, y left, z up, origin on the ground under the rear axle; LIDAR_TOP x right,
y forward, z up; camera x right, y down, z forward. `a2b` maps a point of frame a into frame b, as a
(4, 4) matrix on column vectors. Lengths in metres, offsets in seconds, intrinsics in pixels, where
pixel (i, j) covers [i, i + 1) x [j, j + 1), so that scaling an image scales its intrinsics.
"""
from dataclasses import dataclass, replace
from typing import Optional, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

IMAGE_SIZE: Tuple[int, int] = (1600, 900)
"""(width, height) in pixels of a nuScenes image."""

LIDAR = 'LIDAR_TOP'

CAMERAS: Tuple[str, ...] = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK',
                            'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')
"""Camera channels in the order of mmdetection3d's nuScenes configs."""


@dataclass(frozen=True)
class Sensor:
    """The nominal calibration of one sensor.

    Attributes:
        name: Channel name.
        translation: (3,) position in the ego frame.
        rotation: (4,) unit quaternion w, x, y, z, sensor to ego.
        intrinsic: (3, 3) pinhole matrix of a camera, None for a LiDAR.
        width: Image width in pixels; 0 for a LiDAR.
        height: Image height in pixels; 0 for a LiDAR.
        time_offset: Exposure time minus the time of the LiDAR key frame.
    """
    name: str
    translation: np.ndarray
    rotation: np.ndarray
    intrinsic: Optional[np.ndarray]
    width: int
    height: int
    time_offset: float

    @property
    def modality(self) -> str:
        """'camera' or 'lidar', as in nuScenes' sensor table."""
        return 'lidar' if self.intrinsic is None else 'camera'

    @property
    def sensor2ego(self) -> np.ndarray:
        """(4, 4) float64 rigid transform."""
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_quat(np.roll(self.rotation, -1)).as_matrix()
        matrix[:3, 3] = self.translation
        return matrix


def nominal() -> Tuple[Sensor, ...]:
    """The six cameras in the order of `CAMERAS`, then the LiDAR, at full image size."""
    cameras = (
        _camera('CAM_FRONT', (1.7008, 0.0159, 1.5110), (0.4998, -0.5030, 0.4998, -0.4974),
                1266.42, (816.27, 491.51), -35.5),
        _camera('CAM_FRONT_RIGHT', (1.5508, -0.4934, 1.4957), (0.2060, -0.2027, 0.6825, -0.6714),
                1260.85, (807.97, 495.33), -27.6),
        _camera('CAM_FRONT_LEFT', (1.5239, 0.4946, 1.5093), (0.6757, -0.6736, 0.2121, -0.2112),
                1272.60, (826.62, 479.75), -43.1),
        _camera('CAM_BACK', (0.0283, 0.0035, 1.5791), (0.5038, -0.4974, -0.4942, 0.5046),
                809.22, (829.22, 481.78), -10.4),
        _camera('CAM_BACK_LEFT', (1.0357, 0.4848, 1.5910), (0.6924, -0.7032, -0.1165, 0.1120),
                1256.74, (792.11, 492.78), -0.5),
        _camera('CAM_BACK_RIGHT', (1.0149, -0.4806, 1.5624), (0.1228, -0.1324, -0.7004, 0.6905),
                1259.51, (807.25, 501.20), -20.1),
    )
    lidar = Sensor(name=LIDAR, translation=np.array([0.9437, 0.0, 1.8402]),
                   rotation=_unit((0.7078, -0.0065, 0.0107, -0.7063)), intrinsic=None,
                   width=0, height=0, time_offset=0.0)
    return cameras + (lidar,)


def scaled(image_scale: float) -> Tuple[Sensor, ...]:
    """The nominal rig with smaller (or larger) images.

    Each axis of an intrinsic matrix is scaled by the ratio of the rounded size to the full one, so
    that matrix and image agree to the pixel.

    Raises:
        ValueError: If `image_scale` is not positive.
    """
    if not image_scale > 0:
        raise ValueError(f'image_scale must be positive, got {image_scale}')
    width, height = (max(1, round(size * image_scale)) for size in IMAGE_SIZE)
    scale = np.diag([width / IMAGE_SIZE[0], height / IMAGE_SIZE[1], 1.0])
    return tuple(
        sensor if sensor.intrinsic is None else
        replace(sensor, intrinsic=scale @ sensor.intrinsic, width=width, height=height)
        for sensor in nominal())


def _camera(name: str, translation: Tuple[float, float, float],
            rotation: Tuple[float, float, float, float], focal: float,
            centre: Tuple[float, float], offset_ms: float) -> Sensor:
    intrinsic = np.array([[focal, 0.0, centre[0]], [0.0, focal, centre[1]], [0.0, 0.0, 1.0]])
    return Sensor(name=name, translation=np.array(translation), rotation=_unit(rotation),
                  intrinsic=intrinsic, width=IMAGE_SIZE[0], height=IMAGE_SIZE[1],
                  time_offset=offset_ms * 1e-3)


def _unit(quaternion: Tuple[float, float, float, float]) -> np.ndarray:
    return np.array(quaternion) / np.linalg.norm(quaternion)
