"""Predicted boxes in nuScenes' submission form.

Predictions are in the LiDAR frame of the key frame (x, y, z of the bottom centre, dx, dy, dz, yaw,
vx, vy); a submission is in the global frame (centre, size as width, length, height, rotation as
quaternion w, x, y, z). nuScenes allows 500 boxes a sample. Metres, radians, metres a second.

Shapes: M boxes of a sample.
"""
from typing import Dict, List, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

MAX_BOXES = 500
MOVING_SPEED = 0.2
"""Above it, in m/s, an object counts as moving (MMDetection3D's rule)."""

_MOVING = {name: 'vehicle.moving'
           for name in ('car', 'truck', 'construction_vehicle', 'bus', 'trailer')}
_MOVING.update(motorcycle='cycle.with_rider', bicycle='cycle.with_rider',
               pedestrian='pedestrian.moving')
_STILL = {name: 'vehicle.parked' for name in ('car', 'truck', 'construction_vehicle', 'trailer')}
_STILL.update(bus='vehicle.stopped', motorcycle='cycle.without_rider',
              bicycle='cycle.without_rider', pedestrian='pedestrian.standing')


def attribute_name(class_name: str, speed: float) -> str:
    """The attribute a class most likely has at this speed; '' for cones and barriers."""
    return (_MOVING if speed > MOVING_SPEED else _STILL).get(class_name, '')


def submission_boxes(*, token: str, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray,
                     lidar2ego: np.ndarray, ego2global: np.ndarray, classes: Sequence[str],
                     class_range: Dict[str, float]) -> List[dict]:
    """The records of one sample: boxes in the evaluated range, the best 500 of them.

    Args:
        token: The sample's.
        boxes: (M, 9), or (M, 7) without velocity.
        scores: (M,)
        labels: (M,) index into `classes`.
        lidar2ego: (4, 4)
        ego2global: (4, 4)
        classes: Class names.
        class_range: Metres from the ego within which a class is evaluated.
    """
    boxes = boxes.astype(np.float64)
    centres = boxes[:, :3] + boxes[:, 5:6] * [0, 0, 0.5]
    velocities = np.zeros((len(boxes), 3))
    if boxes.shape[1] >= 9:
        velocities[:, :2] = boxes[:, 7:9]
    in_ego = centres @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    ranges = np.array([class_range[name] for name in classes])[labels]
    best = np.argsort(-scores, kind='stable')
    best = best[np.linalg.norm(in_ego[best, :2], axis=1) <= ranges[best]][:MAX_BOXES]
    if not len(best):
        return []

    lidar2global = ego2global @ lidar2ego
    turn = Rotation.from_matrix(lidar2global[:3, :3])
    yaws = Rotation.from_rotvec(boxes[best, 6:7] * [0, 0, 1])
    quaternions = (turn * yaws).as_quat()[:, [3, 0, 1, 2]]
    centres = in_ego[best] @ ego2global[:3, :3].T + ego2global[:3, 3]
    speeds = np.linalg.norm(velocities[best], axis=1)
    velocities = turn.apply(velocities[best])[:, :2]
    names = [classes[label] for label in labels[best]]
    return [dict(sample_token=token, translation=centre, size=size, rotation=rotation,
                 velocity=velocity, detection_name=name, detection_score=score,
                 attribute_name=attribute_name(name, speed))
            for centre, size, rotation, velocity, name, score, speed in zip(
                centres.tolist(), boxes[best][:, [4, 3, 5]].tolist(), quaternions.tolist(),
                velocities.tolist(), names, scores[best].astype(float).tolist(), speeds,
                strict=True)]
