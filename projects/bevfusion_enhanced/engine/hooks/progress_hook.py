"""A progress bar over training and evaluation, where there is a terminal to show it."""
import atexit
import logging
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmdet3d.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.progress import Progress, TaskID

from ...progress import progress_bar


@HOOKS.register_module()
class RichProgressHook(Hook):
    """One bar over all training iterations, one more over each evaluation; silent elsewhere.

    The log goes on above the bars. Nothing is drawn by processes other than the first, or where
    standard error is no terminal.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._bar: Optional[Progress] = None
        self._tasks: Dict[str, TaskID] = {}
        self._streams: List[Tuple[logging.StreamHandler, Any]] = []

    def before_train(self, runner: Runner) -> None:
        """Show how many of all iterations are done."""
        self._begin(runner, 'train', 'training', total=runner.max_iters, completed=runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Advance, and show the epoch and the loss."""
        if 'train' not in self._tasks:
            return
        loss = float(outputs['loss'].detach()) if outputs and 'loss' in outputs else None
        note = f'epoch {runner.epoch + 1}/{runner.max_epochs}'
        self._advance('train', note if loss is None else f'{note}  loss {loss:.3f}')

    def after_train(self, runner: Runner) -> None:
        """Take the training's bar away."""
        self._end('train')

    def before_val_epoch(self, runner: Runner) -> None:
        """Show the evaluation's own bar."""
        self._begin(runner, 'val', 'evaluation', total=len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                       outputs: Optional[Sequence] = None) -> None:
        """Advance the evaluation's bar."""
        self._advance('val')

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        """Take the evaluation's bar away."""
        self._end('val')

    def before_test_epoch(self, runner: Runner) -> None:
        """Show the evaluation's own bar."""
        self._begin(runner, 'test', 'evaluation', total=len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                        outputs: Optional[Sequence] = None) -> None:
        """Advance the evaluation's bar."""
        self._advance('test')

    def after_test_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        """Take the evaluation's bar away."""
        self._end('test')

    def _begin(self, runner: Runner, name: str, description: str, *, total: int,
               completed: int = 0) -> None:
        if not is_main_process():
            return
        if self._bar is None:
            self._bar = progress_bar()
            if self._bar.disable:
                return
            self._bar.start()
            atexit.register(self.close)
            self._log_above(runner.logger)
        self._tasks[name] = self._bar.add_task(description, total=total, completed=completed,
                                               note='')

    def _advance(self, name: str, note: str = '') -> None:
        if self._bar is not None and name in self._tasks:
            self._bar.update(self._tasks[name], advance=1, note=note)

    def _end(self, name: str) -> None:
        if self._bar is not None and name in self._tasks:
            self._bar.remove_task(self._tasks.pop(name))
        if not self._tasks:
            self.close()

    def _log_above(self, logger: logging.Logger) -> None:
        """Send what the logger prints through the bar's console, which draws it above the bar."""
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._streams.append((handler, handler.stream))
                handler.setStream(sys.stdout)

    def close(self) -> None:
        """Stop drawing and give the logger its own stream back; further calls do nothing."""
        if self._bar is not None:
            self._bar.stop()
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._bar, self._streams = None, []
        atexit.unregister(self.close)
