"""Inputs of full size, drawn from a seed: what a nuScenes sample holds, with no dataset at hand.

Frames: LiDAR x right, y forward, z up; camera x right, y down, z forward; metres and pixels.
Shapes: N = 6 cameras, P points, M boxes.
"""
import math
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from bevfusion_enhanced.models.calibration import Calibration

FILE_SIZE = (900, 1600)  # (H, W) of nuScenes' images
IMAGE_SIZE = (256, 704)
RESIZE = 0.48
FOCAL = 1266.0  # pixels of the files
HEADINGS = (0, -55, 55, 180, 110, -110)  # degrees from forward to the right, of the six cameras
RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
VOXEL = (0.075, 0.075, 0.2)
POINTS = 260_000  # a key frame and nine sweeps
BOXES = 40
CLASSES = 10
RINGS = 32


def rig(*, cameras: int = 6, samples: int = 1, image_size: Sequence[int] = IMAGE_SIZE,
        ) -> Calibration:
    """Cameras around the vehicle, 1.5 m up, seen in images of `image_size`."""
    scale = RESIZE * image_size[1] / IMAGE_SIZE[1]
    cam2lidar = np.stack([_pose(math.radians(HEADINGS[i % 6] + 7 * (i // 6)))
                          for i in range(cameras)])
    cam2img = np.tile(np.eye(4), (cameras, 1, 1))
    cam2img[:, 0, 0] = cam2img[:, 1, 1] = FOCAL
    cam2img[:, :2, 2] = FILE_SIZE[1] / 2, FILE_SIZE[0] / 2
    aug = np.tile(np.eye(4), (cameras, 1, 1))
    aug[:, 0, 0] = aug[:, 1, 1] = scale
    aug[:, :2, 3] = ((image_size[1] - scale * FILE_SIZE[1]) / 2,
                     image_size[0] - scale * FILE_SIZE[0])
    matrices = dict(cam2img=cam2img, cam2lidar=cam2lidar,
                    lidar2img=cam2img @ np.linalg.inv(cam2lidar), img_aug_matrix=aug)
    return Calibration(
        lidar_aug_matrix=torch.eye(4).repeat(samples, 1, 1),
        **{name: torch.from_numpy(value).float().repeat(samples, 1, 1, 1)
           for name, value in matrices.items()})


def _pose(heading: float) -> np.ndarray:
    pose = np.eye(4)
    forward = np.array([math.sin(heading), math.cos(heading), 0])
    right = np.array([math.cos(heading), -math.sin(heading), 0])
    pose[:3, :3] = np.stack([right, [0, 0, -1], forward], axis=1)
    pose[:3, 3] = 0.8 * forward + [0, 0, -0.3]
    return pose


def cloud(points: int = POINTS, *, seed: int = 0) -> Tensor:
    """A scan (P, 5) of a street: rings on the ground and on walls, denser near the sensor."""
    generator = np.random.default_rng(seed)
    angle = generator.uniform(-math.pi, math.pi, points)
    elevation = np.deg2rad(generator.integers(0, RINGS, points) * (40 / (RINGS - 1)) - 30)
    wall = 8 + 30 * (0.5 + 0.5 * np.sin(3 * angle)) ** 2 + generator.normal(0, 0.1, points)
    ground = np.where(elevation < 0, 1.84 / np.maximum(np.tan(-elevation), 1e-3), np.inf)
    distance = np.minimum(wall, ground)
    xyz = np.stack([distance * np.sin(angle), distance * np.cos(angle),
                    distance * np.tan(elevation)], axis=1)
    xyz += generator.normal(0, 0.02, xyz.shape)
    rest = np.stack([generator.uniform(0, 255, points), generator.uniform(0, 0.5, points)], axis=1)
    return torch.from_numpy(np.concatenate([xyz, rest], axis=1)).float()


def boxes(count: int = BOXES, *, classes: int = CLASSES, seed: int = 1) -> Tuple[Tensor, Tensor]:
    """Boxes (M, 9), z at the bottom, and labels (M,)."""
    generator = torch.Generator().manual_seed(seed)
    place = (torch.rand(count, 2, generator=generator) - 0.5) * 100
    size = torch.rand(count, 3, generator=generator) * torch.tensor([5.0, 2.0, 2.0]) + 0.5
    yaw = (torch.rand(count, 1, generator=generator) - 0.5) * 2 * math.pi
    velocity = torch.randn(count, 2, generator=generator)
    truth = torch.cat([place, -1.8 * torch.ones(count, 1), size, yaw, velocity], dim=1)
    return truth, torch.randint(classes, (count,), generator=generator)


def camera_features(*, cameras: int = 6, channels: int = 256,
                    image_size: Sequence[int] = IMAGE_SIZE) -> Tensor:
    """Features (1, N, C, h, w) of a camera encoder of stride 8."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, cameras, channels, image_size[0] // 8, image_size[1] // 8,
                       generator=generator)


def images(*, cameras: int = 6, image_size: Sequence[int] = IMAGE_SIZE) -> Tensor:
    """Images (1, N, 3, H, W) as a data loader gives them, uint8."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (1, cameras, 3, *image_size), generator=generator,
                         dtype=torch.uint8)


def metainfo(calibration: Calibration) -> Dict[str, np.ndarray]:
    """The calibration of a batch of one as a sample carries it."""
    names = ('cam2img', 'cam2lidar', 'lidar2img', 'img_aug_matrix', 'lidar_aug_matrix')
    return {name: getattr(calibration, name)[0].numpy() for name in names}


def file_images(count: int = 6, *, seed: int = 4) -> List[np.ndarray]:
    """Images (900, 1600, 3) uint8 with about the detail, so the file size, of real ones."""
    import cv2

    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        coarse = generator.uniform(0, 255, (15, 27, 3)).astype(np.float32)
        image = cv2.resize(coarse, FILE_SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        fine = cv2.resize(generator.normal(0, 6, (450, 800, 3)).astype(np.float32),
                          FILE_SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        made.append(np.clip(image + fine, 0, 255).astype(np.uint8))
    return made
