"""Losses on logits of independent binary maps.

Shapes: B samples, X and Y cells of the BEV map; the dimensions before the last two are arbitrary.
Everything is computed in float32, or in float64 where the logits are.
"""
from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal_loss(logits: Tensor, target: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Cross entropy that counts less where the prediction is already right.

    -alpha_t (1 - p_t)^gamma log p_t with p_t the probability given to the truth, averaged over all
    elements (Lin et al., 'Focal Loss for Dense Object Detection', ICCV 2017).

    Args:
        logits: any shape.
        target: the same shape, 0 or 1.
        alpha: weight of the positives, 1 - alpha of the negatives; negative for no weights.
        gamma: 0 is plain cross entropy.

    Returns:
        A scalar.
    """
    logits, target = _in_full_precision(logits, target)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
    wrong = torch.sigmoid(logits * (1 - 2 * target))                       # 1 - p_t
    loss = entropy * wrong ** gamma
    if alpha >= 0:
        loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    return loss.mean()


def sigmoid_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of logits with a target of the same shape, averaged."""
    return F.binary_cross_entropy_with_logits(*_in_full_precision(logits, target))


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the overlap of predicted and true region, for each map on its own.

    1 - (2 sum(p g) + s) / (sum(p^2) + sum(g^2) + s) (Milletari et al., 'V-Net', 3DV 2016). It
    weighs a thin class as much as a large one, which cross entropy does not. Where a map has no
    positives the loss falls to 0 as the prediction vanishes.

    Args:
        logits: (..., X, Y).
        target: (..., X, Y), 0 or 1.
        smooth: s, in cells.

    Returns:
        (...), each between 0 and 1.
    """
    logits, target = _in_full_precision(logits, target)
    p, g = torch.sigmoid(logits).flatten(-2), target.flatten(-2)
    overlap = (p * g).sum(-1)
    total = p.square().sum(-1) + g.square().sum(-1)
    return 1 - (2 * overlap + smooth) / (total + smooth)


def _in_full_precision(logits: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), target.to(dtype)
