"""What a training step costs: seconds and memory, kept in the run's folder."""
import json
import statistics
import sys
import time
from pathlib import Path
from typing import List, Optional

import torch
from mmdet3d.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoints.durable import replace_bytes

FILE = 'cost.json'


@HOOKS.register_module()
class StepCostHook(Hook):
    """Writes `cost.json`: `step_seconds`, the median, and `peak_gb`, of this process.

    A step is everything between having a batch and having taken the optimizer's step; waiting for
    data does not count. The GPU is waited for. Memory is the GPU's where there is one (allocated by
    torch), else the resident memory of the process; GB are 2^30 bytes.

    Args:
        skip: First steps of a start that do not count.
    """

    priority = 'VERY_LOW'

    def __init__(self, *, skip: int = 5) -> None:
        self.skip = skip
        self._durations: List[float] = []
        self._seen = 0
        self._began = 0.0

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Take the time."""
        self._began = _now()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Count the step."""
        self._seen += 1
        if self._seen > self.skip:
            self._durations.append(_now() - self._began)

    def after_train_epoch(self, runner: Runner) -> None:
        """Write what is known; a start of too few steps leaves what an earlier one wrote."""
        if self._durations and is_main_process():
            cost = dict(step_seconds=statistics.median(self._durations), peak_gb=peak_gb())
            replace_bytes((json.dumps(cost) + '\n').encode(), Path(runner.work_dir) / FILE)


def peak_gb() -> Optional[float]:
    """The most memory held so far; None where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2 ** 30
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == 'darwin' else 2 ** 10  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 30


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
