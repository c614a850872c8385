"""Which proposal answers for which annotated box: the pairing of least total cost.

Boxes are (x, y, z, dx, dy, dz, yaw[, vx, vy]) in the LiDAR frame, metres, z at the bottom.
Shapes: P proposals, N annotated boxes, K classes, M = min(P, N) pairs.
"""
from typing import Dict, NamedTuple, Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# What a pair costs whose prediction overflowed: more than any other, and still a number, because
# one bad step under mixed precision is skipped by the loss scaler and must not stop the run here.
OVERFLOWED = 1e6


class Assignment(NamedTuple):
    """The M pairs.

    Attributes:
        proposal: (M,) index of the proposal.
        truth: (M,) index of the annotated box.
        iou: (M,) 3D IoU of the two, between 0 and 1.
    """

    proposal: Tensor
    truth: Tensor
    iou: Tensor


@TASK_UTILS.register_module()
class BBoxBEVL1Cost:
    """Distance of the centres along x plus along y, in parts of the range."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, boxes: Tensor, truth: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
        """Cost (P, N) of boxes (P, 7+) and truth (N, 7+)."""
        lower, upper = boxes.new_tensor(point_cloud_range).split(3)
        extent = (upper - lower)[:2]
        return torch.cdist(boxes[:, :2] / extent, truth[:, :2] / extent, p=1) * self.weight


@TASK_UTILS.register_module()
class IoU3DCost:
    """The negative IoU."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, iou: Tensor) -> Tensor:
        """Cost of each IoU, of the same shape."""
        return -iou * self.weight


@TASK_UTILS.register_module()
class HungarianAssigner3D:
    """Pair proposals and annotated boxes so that the sum of three costs is least.

    As in Carion et al., 'End-to-End Object Detection with Transformers', ECCV 2020; costs of
    Bai et al., 'TransFusion', CVPR 2022.

    Args:
        point_cloud_range: lower, then upper ends of x, y and z in metres.
        cls_cost: of the predicted logits, one of MMDetection's.
        reg_cost: of the centres.
        iou_cost: of the overlaps.
        iou_calculator: gives the (P, N) overlaps of two sets of boxes.
    """

    def __init__(self, *, point_cloud_range: Sequence[float], cls_cost: Dict, reg_cost: Dict,
                 iou_cost: Dict, iou_calculator: Dict) -> None:
        self.point_cloud_range = point_cloud_range
        self.cls_cost = TASK_UTILS.build(cls_cost)
        self.reg_cost = TASK_UTILS.build(reg_cost)
        self.iou_cost = TASK_UTILS.build(iou_cost)
        self.iou_calculator = TASK_UTILS.build(iou_calculator)

    @torch.no_grad()
    def assign(self, boxes: Tensor, logits: Tensor, truth: Tensor, labels: Tensor) -> Assignment:
        """Pair predicted boxes (P, 7+), logits (P, K) and annotated boxes (N, 7+), labels (N,)."""
        if len(boxes) == 0 or len(truth) == 0:
            none = labels.new_zeros(0, dtype=torch.long)
            return Assignment(proposal=none, truth=none, iou=boxes.new_zeros(0))
        boxes, truth = boxes.float(), truth.float()
        iou = self.iou_calculator(boxes, truth).nan_to_num(nan=0.0)                    # (P, N)
        cost = self.cls_cost(InstanceData(scores=logits.float()), InstanceData(labels=labels))
        cost = cost + self.reg_cost(boxes, truth, self.point_cloud_range) + self.iou_cost(iou)
        cost = cost.nan_to_num(nan=OVERFLOWED, posinf=OVERFLOWED, neginf=OVERFLOWED)
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        proposal = torch.from_numpy(rows).to(boxes.device)
        matched = torch.from_numpy(columns).to(boxes.device)
        return Assignment(proposal=proposal, truth=matched,
                          iou=iou[proposal, matched].clamp(0, 1))
