"""How many predictions of a validation are worth looking at, by class.

Shapes: P boxes of a sample, K classes, X and Y cells of the map.
"""
from typing import Any, Dict, List, Mapping, Sequence

import torch
from torch import Tensor

from .statistics import Measurements


class PredictionMeter:
    """Counts boxes and map cells that reach a threshold.

    Args:
        classes: names of the classes of each task, in order: of `object` and of `map`.
        score_threshold: of boxes.
        map_threshold: of map cells.
    """

    def __init__(self, *, classes: Mapping[str, Sequence[str]], score_threshold: float,
                 map_threshold: float) -> None:
        self._classes = {task: list(names) for task, names in classes.items()}
        self._score_threshold, self._map_threshold = score_threshold, map_threshold
        self._counts: Dict[str, Tensor] = {}

    def add(self, samples: Sequence[Any]) -> None:
        """Take the predictions of a batch; samples that have none are passed over."""
        for sample in samples:
            boxes = getattr(sample, 'pred_instances_3d', None)
            if boxes is not None and 'scores_3d' in boxes:
                self._add('object', self._boxes(boxes))
            cells = getattr(sample, 'pred_bev_map', None)
            if cells is not None:
                self._add('map', (cells.probs >= self._map_threshold).sum(dim=(-2, -1)))

    def _boxes(self, boxes: Any) -> Tensor:
        """Finite boxes that reach the threshold, by class (K,); does not wait for the device."""
        scores, labels = boxes.scores_3d, boxes.labels_3d.long()                        # (P,) each
        good = (scores >= self._score_threshold) & boxes.bboxes_3d.tensor.isfinite().all(dim=1)
        counts = torch.zeros(len(self._classes.get('object', ())), dtype=torch.long,
                             device=scores.device)
        return counts.index_add_(0, labels, good.long()) if len(counts) else good.sum().reshape(1)

    def _add(self, task: str, counts: Tensor) -> None:
        known = self._counts.get(task)
        self._counts[task] = counts if known is None else known + counts

    def take(self) -> Dict[str, List[int]]:
        """Counts by class of each task since this was last asked."""
        taken = {task: counts.tolist() for task, counts in self._counts.items()}
        self._counts = {}
        return taken

    def measure(self, counts: Mapping[str, Sequence[int]]) -> Measurements:
        """Measurements of counts as `take` gives them."""
        found: Measurements = {}
        for task, numbers in counts.items():
            found[f'validation.{task}.valid'] = float(sum(numbers))
            for name, number in zip(named(self._classes.get(task), len(numbers)), numbers):
                found[f'validation.class.{task}.{name}'] = float(number)
        return found


def named(names: Any, count: int) -> List[str]:
    """Names of `count` classes: those given where they are as many, else their indices."""
    return list(names) if names and len(names) == count else [str(k) for k in range(count)]


def add_counts(into: Dict[str, Any], other: Mapping[str, Any]) -> None:
    """Add nested dictionaries of lists of numbers, such as those of other processes."""
    for key, value in other.items():
        if isinstance(value, Mapping):
            add_counts(into.setdefault(key, {}), value)
        else:
            known = into.get(key, [0] * len(value))
            into[key] = [a + b for a, b in zip(known, value)]
