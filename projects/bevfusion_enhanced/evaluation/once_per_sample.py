"""Metrics that count every sample once, however many processes predicted it.

Samplers that deal a dataset out to several processes repeat samples until all have equally many.
MMEngine cuts such repetitions off by their number, which takes each process to keep one result a
sample, in order. Here they are found by the sample's token, wherever they are.
"""
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger


class OncePerSampleMetric(BaseMetric):
    """A metric whose `process` keeps one record a sample: a dictionary with its `token`.

    Args:
        results_dir: Folder in which the results are kept; none are where it is None.
        collect_device: Where processes exchange records: 'cpu' or 'gpu'.
        prefix: Replaces the default one in the keys.
    """

    def __init__(self, *, results_dir: Optional[str] = None, collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.results_dir = None if results_dir is None else Path(results_dir)
        self.conditions: Dict[str, Any] = {}

    def save_to(self, folder: Path, conditions: Mapping[str, Any]) -> None:
        """Keep the results in `folder`, where no other was chosen, and how they came about."""
        if self.results_dir is None:
            self.results_dir = Path(folder)
        self.conditions = dict(conditions)

    def evaluate(self, size: int) -> Dict[str, float]:
        """Score the samples of all processes, each once.

        Args:
            size: How many samples the dataset has.
        """
        self._size = size
        return super().evaluate(sys.maxsize)  # nothing is cut off: repetitions are found by token

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Score the records of all samples."""
        records = unique_records(results)
        size = getattr(self, '_size', len(records))
        if len(records) < size:
            MMLogger.get_current_instance().warning(
                f'{self.prefix}: {len(records)} of the {size} samples of the dataset were '
                'predicted; the metrics are of these')
        return self.score(records)

    @abstractmethod
    def score(self, records: List[dict]) -> Dict[str, float]:
        """Metrics of records of distinct samples, in the main process."""


def unique_records(records: List[dict]) -> List[dict]:
    """The first record of each token; records without a token are all different samples."""
    first: Dict[Any, dict] = {}
    for number, record in enumerate(records):
        token = record.get('token')
        first.setdefault(('number', number) if token is None else token, record)
    return list(first.values())
