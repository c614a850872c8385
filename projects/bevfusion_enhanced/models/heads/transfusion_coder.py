"""Boxes as a TransFusion head regresses them, and back.

A box is (x, y, z, dx, dy, dz, yaw[, vx, vy]) in the LiDAR frame: metres, z at the bottom, yaw in
radians from x towards y, velocity in m/s. Its code is (column, row, height, log dx, log dy, log dz,
sin yaw, cos yaw[, vx, vy]): column and row in cells of the BEV map, along x and y, counted from the
corner of the range; height of the box's centre in metres.
Shapes: B samples, P proposals, S = 8 or 10 elements of a code, N boxes.
"""
from typing import NamedTuple, Optional, Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from bevfusion_enhanced.errors import ConfigError

MIN_SIZE = 1e-3  # metres; annotated boxes without extent keep a finite logarithm


class BoxCode(NamedTuple):
    """Codes of P proposals as the prediction heads give them.

    Attributes:
        center: (B, 2, P) in cells, along x and y.
        height: (B, 1, P) of the centre, in metres.
        dim: (B, 3, P) logarithm of the size in metres.
        rot: (B, 2, P) sine and cosine of the yaw.
        vel: (B, 2, P) in m/s, or None.
    """

    center: Tensor
    height: Tensor
    dim: Tensor
    rot: Tensor
    vel: Optional[Tensor]

    def stack(self) -> Tensor:
        """(B, P, S), in the order of the encoded targets."""
        parts = [part for part in self if part is not None]
        return torch.cat(parts, dim=1).transpose(1, 2)


@TASK_UTILS.register_module()
class TransFusionBBoxCoder:
    """Translate between boxes and their codes (Bai et al., 'TransFusion', CVPR 2022).

    Args:
        pc_range: lower ends of x and y.
        voxel_size: along x and y.
        out_size_factor: voxels along one side of a cell.
        code_size: 10 with velocity, 8 without.
        post_center_range: lower, then upper ends of x, y and z: predictions whose bottom centre
            is outside are dropped; None keeps all.
        score_threshold: predictions that score no higher are dropped; None keeps all.
    """

    def __init__(self, *, pc_range: Sequence[float], voxel_size: Sequence[float],
                 out_size_factor: int, code_size: int = 10,
                 post_center_range: Optional[Sequence[float]] = None,
                 score_threshold: Optional[float] = None) -> None:
        if code_size not in (8, 10):
            raise ConfigError(f'code_size must be 8, or 10 with velocity, got {code_size}')
        self.pc_range = tuple(pc_range[:2])
        self.voxel_size = tuple(voxel_size[:2])
        self.out_size_factor = out_size_factor
        self.code_size = code_size
        self.post_center_range = post_center_range
        self.score_threshold = score_threshold

    @property
    def box_size(self) -> int:
        """Numbers of a box that is encoded: 9 with velocity, 7 without."""
        return self.code_size - 1

    def cells(self, xy: Tensor) -> Tensor:
        """Positions (..., 2) in metres to cells, counted from the corner of the range."""
        return self.extents(xy - xy.new_tensor(self.pc_range))

    def extents(self, xy: Tensor) -> Tensor:
        """Lengths (..., 2) in metres, along x and y, to cells."""
        return xy / self._cell_size(xy)

    def encode(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 9), or (N, 7) without velocity, to codes (N, S)."""
        center, bottom, size, yaw = boxes[:, :2], boxes[:, 2:3], boxes[:, 3:6], boxes[:, 6:7]
        middle = bottom + size[:, 2:] / 2
        code = [self.cells(center), middle, size.clamp(min=MIN_SIZE).log(), yaw.sin(), yaw.cos()]
        if self.code_size == 10:
            code.append(boxes[:, 7:9])
        return torch.cat(code, dim=1)

    def decode(self, code: BoxCode) -> Tensor:
        """Codes of P proposals to boxes (B, P, 9), or (B, P, 7) without velocity."""
        center = code.center.transpose(1, 2)                                           # (B, P, 2)
        xy = center * self._cell_size(center) + center.new_tensor(self.pc_range)
        size = code.dim.transpose(1, 2).exp()                                          # (B, P, 3)
        bottom = code.height.transpose(1, 2) - size[..., 2:] / 2
        sin, cos = code.rot.unbind(1)                                                  # (B, P)
        parts = [xy, bottom, size, torch.atan2(sin, cos)[..., None]]
        if code.vel is not None:
            parts.append(code.vel.transpose(1, 2))
        return torch.cat(parts, dim=-1)

    def wanted(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Which of the boxes (..., 7 or 9) with scores (...) are in range and score enough."""
        keep = torch.ones_like(scores, dtype=torch.bool)
        if self.score_threshold is not None:
            keep &= scores > self.score_threshold
        if self.post_center_range is not None:
            lower, upper = boxes.new_tensor(self.post_center_range).split(3)
            keep &= ((boxes[..., :3] >= lower) & (boxes[..., :3] <= upper)).all(-1)
        return keep

    def _cell_size(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.voxel_size) * self.out_size_factor
