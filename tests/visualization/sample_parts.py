"""What the sample of these tests is made of: its classes, cameras and boxes."""
import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

CLASSES = ('car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle',
           'bicycle', 'pedestrian', 'traffic_cone')
MAP_CLASSES = ('drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider')
CHANNELS = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT',
            'CAM_BACK_RIGHT')
YAWS = (0., -55., 55., 180., 110., -110.)
WIDTH, HEIGHT, FOCAL = 160, 90, 80.


def pinhole(yaw_degrees: float) -> np.ndarray:
    """lidar2img (4, 4) of a camera at the LiDAR that looks forward, turned left."""
    yaw = np.deg2rad(yaw_degrees)
    lidar2cam = np.eye(4)
    lidar2cam[0, :2] = np.cos(yaw), np.sin(yaw)          # right
    lidar2cam[1, :3] = 0., 0., -1.                       # down
    lidar2cam[2, :3] = -np.sin(yaw), np.cos(yaw), 0.     # forward
    cam2img = np.diag([FOCAL, FOCAL, 1., 1.])
    cam2img[:2, 2] = WIDTH / 2, HEIGHT / 2
    return cam2img @ lidar2cam


def lidar_boxes(*rows: tuple) -> LiDARInstance3DBoxes:
    """Boxes from rows x, y, z of the bottom, length, width, height, yaw."""
    return LiDARInstance3DBoxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 7), box_dim=7)
