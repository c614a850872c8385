"""Training by epochs that goes on exactly where it stopped, also in the middle of an epoch."""
import bisect
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmdet3d.registry import LOOPS
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ... import random_state
from ...datasets.sample_keys import key_samples
from ...random_state import RandomState, derive_seed
from ..parallel import process_state
from ..runs import run_logs
from .interrupt_hook import EvaluationAbandoned, InterruptHook
from .loader_workers import guard_workers
from .micro_batches import train_in_parts

_TRAINING, _LOADING = 0, 1  # what a derived seed is for


@dataclass(frozen=True)
class Progress:
    """How far a training is, in whole iterations.

    Attributes:
        epoch: Epochs done.
        iteration: Iterations done.
        batches: Batches done of the epoch under way; all of them where only its end is left.
        samples: Samples of this process in those batches.
        validation_due: Whether the validation after the last epoch is still to be done.
    """

    epoch: int
    iteration: int
    batches: int
    samples: int
    validation_due: bool


@dataclass(frozen=True)
class Resumption:
    """Where and how a training goes on.

    Attributes:
        progress: How far it was; `samples` of this process, `batches` is worked out from them.
        seed: Seed of the data.
        process: This process's own state, or None where none fits.
        logs: Lengths of the logs then.
    """

    progress: Progress
    seed: int
    process: Optional[process_state.ProcessState]
    logs: run_logs.LogLengths


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """MMEngine's EpochBasedTrainLoop, whose runs do not depend on where they were stopped.

    - The random numbers of a sample depend on its place in the epoch (`sample_keys`), those of
      the model on the iterations before: loading and validating leave them alone.
    - In the middle of an epoch it goes on with the next batch; samples before it are not read.
    - A validation that was due when a run was stopped is done before anything else.

    Args:
        runner: The training.
        dataloader: Training data.
        max_epochs: Number of epochs.
        val_begin: First epoch (from 1) after which to validate.
        val_interval: Validate after every so many epochs.
        dynamic_intervals: (epoch, interval from then on) pairs.
        accumulate: Parts that a batch is cut into, one forward pass each, for one update.
    """

    def __init__(self, runner: Runner, dataloader: Union[DataLoader, Dict], *, max_epochs: int,
                 val_begin: int = 1, val_interval: int = 1,
                 dynamic_intervals: Optional[List[Tuple[int, int]]] = None,
                 accumulate: int = 1) -> None:
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval,
                         dynamic_intervals)
        self.part_size = -(-self.dataloader.batch_size // accumulate) if accumulate > 1 else None
        self.seed = run_seed(runner)
        self._keys = key_samples(self.dataloader, seed=self.seed)
        self.dataloader.generator = torch.Generator()
        guard_workers(self.dataloader)
        self._batches_done = 0
        self._in_iteration = self._epoch_ended = self._validation_due = False
        self._random_aside: Optional[RandomState] = None
        self._resumption: Optional[Resumption] = None
        runner.register_hook(_EvaluationWatch(self._validation_done))

    # Where the training is.

    @property
    def progress(self) -> Progress:
        """How far it is; right also in hooks after an iteration or epoch, which counts later."""
        if self._epoch_ended:
            epoch = self._epoch + 1
            return Progress(epoch, self._iter, 0, 0, self._validates_after(epoch))
        samples = min(self._batches_done * self.dataloader.batch_size, len(self._keys))
        return Progress(self._epoch, self._iter + int(self._in_iteration), self._batches_done,
                        samples, self._validation_due)

    @property
    def random_state(self) -> RandomState:
        """The random states that training goes on with, whatever a validation draws meanwhile."""
        return self._random_aside or random_state.capture()

    def resume_from(self, resumption: Resumption) -> None:
        """Go on from there once the run begins."""
        progress = resumption.progress
        self._resumption = resumption
        self.seed = self._keys.seed = resumption.seed
        self._epoch, self._iter = progress.epoch, progress.iteration
        self._validation_due = progress.validation_due
        self._keys.start = min(progress.samples, len(self._keys))
        self._batches_done = len(self.dataloader) - self._batches_in(
            len(self._keys) - self._keys.start)
        epochs_left = max(self._max_epochs - self._epoch, 0)
        self._max_iters = (self._iter - self._batches_done
                           + epochs_left * len(self.dataloader))

    # The run.

    def run(self) -> torch.nn.Module:
        """Train to the end."""
        self.runner.call_hook('before_train')
        for hook in self._interrupt_hooks():
            hook.leaves_validation = True
        try:
            self._begin()
            if self._validation_due:
                self._validate()
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._decide_current_val_interval()
                self._validation_due = self._validates_after(self._epoch)
                if self._validation_due:
                    self._validate()
        finally:
            for hook in self._interrupt_hooks():
                hook.release()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for what is left of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self._keys.set_epoch(self._epoch)
        self.dataloader.generator.manual_seed(derive_seed(self.seed, _LOADING, self._epoch) >> 1)
        for number, batch in enumerate(self.dataloader, start=self._batches_done):
            self.run_iter(number, batch)
        self._epoch_ended = True
        self.runner.call_hook('after_train_epoch')
        self._epoch_ended = False
        self._epoch += 1
        self._batches_done = self._keys.start = 0

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Train on one batch, the `idx`-th (from 0) of the epoch."""
        self._in_iteration, self._batches_done = True, idx + 1
        if self.part_size is None:
            super().run_iter(idx, data_batch)
        else:
            self._run_in_parts(idx, data_batch, part_size=self.part_size)
        self._in_iteration = False

    def _run_in_parts(self, idx: int, batch: Mapping[str, Any], *, part_size: int) -> None:
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=batch)
        outputs = train_in_parts(self.runner.model, batch, self.runner.optim_wrapper,
                                 part_size=part_size)
        self.runner.call_hook('after_train_iter', batch_idx=idx, data_batch=batch, outputs=outputs)
        self._iter += 1

    def _begin(self) -> None:
        """Bring random states, gradients and logs to where training starts or goes on."""
        if self.runner.val_loop is None:
            self._validation_due = False  # due by a config that validated
        else:
            guard_workers(self.runner.val_loop.dataloader)
        resumption, self._resumption = self._resumption, None
        if resumption is not None:
            self._go_on(resumption)
        elif self._iter == 0:
            run_logs.start_anew(self.runner)
            random_state.seed_all(derive_seed(self.seed, _TRAINING, get_rank()))
        elif self.runner._resume:
            self._go_on_without_state()

    def _go_on(self, resumption: Resumption) -> None:
        notes = run_logs.rewind(self.runner, resumption.logs, iteration=self._iter)
        if resumption.process is None:
            random_state.seed_all(derive_seed(self.seed, _TRAINING, get_rank(), self._iter,
                                              get_world_size()))
        else:
            notes += process_state.apply(self.runner, resumption.process)
            if resumption.process['gradients']:
                self.runner.logger.info('gradients accumulated before the stop are restored; none '
                                        'is lost, whatever was warned of above')
        for note in notes:
            self.runner.logger.warning(f'not resumed exactly: {note}')

    def _go_on_without_state(self) -> None:
        """Find the place in the epoch of a checkpoint that MMEngine wrote."""
        batches = self._iter - self._epoch * len(self.dataloader)
        if 0 < batches <= len(self.dataloader):
            self._batches_done = batches
            self._keys.start = min(batches * self.dataloader.batch_size, len(self._keys))

    def _validate(self) -> None:
        try:
            with random_state.kept() as self._random_aside:
                self.runner.val_loop.run()
        except EvaluationAbandoned:
            self._abandon_validation()
        finally:
            self._random_aside = None
        self._validation_due = False

    def _abandon_validation(self) -> None:
        """Leave for a signal, with the trained weights where a validation has averaged ones."""
        for hook in self.runner.hooks:
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(self.runner)
        for hook in self._interrupt_hooks():
            hook.leave(self.runner)

    def _validation_done(self) -> None:
        self._validation_due = False

    def _validates_after(self, epoch: int) -> bool:
        """Whether a validation follows when so many epochs are done."""
        interval = self.dynamic_intervals[bisect.bisect(self.dynamic_milestones, epoch + 1) - 1]
        return (self.runner.val_loop is not None and epoch >= self.val_begin
                and (epoch % interval == 0 or epoch == self._max_epochs))

    def _batches_in(self, samples: int) -> int:
        """Batches that so many samples of this process make."""
        size = self.dataloader.batch_size
        return samples // size if self.dataloader.drop_last else -(-samples // size)

    def _interrupt_hooks(self) -> List[InterruptHook]:
        return [hook for hook in self.runner.hooks if isinstance(hook, InterruptHook)]


class _EvaluationWatch(Hook):
    """Tells the loop that metrics are there, before any hook saves a checkpoint with them."""

    priority = 'VERY_HIGH'

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        self._done()


def run_seed(runner: Runner) -> int:
    """The run's seed, the same in all its processes."""
    differs = runner._randomness_cfg.get('diff_rank_seed', False)
    return runner.seed - (get_rank() if differs else 0)
