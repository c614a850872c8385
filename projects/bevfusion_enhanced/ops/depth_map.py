"""Depth maps: the points of a cloud seen by every camera, one depth a pixel.

Frames: a point is in the LiDAR frame (x right, y forward, z up, metres); a pixel is (u right,
v down) with its centre at integers, and is hit by every point whose u and v truncate to it.

Shapes: B samples, N cameras, P points of the largest cloud, H x W pixels.
"""
from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bevfusion_enhanced.ops.precision import full_precision

MIN_DEPTH = 1e-5  # metres; a point nearer than this is not seen


def project_points(xyz: Tensor, *, lidar2img: Tensor,
                   img_aug_matrix: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Project points into every camera.

    Args:
        xyz: (B, P, 3) points in the frame that `lidar2img` maps from.
        lidar2img: (B, N, 4, 4) from there to pixels times depth, before image augmentation.
        img_aug_matrix: (B, N, 4, 4) pixel before to pixel after image augmentation; only its
            planar part is read.

    Returns:
        u and v in pixels after augmentation, and depth in metres, each (B, N, P); u and v mean
        nothing where the depth is not positive.
    """
    B, N = lidar2img.shape[:2]
    rotation = lidar2img[..., :3, :3].reshape(B, N * 3, 3)
    rays = rotation.bmm(xyz.transpose(1, 2)).view(B, N, 3, -1)                    # (B, N, 3, P)
    rays += lidar2img[..., :3, 3:]
    x, y, depth = rays.unbind(2)                                                  # (B, N, P)
    rays[:, :, :2] /= depth[:, :, None]
    aug = img_aug_matrix[..., None]                                            # (B, N, 4, 4, 1)
    u, v = ((x * aug[..., row, 0, :]).add_(y * aug[..., row, 1, :]).add_(aug[..., row, 3, :])
            for row in (0, 1))
    return u, v, depth


def scatter_last(values: Tensor, index: Tensor, *, size: int) -> Tensor:
    """Write `values` (E) to `index` (E) of a zero vector; of equal indices the last one wins.

    Unlike plain indexed assignment this does not depend on threads or device.
    """
    order = torch.arange(len(index), device=index.device)
    winner = torch.full((size,), -1, dtype=torch.int64, device=index.device)
    winner.scatter_reduce_(0, index, order, reduce='amax')
    out = values.new_zeros(size)
    hit = torch.nonzero(winner >= 0).squeeze(1)
    return out.index_copy_(0, hit, values.index_select(0, winner.index_select(0, hit)))


@full_precision
@torch.no_grad()
def depth_maps(points: Sequence[Tensor], *, lidar2img: Tensor, img_aug_matrix: Tensor,
               lidar_aug_matrix: Tensor, image_size: Tuple[int, int]) -> Tensor:
    """Draw every cloud into every camera's image; where points meet, the cloud's last wins.

    Args:
        points: B clouds (P_b, 3 or more) in the augmented LiDAR frame; never modified.
        lidar2img: (B, N, 4, 4) LiDAR before augmentation to pixels before augmentation.
        img_aug_matrix: (B, N, 4, 4) pixel before to pixel after augmentation.
        lidar_aug_matrix: (B, 4, 4) LiDAR before to LiDAR after augmentation.
        image_size: (H, W) in pixels.

    Returns:
        (B, N, H, W) float32, metres along the camera's axis; 0 where no point falls.
    """
    (B, N), (H, W) = lidar2img.shape[:2], image_size
    xyz = pad_sequence([cloud[:, :3].float() for cloud in points], batch_first=True,
                       padding_value=float('nan'))                                # (B, P, 3)
    undo = torch.inverse(lidar_aug_matrix[:, :3, :3])                             # (B, 3, 3)
    xyz = (xyz - lidar_aug_matrix[:, None, :3, 3]).bmm(undo.transpose(1, 2))
    u, v, depth = project_points(xyz, lidar2img=lidar2img, img_aug_matrix=img_aug_matrix)
    seen = (depth > MIN_DEPTH) & (u >= 0) & (u < W) & (v >= 0) & (v < H)          # (B, N, P)
    source = torch.nonzero(seen.flatten()).squeeze(1)                  # by camera, then by point
    camera = torch.div(source, seen.shape[2], rounding_mode='floor')
    u, v, depth = (t.reshape(-1).index_select(0, source) for t in (u, v, depth))
    index = (camera * H + v.long()) * W + u.long()
    return scatter_last(depth, index, size=B * N * H * W).view(B, N, H, W)
