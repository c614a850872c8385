"""A run's folder says what the run does: config, environment, history, status, and a lock."""
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from mmdet3d.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoints.durable import replace_bytes
from ...errors import ConfigError
from ...experiments.environment import describe_environment
from ...experiments.run_files import RunFiles
from ...experiments.settings import read_config
from ...experiments.start import changes_between
from ...experiments.status import (
    FAILED,
    FINISHED,
    STOPPED,
    Status,
    locked,
    starting,
    write_status,
)
from ..loop.interrupt_hook import TrainingInterrupted

_SECONDS = 30.0  # between two records of how far a run is


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Writes `config.py`, `environment.json`, `history.jsonl` and `status.json` of a run's folder.

    While it trains, the run holds a lock on its folder, so that no second training starts in it.

    Args:
        load_from: Weights that the start asked for, for the history.
    """

    priority = 'VERY_LOW'

    def __init__(self, *, load_from: Sequence[str] = ()) -> None:
        self.load_from = list(load_from)
        self._held = ExitStack()
        self._files: Optional[RunFiles] = None
        self._status: Optional[Status] = None
        self._written = 0.0

    def before_run(self, runner: Runner) -> None:
        """Take the folder.

        Raises:
            ConfigError: Another training has it.
        """
        if is_main_process() and self._files is None and runner._train_loop is not None:
            self._files = RunFiles(Path(runner.work_dir))
            self._held.enter_context(locked(self._files))

    def before_train(self, runner: Runner) -> None:
        """Record how this start came about."""
        if self._files is None:
            return
        self._append_history(runner)
        replace_bytes(runner.cfg.pretty_text.encode(), self._files.config)
        replace_bytes((json.dumps(describe_environment(), indent=2) + '\n').encode(),
                      self._files.environment)
        self._status = starting(max_epochs=_max_epochs(runner))
        self._record(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Record how far the run is, now and then."""
        if time.monotonic() - self._written > _SECONDS:
            self._record(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Record how far the run is."""
        self._record(runner)

    def after_train(self, runner: Runner) -> None:
        """Record that it is done, and leave the folder to others."""
        self._record(runner, state=FINISHED)
        self.release()

    def ended(self, runner: Runner, error: BaseException) -> None:
        """Record why training ended early, and leave the folder to others."""
        if isinstance(error, (KeyboardInterrupt, TrainingInterrupted)):
            code = getattr(error, 'code', None)
            self._record(runner, state=STOPPED,
                         reason=f'signal {code - 128}' if isinstance(code, int) else 'interrupted')
        else:
            reason = ' '.join(str(error).split()) or type(error).__name__
            self._record(runner, state=FAILED, reason=f'{type(error).__name__}: {reason}'[:500])
        self.release()

    def release(self) -> None:
        """Leave the folder to others."""
        self._held.close()

    def _record(self, runner: Runner, **changes: Any) -> None:
        if self._files is None or self._status is None:
            return
        self._status = replace(self._status, epoch=runner.epoch, iteration=runner.iter,
                               max_epochs=_max_epochs(runner), **changes)
        self._written = time.monotonic()
        try:
            write_status(self._files, self._status)
        except OSError as error:  # a full disk stops no training
            runner.logger.warning(f'{self._files.status} cannot be written: {error}')

    def _append_history(self, runner: Runner) -> None:
        assert self._files is not None
        record: Dict[str, Any] = dict(
            time=time.strftime('%Y-%m-%dT%H:%M:%S%z'), command=' '.join(sys.argv),
            load_from=self.load_from, epoch=runner.epoch, iteration=runner.iter,
            changes=_changes(self._files, runner))
        with self._files.history.open('a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')


def _max_epochs(runner: Runner) -> int:
    return int(getattr(runner.train_loop, 'max_epochs', 0) or 0)


def _changes(files: RunFiles, runner: Runner) -> List[str]:
    """What differs from the config of the start before, as text."""
    if not files.config.is_file():
        return []
    try:
        return [str(change) for change in changes_between(read_config(files), runner.cfg)]
    except ConfigError as error:
        return [f'not compared: {error}']
