"""Hard voxelization: points of a cloud gathered into voxels, both limited in number.

Semantics, as in VoxelNet (Zhou and Tuzel, CVPR 2018): points outside the range are dropped; a
voxel keeps the first points of the cloud that fall into it; and of all voxels those whose first
point comes earliest in the cloud are kept. The result does not depend on threads or device.

Voxel coordinates count along LiDAR x, y, z from the range's lower corner.

Shapes: B clouds, P points of all clouds, F features a point, V voxels of the batch.
"""
from typing import List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor


class Voxels(NamedTuple):
    """The voxels of a batch, in the order in which their first points come.

    Attributes:
        features: (V, F) mean of each voxel's kept points.
        coords: (V, 4) int32, contiguous: index of the cloud, then x, y, z of the voxel.
        counts: (V) int64, kept points of each voxel.
    """

    features: Tensor
    coords: Tensor
    counts: Tensor


def grid_shape(point_cloud_range: Sequence[float],
               voxel_size: Sequence[float]) -> Tuple[int, int, int]:
    """Voxels along x, y and z of a range (x, y, z minimum, then maximum), in metres."""
    low, high = point_cloud_range[:3], point_cloud_range[3:]
    return tuple(round((b - a) / step) for a, b, step in zip(low, high, voxel_size, strict=True))


def _voxel_keys(xyz: Tensor, batch: Tensor, point_cloud_range: Sequence[float],
                voxel_size: Sequence[float]) -> Tuple[Tensor, Tensor]:
    """Number of the voxel of each point (P), and which points lie inside the range (P)."""
    shape = grid_shape(point_cloud_range, voxel_size)
    key = batch
    inside = torch.ones_like(batch, dtype=torch.bool)
    for axis in range(3):
        cell = (xyz[:, axis] - point_cloud_range[axis]).div_(voxel_size[axis]).floor_()
        inside &= (cell >= 0) & (cell < shape[axis])  # false for a coordinate that is not a number
        key = key * shape[axis] + cell.long()
    return key, inside


def _unravel(key: Tensor, shape: Tuple[int, int, int]) -> Tensor:
    """The (V, 4) int32 coordinates (cloud, x, y, z) of voxel numbers (V)."""
    columns: List[Tensor] = []
    for size in reversed(shape):
        columns.append(key % size)
        key = torch.div(key, size, rounding_mode='floor')
    return torch.stack([key, *reversed(columns)], dim=1).int().contiguous()


def _first_come(first: Tensor, batch: Tensor, num_clouds: int, max_voxels: int) -> Tensor:
    """Order voxels by their first point, and keep `max_voxels` of each cloud.

    Args:
        first: (V) index of each voxel's first point; indices of a later cloud are larger.
        batch: (V) the voxel's cloud.
        num_clouds: B.
        max_voxels: voxels kept of each cloud.

    Returns:
        Indices of the kept voxels, in order.
    """
    order = torch.argsort(first)
    sizes = torch.bincount(batch, minlength=num_clouds)
    if int(sizes.max()) <= max_voxels:
        return order
    starts = (sizes.cumsum(0) - sizes).index_select(0, batch.index_select(0, order))
    rank = torch.arange(len(order), device=order.device) - starts                 # in its cloud
    return order[rank < max_voxels]


@torch.no_grad()
def voxelize(points: Sequence[Tensor], *, point_cloud_range: Sequence[float],
             voxel_size: Sequence[float], max_num_points: int, max_voxels: int) -> Voxels:
    """Gather the points of B clouds into voxels.

    Args:
        points: B clouds (P_b, F) of float32, x, y, z in metres first; any may be empty.
        point_cloud_range: x, y, z minimum, then maximum, in metres.
        voxel_size: x, y, z in metres.
        max_num_points: points kept in a voxel.
        max_voxels: voxels kept of a cloud.
    """
    cloud = torch.cat(list(points))                                               # (P, F)
    sizes = torch.tensor([len(p) for p in points], device=cloud.device)
    batch = torch.repeat_interleave(torch.arange(len(points), device=cloud.device), sizes)
    key, inside = _voxel_keys(cloud, batch, point_cloud_range, voxel_size)
    source = torch.nonzero(inside).squeeze(1)
    key, order = torch.sort(key.index_select(0, source), stable=True)  # runs of one voxel
    source = source.index_select(0, order)                             # in each in cloud order
    voxel, counts = torch.unique_consecutive(key, return_counts=True)             # (V), (V)
    starts = counts.cumsum(0) - counts
    first = source.index_select(0, starts)
    kept = _first_come(first, batch.index_select(0, first), len(points), max_voxels)
    counts = counts.index_select(0, kept).clamp_(max=max_num_points)
    features = _run_means(cloud, source, starts.index_select(0, kept), counts)
    coords = _unravel(voxel.index_select(0, kept), grid_shape(point_cloud_range, voxel_size))
    return Voxels(features=features, coords=coords, counts=counts)


def _run_means(cloud: Tensor, source: Tensor, starts: Tensor, counts: Tensor) -> Tensor:
    """Mean of cloud[source[s : s + n]] for each start s and count n (V): (V, F)."""
    shift = starts - (counts.cumsum(0) - counts)  # from a place among the kept to one in `source`
    position = torch.repeat_interleave(shift, counts)
    position += torch.arange(len(position), device=cloud.device)
    points = cloud.index_select(0, source.index_select(0, position))              # (kept, F)
    return torch.segment_reduce(points, 'mean', lengths=counts, axis=0, unsafe=True)  # (V, F)
