"""Which points of a scan lie in which boxes.

Frame: that of the points, z up; metres, yaw in radians counter-clockwise from +x. Boxes start with
(x, y, z of the bottom centre, dx, dy, dz, yaw).

Shapes: P points, T boxes, K pairs of a point and a box that holds it.
"""
from typing import Tuple

import torch
from torch import Tensor

from bevfusion_enhanced.ops.rotated_boxes import points_in_boxes_all

_CELL = 1.0  # metres: small against the distances between boxes


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tuple[Tensor, Tensor]:
    """All pairs of a point and a box that holds it; bottom and top of a box belong to it.

    Args:
        points: (P, 3 or more).
        boxes: (T, 7 or more).

    Returns:
        Index of the point and index of the box of each pair, (K,) int64 each, in the order of
        points.
    """
    near = points_near_boxes(points, boxes)
    point, box = points_in_boxes_all(points[near, :3], boxes[:, :7]).nonzero(as_tuple=True)
    return near[point], box


def points_near_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Indices of the points over cells of the ground that some box may touch.

    It looks each point up in a grid instead of comparing it with each box.
    """
    if not len(boxes) or not len(points):
        return torch.zeros(0, dtype=torch.long)
    centres, reach = boxes[:, :2], boxes[:, 3:5].norm(dim=1) / 2 + _CELL
    low = (centres - reach[:, None]).amin(dim=0)
    extent = (centres + reach[:, None]).amax(dim=0) - low
    columns, rows = (extent / _CELL).long().add(1).tolist()
    x = low[0] + _CELL * (torch.arange(columns) + 0.5)
    y = low[1] + _CELL * (torch.arange(rows) + 0.5)
    near_x = (x - centres[:, :1]).abs() <= reach[:, None]                     # (T, columns)
    near_y = (y - centres[:, 1:2]).abs() <= reach[:, None]                    # (T, rows)
    touched = (near_x.float().T @ near_y.float()) > 0                         # (columns, rows)

    cells = ((points[:, :2] - low) / _CELL).floor()
    cells = torch.where(cells.isfinite(), cells, torch.full_like(cells, -1)).long()
    inside = ((cells >= 0) & (cells < torch.tensor([columns, rows]))).all(dim=1)
    candidates = inside.nonzero().flatten()
    column, row = cells[candidates].unbind(1)
    return candidates[touched[column, row]]
