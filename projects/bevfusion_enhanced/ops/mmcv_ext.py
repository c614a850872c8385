"""What `mmcv._ext` offers when mmcv was installed without compiled operators.

Loaded under the name `mmcv._ext` by `bevfusion_enhanced_mmcv_finder`, while MMDetection3D is being
imported; so this file imports nothing of this package before an operator is called. The operators
have the names, the order of arguments and the out-parameters of mmcv 2.1.0's compiled ones, run on
any device, and are what MMDetection3D's boxes, assigners, suppression and losses call on this
project's path. Every other name answers with a function that says which operator was called and
what to install.

Conventions are mmcv's: ground boxes (x, y, dx, dy, yaw) and 3D boxes (x, y, z, dx, dy, dz, yaw) as
in `rotated_boxes`; a keyword in a call below is passed by keyword by mmcv, too.
"""
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_BEV = [0, 1, 3, 4, 6]


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int = 0,
                    aligned: bool = False) -> None:
    """Write the IoU (mode 0) or IoF (mode 1) of boxes (N, 5) and (M, 5) to `ious` (N * M,)."""
    from bevfusion_enhanced.ops import rotated_boxes
    result = rotated_boxes.box_iou_rotated(
        boxes1[:, :5], boxes2[:, :5], mode='iof' if mode_flag else 'iou', aligned=aligned)
    ious.copy_(result.reshape(ious.shape))


def nms_rotated(dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, labels: Tensor,
                iou_threshold: float, multi_label: bool = False) -> Tensor:
    """Return the kept indices into `dets` (N, 5), or (N, 6) with labels last, by falling score."""
    from bevfusion_enhanced.ops import rotated_boxes
    return rotated_boxes.nms_rotated(dets[:, :5], scores, iou_threshold=iou_threshold,
                                     labels=labels if multi_label else None)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Return the kept indices of upright boxes (N, 4: x1, y1, x2, y2), by falling score."""
    from torchvision.ops import nms as torchvision_nms
    boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision_nms(boxes, scores, iou_threshold)


def points_in_boxes_cpu_forward(boxes: Tensor, points: Tensor, indices: Tensor) -> None:
    """Write to `indices` (T, P) 1 where the box (T, 7) holds the point (P, 3), else 0."""
    from bevfusion_enhanced.ops import rotated_boxes
    indices.copy_(rotated_boxes.points_in_boxes_all(points, boxes).T)


def points_in_boxes_all_forward(boxes: Tensor, points: Tensor, indices: Tensor) -> None:
    """Write to `indices` (B, P, T) 1 where the box (B, T, 7) holds the point (B, P, 3), else 0."""
    from bevfusion_enhanced.ops import rotated_boxes
    for sample, out in enumerate(indices):
        out.copy_(rotated_boxes.points_in_boxes_all(points[sample], boxes[sample]))


def points_in_boxes_part_forward(boxes: Tensor, points: Tensor, indices: Tensor) -> None:
    """Write to `indices` (B, P) the first box (B, T, 7) that holds the point (B, P, 3), else -1."""
    from bevfusion_enhanced.ops import rotated_boxes
    for sample, out in enumerate(indices):
        out.copy_(rotated_boxes.points_in_boxes_part(points[sample], boxes[sample]))


def iou3d_boxes_overlap_bev_forward(boxes_a: Tensor, boxes_b: Tensor, overlap: Tensor) -> None:
    """Write the ground area shared by 3D boxes (N, 7) and (M, 7) to `overlap` (N, M)."""
    from bevfusion_enhanced.ops import rotated_boxes
    overlap.copy_(rotated_boxes.bev_overlap(boxes_a[:, _BEV], boxes_b[:, _BEV]))


def iou3d_nms3d_forward(boxes: Tensor, keep: Tensor, num_out: Tensor,
                        nms_overlap_thresh: float) -> None:
    """Suppress boxes (N, 7), sorted by falling score, by rotated IoU on the ground.

    Writes the kept indices to the front of `keep` (N,) and their number to `num_out` ().
    """
    _write_kept(boxes[:, _BEV], keep, num_out, nms_overlap_thresh)


def iou3d_nms3d_normal_forward(boxes: Tensor, keep: Tensor, num_out: Tensor,
                               nms_overlap_thresh: float) -> None:
    """The same as `iou3d_nms3d_forward` with every yaw taken as 0."""
    upright = boxes[:, _BEV] * boxes.new_tensor([1, 1, 1, 1, 0])
    _write_kept(upright, keep, num_out, nms_overlap_thresh)


def _write_kept(ground: Tensor, keep: Tensor, num_out: Tensor, iou_threshold: float) -> None:
    from bevfusion_enhanced.ops import rotated_boxes
    falling = torch.arange(len(ground), 0, -1, device=ground.device)
    kept = rotated_boxes.nms_rotated(ground, falling, iou_threshold=iou_threshold)
    keep[:len(kept)] = kept.to(keep.device)
    num_out.fill_(len(kept))


def sigmoid_focal_loss_forward(logits: Tensor, target: Tensor, weight: Tensor, output: Tensor,
                               gamma: float, alpha: float) -> None:
    """Write the focal loss (Lin et al., 'Focal Loss for Dense Object Detection', 2017).

    `logits` and `output` are (N, C), `target` (N,) the class or C for none, `weight` (C,) weighs
    the rows by their class, or is empty.
    """
    hit = _one_hot(target, logits)
    loss = _focal_term(logits, alpha, gamma) * hit
    loss = loss + _focal_term(-logits, 1 - alpha, gamma) * (1 - hit)
    output.copy_(loss * _row_weight(weight, target))


def sigmoid_focal_loss_backward(logits: Tensor, target: Tensor, weight: Tensor, grad: Tensor,
                                gamma: float, alpha: float) -> None:
    """Write the derivative of `sigmoid_focal_loss_forward` by the logits to `grad` (N, C)."""
    hit = _one_hot(target, logits)
    slope = _focal_slope(logits, alpha, gamma) * hit
    slope = slope - _focal_slope(-logits, 1 - alpha, gamma) * (1 - hit)
    grad.copy_(slope * _row_weight(weight, target))


def _focal_term(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """-alpha (1 - p)^gamma log p, with p the sigmoid of the logits."""
    return -alpha * torch.sigmoid(-logits) ** gamma * F.logsigmoid(logits)


def _focal_slope(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Derivative of `_focal_term`: alpha (1 - p)^gamma (gamma p log p - (1 - p))."""
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    return alpha * q ** gamma * (gamma * p * F.logsigmoid(logits) - q)


def _one_hot(target: Tensor, logits: Tensor) -> Tensor:
    classes = torch.arange(logits.shape[1], device=logits.device)
    return (target[:, None] == classes).to(logits.dtype)


def _row_weight(weight: Tensor, target: Tensor) -> Tensor:
    """Weight of each row's class (N, 1); rows of no class weigh 1."""
    if weight.numel() == 0:
        return weight.new_ones(())
    known = target < len(weight)
    rows = weight[target.clamp(max=len(weight) - 1)]
    return torch.where(known, rows, torch.ones_like(rows))[:, None]


def __getattr__(name: str) -> Callable:
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f'mmcv operator {name!r} was called, but mmcv-lite has no compiled operators; '
            'install the compiled mmcv 2.1.0 in place of mmcv-lite to use it')

    return missing
