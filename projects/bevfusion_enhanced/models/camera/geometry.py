"""Where the frustum of every pixel meets the BEV map.

A frustum holds, for every cell of a camera's feature map, the pixel at its place in the augmented
image and a list of depths: points (u, v, d) with u, v in pixels and d in metres along the
camera's axis. The BEV map counts cells along LiDAR x (right), y (forward) and z (up). The order
of the arithmetic is that of the published models, rounding included, because a point that rounds
into another cell is visible in the output. Lifting after Philion and Fidler, 'Lift, Splat,
Shoot', ECCV 2020.

Shapes: B samples, N cameras, h x w feature cells, D depths; X, Y, Z cells of the BEV map.
"""
from typing import NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.calibration import Calibration
from bevfusion_enhanced.ops.precision import full_precision


class BEVGrid(NamedTuple):
    """Cells of the BEV map along x, y, z, under the names that published checkpoints use.

    Attributes:
        dx: (3) size of a cell in metres.
        bx: (3) centre of the first cell in metres.
        nx: (3) int64 number of cells.
    """

    dx: Tensor
    bx: Tensor
    nx: Tensor


def _steps(name: str, bound: Sequence[float]) -> int:
    """Number of steps in (minimum, maximum, step)."""
    if len(bound) != 3 or bound[2] <= 0 or bound[1] <= bound[0]:
        raise ConfigError(f'{name} must be (minimum, maximum, step) with a positive step, '
                          f'got {tuple(bound)}')
    steps = (bound[1] - bound[0]) / bound[2]
    if abs(steps - round(steps)) > 1e-4:
        raise ConfigError(f'{name}={tuple(bound)} is not a whole number of steps ({steps:.4f}); '
                          'change the step or the limits')
    return round(steps)


def bev_grid(xbound: Sequence[float], ybound: Sequence[float],
             zbound: Sequence[float]) -> BEVGrid:
    """The grid of three (minimum, maximum, step) in metres.

    Raises:
        ConfigError: a bound is not a whole number of steps.
    """
    bounds = dict(xbound=xbound, ybound=ybound, zbound=zbound)
    steps = [_steps(name, bound) for name, bound in bounds.items()]
    return BEVGrid(
        dx=torch.tensor([float(b[2]) for b in bounds.values()]),
        bx=torch.tensor([b[0] + b[2] / 2.0 for b in bounds.values()]),
        nx=torch.tensor(steps))


def make_frustum(image_size: Tuple[int, int], feature_size: Tuple[int, int],
                 dbound: Sequence[float]) -> Tensor:
    """The points (u, v, d) of a camera, (D, h, w, 3); corner cells lie on corner pixels."""
    _steps('dbound', dbound)
    d = torch.arange(*dbound, dtype=torch.float32)
    v = torch.linspace(0, image_size[0] - 1, feature_size[0])
    u = torch.linspace(0, image_size[1] - 1, feature_size[1])
    d, v, u = torch.meshgrid(d, v, u, indexing='ij')
    return torch.stack([u, v, d], dim=-1)


def _undo_image_augmentation(frustum: Tensor, img_aug_matrix: Tensor) -> Tuple[Tensor, Tensor]:
    """The frustum's pixels in the image before augmentation: u and v, each (B, N, h, w)."""
    undo = torch.inverse(img_aug_matrix[..., :3, :3])[..., None, None]         # (B, N, 3, 3, 1, 1)
    shift = img_aug_matrix[..., None, None]                                    # (B, N, 4, 4, 1, 1)
    u = frustum[0, 0, :, 0] - shift[..., 0, 3, :, :]                              # (B, N, 1, w)
    v = frustum[0, :, 0, 1, None] - shift[..., 1, 3, :, :]                        # (B, N, h, 1)
    return (undo[..., 0, 0, :, :] * u + undo[..., 0, 1, :, :] * v,
            undo[..., 1, 0, :, :] * u + undo[..., 1, 1, :, :] * v)


@full_precision
@torch.no_grad()
def frustum_cells(frustum: Tensor, grid: BEVGrid, calibration: Calibration) -> Tensor:
    """The BEV cell of every frustum point.

    Returns:
        (B * N * h * w, D) int32: ((b * Z + z) * X + x) * Y + y, or -1 outside the map. A
        coordinate is truncated toward zero, so the map reaches one cell below its minimum.
    """
    B, N = calibration.cam2img.shape[:2]
    D, h, w, _ = frustum.shape
    cam2lidar, aug = calibration.cam2lidar, calibration.lidar_aug_matrix
    rotation = cam2lidar[..., :3, :3].matmul(torch.inverse(calibration.cam2img[..., :3, :3]))
    rotation = aug[:, None, :3, :3].matmul(rotation)                              # (B, N, 3, 3)
    shift = aug[:, None, :3, :3].matmul(cam2lidar[..., :3, 3:]) + aug[:, None, :3, 3:]
    d = frustum[:, 0, 0, 2]                                                       # (D)
    u, v = _undo_image_augmentation(frustum, calibration.img_aug_matrix)
    ud, vd = u[..., None] * d, v[..., None] * d                                # (B, N, h, w, D)
    lowest, sizes = grid.bx - grid.dx / 2, grid.nx.tolist()

    index = torch.zeros_like(ud, dtype=torch.int32)
    index += torch.arange(B, device=ud.device, dtype=torch.int32).view(B, 1, 1, 1, 1)
    inside = torch.ones_like(ud, dtype=torch.bool)
    for axis in (2, 0, 1):  # z, x, y: from the slowest to the fastest
        row = rotation[:, :, axis, :, None, None, None]                        # (B, N, 3, 1, 1, 1)
        metres = ud * row[:, :, 0]
        metres += vd * row[:, :, 1]
        metres += d * row[:, :, 2]
        metres += shift[:, :, axis, :, None, None]
        cell = metres.sub_(lowest[axis]).div_(grid.dx[axis]).int()
        inside &= (cell >= 0) & (cell < sizes[axis])
        index.mul_(sizes[axis]).add_(cell)
    return index.masked_fill_(~inside, -1).view(B * N * h * w, D)
