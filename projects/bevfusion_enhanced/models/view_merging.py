"""Predictions of one scene under several views, brought into the sensor's frame and merged.

Frames: LiDAR x right, y forward, z up, metres. A view is given by its `lidar_aug_matrix` (4, 4),
which maps the sensor's frame to the view's: rotation about z, mirroring of x and y, shift, one
scale. Boxes are (x, y, z of the bottom centre, dx, dy, dz, yaw, vx, vy), yaw counter-clockwise from
+x in radians.

Shapes: V views, M boxes of a view, K boxes of all views, C map classes, X and Y cells of the grid.
"""
from typing import List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bevfusion_enhanced.ops.rotated_boxes import box_iou_rotated, nms_rotated

_GROUND = [0, 1, 3, 4, 6]
Scope = Sequence[Sequence[float]]


def boxes_to_sensor(boxes: Tensor, matrix: np.ndarray) -> Tensor:
    """Boxes (M, 7 or 9) of a view, in the sensor's frame."""
    back = torch.from_numpy(np.linalg.inv(np.asarray(matrix, np.float64)))
    scale = back[:3, :3].det().abs() ** (1 / 3)
    exact = boxes.detach().cpu().double()
    center = exact[:, :3] @ back[:3, :3].T + back[:3, 3]
    heading = torch.stack([exact[:, 6].cos(), exact[:, 6].sin()], dim=1) @ back[:2, :2].T
    yaw = torch.atan2(heading[:, 1], heading[:, 0])
    velocity = exact[:, 7:9] @ back[:2, :2].T if boxes.shape[1] >= 9 else exact[:, 7:]
    moved = torch.cat([center, exact[:, 3:6] * scale, yaw[:, None], velocity], dim=1)
    return moved.to(boxes)


def map_to_sensor(probs: Tensor, matrix: np.ndarray, *, scope: Scope,
                  anchors: Sequence[float]) -> Tuple[Tensor, Tensor]:
    """A view's map on the same grid in the sensor's frame.

    Args:
        probs: (C, X, Y).
        matrix: (4, 4) of the view.
        scope: (first edge, last edge, step) of the grid along x and along y, metres.
        anchors: For each class the place within a cell that its value belongs to, in cells from
            the cell's lower edge: 0.5 is the centre.

    Returns:
        The probabilities (C, X, Y), and (C, X, Y) bool: whether the view saw the cell, that is,
        whether its place lies between the places of the view's own cells.
    """
    moved, seen = torch.zeros_like(probs), torch.zeros_like(probs, dtype=torch.bool)
    for anchor in sorted(set(anchors)):
        members = [index for index, value in enumerate(anchors) if value == anchor]
        where = _places(matrix, scope, anchor, tuple(probs.shape[1:]))             # (X, Y, 2)
        size = torch.tensor(probs.shape[1:], dtype=torch.float64)
        inside = ((where > -1e-6) & (where < size - 1 + 1e-6)).all(dim=-1)  # nothing is guessed
        # grid_sample wants the place along the last dimension first
        grid = ((where + 0.5) / size * 2 - 1).flip(-1).to(probs)[None]              # (1, X, Y, 2)
        moved[members] = F.grid_sample(probs[members][None], grid, mode='bilinear',
                                       padding_mode='border', align_corners=False)[0]
        seen[members] = inside.to(probs.device)
    return moved, seen


def _places(matrix: np.ndarray, scope: Scope, anchor: float, shape: Tuple[int, int]) -> Tensor:
    """(X, Y, 2) float64 index in the view's map of each cell of the sensor's."""
    first = torch.tensor([axis[0] for axis in scope], dtype=torch.float64)
    step = torch.tensor([axis[2] for axis in scope], dtype=torch.float64)
    index = torch.stack(torch.meshgrid(
        *(torch.arange(count, dtype=torch.float64) for count in shape), indexing='ij'), dim=-1)
    plane = torch.from_numpy(np.asarray(matrix, np.float64)[:2][:, [0, 1, 3]])
    place = (first + (index + anchor) * step) @ plane[:, :2].T + plane[:, 2]
    return (place - first) / step - anchor


def merge_maps(maps: Sequence[Tensor], matrices: Sequence[np.ndarray], *, scope: Scope,
               anchors: Sequence[float]) -> Tensor:
    """The mean, in the sensor's frame, of V maps (C, X, Y); each cell over the views that saw it.

    A cell that no view saw is 0. See `map_to_sensor` for the arguments.
    """
    pairs = [map_to_sensor(probs, matrix, scope=scope, anchors=anchors)
             for probs, matrix in zip(maps, matrices, strict=True)]
    seen = torch.stack([mask for _, mask in pairs]).to(maps[0].dtype)              # (V, C, X, Y)
    moved = torch.stack([probs for probs, _ in pairs])                             # (V, C, X, Y)
    return (moved * seen).sum(dim=0) / seen.sum(dim=0).clamp(min=1)


def merge_boxes(boxes: Sequence[Tensor], scores: Sequence[Tensor], labels: Sequence[Tensor], *,
                method: str, iou_threshold: float,
                max_boxes: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Boxes of V views, all in the sensor's frame, as one set, best first.

    'nms' keeps, of boxes of one class that overlap, the best one. 'weighted' averages them: around
    the best box that is left, the best overlapping box of each view is taken, weighted by its
    score; the score is the sum of theirs over V, so what only one of V views saw counts 1/V. All
    boxes that overlap the best one are then used up.

    Args:
        boxes: V times (M, 7 or 9).
        scores: V times (M,).
        labels: V times (M,).
        method: 'weighted' or 'nms'.
        iou_threshold: Overlap on the ground, from which boxes are of one object.
        max_boxes: The best so many are returned.
    """
    everything, score, label = torch.cat(list(boxes)), torch.cat(list(scores)), torch.cat(
        list(labels))                                                               # (K, ...)
    if method == 'nms':
        keep = nms_rotated(everything[:, _GROUND], score, iou_threshold=iou_threshold,
                           labels=label)[:max_boxes]
        return everything[keep], score[keep], label[keep]
    view = np.repeat(np.arange(len(boxes)), [len(part) for part in boxes])          # (K,)
    parts = []
    for wanted in label.unique().tolist():
        members = (label == wanted).nonzero().flatten()
        merged, merged_score = _weighted(
            everything[members], score[members].cpu().double().numpy(),
            view[members.cpu().numpy()], views=len(boxes), iou_threshold=iou_threshold)
        parts.append((merged.to(everything), merged_score.to(score),
                      torch.full((len(merged),), wanted).to(label)))
    if not parts:
        return everything, score, label
    everything, score, label = (torch.cat([part[i] for part in parts]) for i in range(3))
    best = score.argsort(descending=True, stable=True)[:max_boxes]
    return everything[best], score[best], label[best]


def _weighted(boxes: Tensor, scores: np.ndarray, view: np.ndarray, *, views: int,
              iou_threshold: float) -> Tuple[Tensor, Tensor]:
    """Merged boxes and scores of one class."""
    overlap = box_iou_rotated(boxes[:, _GROUND], boxes[:, _GROUND]).cpu().numpy()   # (K, K)
    exact = boxes.detach().cpu().double().numpy()
    order = np.argsort(-scores, kind='stable')
    free = np.ones(len(scores), dtype=bool)
    merged: List[np.ndarray] = []
    merged_scores: List[float] = []
    for best in order:
        if not free[best]:
            continue
        near = free & (overlap[best] >= iou_threshold)
        near[best] = True  # also a box without extent, which overlaps nothing
        free &= ~near
        candidates = order[near[order]]
        chosen = candidates[np.unique(view[candidates], return_index=True)[1]]
        merged.append(_mean_box(exact[chosen], scores[chosen], exact[best]))
        merged_scores.append(float(scores[chosen].sum() / views))
    return torch.from_numpy(np.stack(merged)), torch.tensor(merged_scores, dtype=torch.float64)


def _mean_box(boxes: np.ndarray, scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The mean by score; headings that point against the best box's are turned round first."""
    weights = scores / scores.sum() if scores.sum() > 0 else np.full(len(scores), 1 / len(scores))
    mean = weights @ boxes
    headings = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=1)
    along = headings @ [np.cos(best[6]), np.sin(best[6])]
    x, y = weights @ (headings * np.where(along < 0, -1, 1)[:, None])
    mean[6] = np.arctan2(y, x)
    return mean
