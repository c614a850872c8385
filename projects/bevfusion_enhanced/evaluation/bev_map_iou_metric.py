"""IoU of the map task over a whole dataset, by the protocol of BEVFusion (Liu et al., 2023).

For each map class and threshold t, a cell is predicted where its probability is at least t. Cells
that are true and predicted, predicted only, and true only are counted over all samples; IoU = tp /
(tp + fp + fn + 1e-7). `iou@max` is a class's best IoU over the thresholds, its mean is the mean of
these. A class that occurs in no ground truth scores 0, also where it is predicted nowhere.

Shapes: T thresholds, C map classes, X and Y cells of the grid.
"""
from typing import Dict, List, Optional, Sequence

import numpy as np
import torch
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from bevfusion_enhanced.errors import ConfigError, DataError

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)


def count_cells(probs: torch.Tensor, masks: torch.Tensor,
                thresholds: Sequence[float]) -> np.ndarray:
    """Cells that are (true and predicted, predicted only, true only).

    Args:
        probs: (C, X, Y) in [0, 1].
        masks: (C, X, Y), 0 or 1.
        thresholds: T of them.

    Returns:
        (T, C, 3) int64.
    """
    limits = torch.tensor(thresholds, dtype=torch.float32, device=probs.device)
    predicted = probs.float().flatten(1) >= limits[:, None, None]                     # (T, C, X*Y)
    true = masks.flatten(1).to(predicted.device, torch.bool)                          # (C, X*Y)
    counts = torch.stack([(predicted & true).sum(-1), (predicted & ~true).sum(-1),
                          (~predicted & true).sum(-1)], dim=-1)                       # (T, C, 3)
    return counts.cpu().numpy()


def iou_from_counts(counts: np.ndarray) -> np.ndarray:
    """(..., 3) counts to (...) IoU; nothing true and nothing predicted gives 0."""
    return counts[..., 0] / (counts.sum(axis=-1) + 1e-7)


@METRICS.register_module()
class BEVMapIoUMetric(BaseMetric):
    """Map IoU at each threshold and at the best of them, per class and mean.

    Keys: `map/<class>/iou@<t>`, `map/<class>/iou@max`, `map/mean/iou@<t>`, `map/mean/iou@max`;
    fractions of one. Samples carry `pred_bev_map.probs` and `gt_bev_map.masks`, (C, X, Y); what is
    kept of a sample are T * C * 3 counts.

    Args:
        thresholds: Of the probability.
        classes: Names of the C classes; None takes `map_classes` of the dataset's metainfo.
        collect_device: Where ranks exchange counts: 'cpu' or 'gpu'.
        prefix: Replaces 'map' in the keys.

    Raises:
        ConfigError: No thresholds, or class names that are not there.
        DataError: A sample without prediction or truth, or of another shape.
    """

    default_prefix = 'map'

    def __init__(self, *, thresholds: Sequence[float] = THRESHOLDS,
                 classes: Optional[Sequence[str]] = None, collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not thresholds or not all(0 < threshold < 1 for threshold in thresholds):
            raise ConfigError(f'thresholds are {list(thresholds)}; expected some between 0 and 1')
        self.thresholds = tuple(thresholds)
        self.classes = classes

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the cells of each sample."""
        for sample in data_samples:
            token = sample.get('token', sample.get('sample_idx'))
            for field, step in (('pred_bev_map', 'give the model a map head'),
                                ('gt_bev_map', 'add LoadBEVMapMasks to the test pipeline')):
                if field not in sample:
                    raise DataError(f'sample {token} has no {field}, so there is no map to score; '
                                    f'{step}')
            probs, masks = sample['pred_bev_map']['probs'], sample['gt_bev_map']['masks']
            masks = torch.as_tensor(masks)
            if probs.shape != masks.shape:
                raise DataError(f'sample {token}: predicted map is {tuple(probs.shape)}, the true '
                                f'one {tuple(masks.shape)}; the head and LoadBEVMapMasks must '
                                'have the same classes, xbound and ybound')
            self.results.append(count_cells(probs, masks, self.thresholds))

    def compute_metrics(self, results: List[np.ndarray]) -> Dict[str, float]:
        """IoU from the counts of all samples."""
        counts = np.sum(results, axis=0, dtype=np.int64)                              # (T, C, 3)
        classes = self._class_names(counts.shape[1])
        iou = iou_from_counts(counts)                                                 # (T, C)
        true_cells = counts[0, :, 0] + counts[0, :, 2]                                # (C,)
        absent = [name for name, cells in zip(classes, true_cells, strict=True) if not cells]
        if absent:
            MMLogger.get_current_instance().warning(
                f'map classes {absent} occur in no ground truth of this set; they score 0')

        metrics: Dict[str, float] = {}
        columns = [*zip(classes, iou.T, strict=True), ('mean', iou.mean(axis=1))]
        for name, values in columns:
            for threshold, value in zip(self.thresholds, values, strict=True):
                metrics[f'{name}/iou@{threshold:.2f}'] = float(value)
            metrics[f'{name}/iou@max'] = float(values.max())
        metrics['mean/iou@max'] = float(iou.max(axis=0).mean())
        return metrics

    def _class_names(self, count: int) -> Sequence[str]:
        classes = self.classes or (self.dataset_meta or {}).get('map_classes')
        if not classes or len(classes) != count:
            raise ConfigError(f'map_classes are {classes}, the masks have {count} channels; name '
                              "the classes in the dataset's metainfo.map_classes")
        return classes
