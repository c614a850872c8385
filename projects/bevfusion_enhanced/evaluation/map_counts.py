"""Counting the cells of predicted and true maps, and IoU from the counts.

A class is predicted in a cell at a threshold where its probability is at least the threshold. What
is kept of a map is a histogram: for each region of the grid, class and truth the number of cells by
how many thresholds the probability reaches. From it follow the counts at every threshold.

Shapes: T thresholds, C map classes, X and Y cells of the grid, R regions.
"""
from typing import Optional, Sequence

import numpy as np
import torch

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
"""BEVFusion's (Liu et al., 2023)."""


def reached_thresholds(probs: torch.Tensor, thresholds: Sequence[float]) -> torch.Tensor:
    """How many of T ascending thresholds each probability reaches; not a number reaches none."""
    limits = torch.tensor(thresholds, dtype=torch.float32, device=probs.device)
    probs = torch.where(probs.isnan(), torch.zeros_like(probs), probs).float()
    return torch.bucketize(probs, limits, right=True)


def histogram(levels: torch.Tensor, masks: torch.Tensor, *, num_thresholds: int,
              regions: Optional[torch.Tensor] = None, num_regions: int = 1) -> np.ndarray:
    """Cells by region, class, truth and thresholds reached.

    Args:
        levels: (C, X, Y) int64, from `reached_thresholds`.
        masks: (C, X, Y), 0 or 1.
        num_thresholds: T.
        regions: (X, Y) int64 from 0 to R - 1; all cells are of one region where it is None.
        num_regions: R.

    Returns:
        (R, C, 2, T + 1) int32.
    """
    C = len(levels)
    true = masks.to(levels.device, torch.bool).long()
    region = torch.zeros_like(levels[0]) if regions is None else regions.to(levels.device)
    channel = torch.arange(C, device=levels.device)[:, None, None]
    code = ((region * C + channel) * 2 + true) * (num_thresholds + 1) + levels       # (C, X, Y)
    shape = (num_regions, C, 2, num_thresholds + 1)
    counts = torch.bincount(code.flatten(), minlength=int(np.prod(shape)))
    return counts.cpu().numpy().astype(np.int32).reshape(shape)


def counts_of(histograms: np.ndarray) -> np.ndarray:
    """Histograms (..., C, 2, T + 1) to counts (..., T, C, 3).

    The last dimension is: true and predicted, predicted only, true only.
    """
    histograms = histograms.astype(np.int64)
    at_least = np.flip(np.cumsum(np.flip(histograms, -1), axis=-1), -1)[..., 1:]  # (..., C, 2, T)
    only, both = at_least[..., 0, :], at_least[..., 1, :]                           # (..., C, T)
    true = histograms[..., 1, :].sum(axis=-1, keepdims=True)                        # (..., C, 1)
    return np.stack([both, only, true - both], axis=-1).swapaxes(-3, -2)


def count_cells(probs: torch.Tensor, masks: torch.Tensor,
                thresholds: Sequence[float]) -> np.ndarray:
    """Cells of one map that are (true and predicted, predicted only, true only).

    Args:
        probs: (C, X, Y) in [0, 1].
        masks: (C, X, Y), 0 or 1.
        thresholds: T of them, ascending.

    Returns:
        (T, C, 3) int64.
    """
    levels = reached_thresholds(probs, thresholds)
    return counts_of(histogram(levels, masks, num_thresholds=len(thresholds)))[0]


def iou_from_counts(counts: np.ndarray) -> np.ndarray:
    """(..., 3) counts to (...) IoU; nothing true and nothing predicted gives 0."""
    return counts[..., 0] / (counts.sum(axis=-1) + 1e-7)
