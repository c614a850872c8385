"""A small rig of cameras, for tests that need a calibration but no data."""
import math
from typing import Callable

import pytest
import torch

from bevfusion_enhanced.models.calibration import Calibration


def make_rig(*, batch: int = 1, cameras: int = 2, image_size: tuple = (64, 176)) -> Calibration:
    """Level cameras on the LiDAR's place, turned evenly, the first looking along LiDAR y."""
    height, width = image_size
    cam2img = torch.eye(4)
    cam2img[0, 0] = cam2img[1, 1] = width * 0.8
    cam2img[:2, 2] = torch.tensor([width / 2, height / 2])
    forward = torch.tensor([[1., 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    poses = []
    for index in range(cameras):
        angle = 2 * math.pi * index / cameras
        turn = torch.eye(4)
        turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)],
                                     [math.sin(angle), math.cos(angle)]])
        poses.append(turn @ forward)
    cam2lidar = torch.stack(poses).expand(batch, cameras, 4, 4)
    cam2img = cam2img.expand(batch, cameras, 4, 4)
    return Calibration(
        cam2img=cam2img, cam2lidar=cam2lidar, lidar2img=cam2img @ torch.inverse(cam2lidar),
        img_aug_matrix=torch.eye(4).expand(batch, cameras, 4, 4),
        lidar_aug_matrix=torch.eye(4).expand(batch, 4, 4))


@pytest.fixture(scope='session')
def rig() -> Callable[..., Calibration]:
    return make_rig
