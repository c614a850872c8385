"""Duplicates among the boxes of classes that the heatmap's local maximum spares.

Boxes are (x, y, z, dx, dy, dz, yaw, ...) in the LiDAR frame, metres and radians. Shapes: N boxes.
"""
from typing import Optional, Sequence

import torch
from torch import Tensor

from bevfusion_enhanced.ops.rotated_boxes import nms_distance, nms_rotated

# Of the published models, which compare IoU or the squared distance with it.
DEFAULT_THRESHOLD = 0.175


def without_duplicates(boxes: Tensor, scores: Tensor, labels: Tensor, *, classes: Sequence[int],
                       nms_type: Optional[str], threshold: Optional[float]) -> Tensor:
    """Which boxes stay after suppression within each of `classes`.

    Args:
        boxes: (N, 7 or more).
        scores: (N,).
        labels: (N,).
        classes: ids of the classes among whose boxes duplicates are looked for.
        nms_type: None, 'rotate' or 'circle', as in TestOptions.
        threshold: as in TestOptions.

    Returns:
        (N,) bool.
    """
    keep = torch.ones_like(scores, dtype=torch.bool)
    if nms_type is None:
        return keep
    for label in classes:
        index = (labels == label).nonzero().flatten()
        keep[index] = False
        keep[index[_suppress(boxes[index], scores[index], nms_type, threshold)]] = True
    return keep


def _suppress(boxes: Tensor, scores: Tensor, nms_type: str, threshold: Optional[float]) -> Tensor:
    if nms_type == 'rotate':
        threshold = DEFAULT_THRESHOLD if threshold is None else threshold
        return nms_rotated(boxes[:, [0, 1, 3, 4, 6]], scores, iou_threshold=threshold)
    threshold = DEFAULT_THRESHOLD ** 0.5 if threshold is None else threshold
    return nms_distance(boxes[:, :2], scores, min_distance=threshold)
