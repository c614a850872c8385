"""A signal ends a training after its iteration, with a checkpoint and a line on how to go on."""
import os
import shlex
import signal
import sys
import threading
import time
from typing import Any, Dict, List, Optional, Protocol, Sequence, runtime_checkable

import torch
import torch.distributed
from mmdet3d.registry import HOOKS
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...errors import CheckpointError

_SIGNALS = ('SIGTERM', 'SIGINT')
_STARTS = ('--resume', '--ckpt', '--load-from', '--pretrained')
"""Options, with values, of where a training starts from."""
_SAME_SECONDS = 2.0
"""torchrun passes on a signal that its processes got from the terminal too: within this time, two
signals are one."""


@runtime_checkable
class SavesNow(Protocol):
    """A hook that can write a checkpoint between its intervals."""

    def save_now(self, runner: Runner, reason: str) -> None:
        """Write one of this moment, and return when it is on the disk."""


class TrainingInterrupted(SystemExit):
    """A signal stopped the training; everything is saved. Its `code` is the shell's for it."""


class EvaluationAbandoned(Exception):
    """A signal arrived during a validation, which the training loop is to leave in good order."""


@HOOKS.register_module()
class InterruptHook(Hook):
    """SIGTERM and SIGINT finish the iteration, save, and stop; a second one stops at once.

    All processes of a training stop after the same iteration, whichever of them got the signal.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._signal: Optional[int] = None
        self._stop = 0
        self._time = 0.0
        self._process = os.getpid()
        self._previous: Dict[int, Any] = {}
        self._group: Optional[torch.distributed.ProcessGroup] = None
        self._common_batches = 0
        self.leaves_validation = False
        """Set by a training loop that knows what to do with `EvaluationAbandoned`."""

    def before_train(self, runner: Runner) -> None:
        """Take over the signals, where Python lets this thread do so."""
        self._signal, self._process = None, os.getpid()
        if get_world_size() > 1 and torch.distributed.get_backend() != 'gloo':
            self._group = torch.distributed.new_group(backend='gloo')
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and number not in self._previous:
                self._previous[number] = signal.signal(number, self._receive)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Stop here, if a signal came."""
        if self._previous and self._agreed():
            self.leave(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find the number of batches that every process has, which bounds where they may agree."""
        if not (self._previous and self.leaves_validation):
            self._common_batches = 0
        elif get_world_size() > 1:
            self._common_batches = -self._maximum(-len(runner.val_dataloader))
        else:
            self._common_batches = sys.maxsize

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                       outputs: Optional[Sequence] = None) -> None:
        """Leave the validation, if a signal came in training."""
        if batch_idx < self._common_batches and self._agreed():
            raise EvaluationAbandoned

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        """Stop here, if a signal came while metrics were computed."""
        if self._previous and self._agreed():
            self.leave(runner)

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        self.release()

    def leave(self, runner: Runner) -> None:
        """Save, say how to go on, and stop; in all processes at once.

        Raises:
            TrainingInterrupted: Always.
        """
        number = self._stop
        name = signal.Signals(number).name
        try:
            for hook in runner.hooks:
                if isinstance(hook, SavesNow):
                    hook.save_now(runner, reason=name)
            runner.logger.info(f'stopped by {name}; '
                               f'{how_to_go_on(sys.argv, work_dir=runner.work_dir)}')
        except CheckpointError as error:
            runner.logger.error(f'stopped by {name}, and no checkpoint could be saved: {error}')
        if get_world_size() > 1:
            torch.distributed.barrier()  # no process ends before the first one has written
        self.release()
        raise TrainingInterrupted(128 + number)

    def release(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker that was forked from the training
            return
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._time = number, now
            if is_main_process():  # by `write`, because a handler must not enter a print again
                os.write(2, f'{signal.Signals(number).name}: finishing the iteration and saving; '
                            'a second signal stops at once\n'.encode())
        elif now - self._time > (_SAME_SECONDS if get_world_size() > 1 else 0.0):
            self.release()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _agreed(self) -> bool:
        """Whether any process got a signal; asks all of them."""
        self._stop = self._signal or 0
        if get_world_size() > 1:
            self._stop = self._maximum(self._stop)
        return self._stop > 0

    def _maximum(self, value: int) -> int:
        tensor = torch.tensor(value)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(tensor)


def how_to_go_on(argv: Sequence[str], *, work_dir: str) -> str:
    """The command that goes on with a run.

    Args:
        argv: The command line that started it.
        work_dir: The run's folder, for a command line that would make another one next time.
    """
    if not argv or not argv[0].endswith('.py') or 'TORCHELASTIC_RUN_ID' in os.environ:
        return 'go on with the same command and --resume in place of --load-from'
    kept: List[str] = []
    dropping = False
    for word in argv:
        if word.startswith('-'):
            name = word.partition('=')[0]
            dropping = name in _STARTS and '=' not in word
            if name in (*_STARTS, '--restart'):
                continue
        if not dropping:
            kept.append(word)
    kept += ['--work-dir', work_dir] if _has_automatic_tag(argv) else []
    return f'go on with: python {shlex.join([*kept, "--resume"])}'


def _has_automatic_tag(argv: Sequence[str]) -> bool:
    return '--extra-tag=auto' in argv or ('--extra-tag', 'auto') in zip(argv, argv[1:])
