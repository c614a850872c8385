"""The boxes of a sample, reduced to what a picture needs.

Frame: LIDAR_TOP, x right, y forward, z up, metres. K boxes. Corners are numbered as in
MMDetection3D: 0..3 the rear face, 4..7 the front face; 0, 3, 7, 4 the bottom.
"""
from typing import NamedTuple, Optional

import numpy as np
import torch
from mmdet3d.structures import BaseInstance3DBoxes, Det3DDataSample

BOTTOM = (0, 3, 7, 4)
"""The corners of the bottom face, in order around it."""
FRONT_BOTTOM = (4, 7)
"""The two lower corners of the front face."""


class DrawnBoxes(NamedTuple):
    """Boxes to draw.

    Attributes:
        corners: (K, 8, 3) float64.
        labels: (K,) int64 index into the detection classes.
    """
    corners: np.ndarray
    labels: np.ndarray

    @classmethod
    def empty(cls) -> 'DrawnBoxes':
        """No boxes."""
        return cls(np.zeros((0, 8, 3)), np.zeros(0, dtype=np.int64))

    def nearest_last(self) -> 'DrawnBoxes':
        """The same boxes, ordered from far to near, so that near ones are drawn over far ones."""
        distance = np.linalg.norm(self.corners.mean(axis=1), axis=-1)
        order = np.argsort(-distance, kind='stable')
        return DrawnBoxes(self.corners[order], self.labels[order])


def boxes_from(boxes: BaseInstance3DBoxes, labels: object,
               keep: Optional[np.ndarray] = None) -> DrawnBoxes:
    """Corners and labels of the boxes in `keep` ((K,) bool) that belong to a class (label >= 0)."""
    labels = torch.as_tensor(labels).cpu().numpy().astype(np.int64)
    chosen = labels >= 0 if keep is None else keep & (labels >= 0)
    corners = boxes.corners.detach().cpu().numpy().astype(np.float64)
    return DrawnBoxes(corners[chosen], labels[chosen])


def predicted_boxes(sample: Det3DDataSample, *, score_threshold: float) -> DrawnBoxes:
    """The boxes in `pred_instances_3d` with at least this score, none without a head."""
    instances = sample.get('pred_instances_3d')
    if instances is None or 'bboxes_3d' not in instances:
        return DrawnBoxes.empty()
    keep = instances.scores_3d.detach().cpu().numpy() >= score_threshold
    return boxes_from(instances.bboxes_3d, instances.labels_3d, keep)


def true_boxes(sample: Det3DDataSample) -> DrawnBoxes:
    """The annotated boxes: `gt_instances_3d`, else the test set's `eval_ann_info`."""
    instances = sample.get('gt_instances_3d')
    if instances is not None and 'bboxes_3d' in instances:
        return boxes_from(instances.bboxes_3d, instances.labels_3d)
    annotations = sample.get('eval_ann_info')
    if annotations is None:
        return DrawnBoxes.empty()
    return boxes_from(annotations['gt_bboxes_3d'], annotations['gt_labels_3d'])
