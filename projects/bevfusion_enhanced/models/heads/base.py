"""What every task head is: it turns a BEV map into losses or into predictions.

Shapes: B samples, C channels, X cells along LiDAR x (right), Y cells along LiDAR y (forward).
"""
from abc import ABCMeta, abstractmethod
from typing import Dict, List, NamedTuple, Sequence

from mmengine.model import BaseModule
from mmengine.structures import BaseDataElement
from torch import Tensor


class TaskLosses(NamedTuple):
    """What one head returns for a batch; names are relative to the task.

    Attributes:
        losses: scalars with gradients, already weighted; their sum is minimised. Logged as
            `loss/<task>/<name>`.
        stats: detached scalars that are only watched. Logged as `stats/<task>/<name>`.
    """

    losses: Dict[str, Tensor]
    stats: Dict[str, Tensor]


class TaskHead(BaseModule, metaclass=ABCMeta):
    """A task over the shared BEV map. The detector knows nothing more about any head."""

    def __init__(self) -> None:
        super().__init__()
        self._class_counts: Dict[str, Tensor] = {}
        self.mean_counts: Dict[str, float] = {}
        """While a batch is trained on in parts: the mean of `counts` over them."""
        self.parts = 1
        """The number of these parts."""

    def counts(self, samples: Sequence[BaseDataElement]) -> Dict[str, float]:
        """Numbers of annotated objects in `samples` that losses are divided by, by name.

        Empty where each loss is a mean over samples.
        """
        return {}

    def count_classes(self, **counts: Tensor) -> None:
        """Add to what is counted for each of the K classes while training.

        Args:
            counts: by what is counted, such as `truths`, the number for each class (K,).
        """
        if not self.training:
            return
        for name, count in counts.items():
            count = count.detach().long()
            known = self._class_counts.get(name)
            self._class_counts[name] = count if known is None else known + count

    def take_class_counts(self) -> Dict[str, Tensor]:
        """What was counted since this was last asked: (K,) each, on the head's device."""
        taken, self._class_counts = self._class_counts, {}
        return taken

    @abstractmethod
    def loss(self, bev: Tensor, samples: Sequence[BaseDataElement]) -> TaskLosses:
        """Compare the predictions for `bev` (B, C, X, Y) with the truth in the B samples."""

    @abstractmethod
    def predict(self, bev: Tensor,
                samples: Sequence[BaseDataElement]) -> List[Dict[str, BaseDataElement]]:
        """Predict from `bev` (B, C, X, Y): per sample the fields to set on it, by name."""
