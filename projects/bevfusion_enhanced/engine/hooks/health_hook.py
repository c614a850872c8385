"""Watches a training: what is measured of it, when, and what is done about a sick one."""
import copy
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from mmdet3d.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from ...errors import ConfigError, TrainingError
from ...monitoring.epoch import EpochMeters, default_warn_norm, rates_by_label
from ...monitoring.predictions import PredictionMeter, add_counts
from ...monitoring.statistics import compare_with_previous
from ...monitoring.step_watch import StepReading, StepWatch, group_labels
from ...monitoring.weights import BufferGuard, statistics_of, weight_changes
from ..parallel.sharding import is_sharded
from .health_report import HealthReport, last_good_checkpoint

STATE = 'health'


@HOOKS.register_module()
class HealthHook(Hook):
    """Measures losses, gradients, updates and predictions, and says when a training is sick.

    A step whose loss or gradient is not finite is left out on all processes, counted, and its
    samples are written down; running statistics that it poisoned are put back. At every epoch
    `record.md` is rewritten; everything is also in `metrics.jsonl` and TensorBoard. What is
    measured, and by which names, is told in `monitoring`; what it means in `monitoring/rules.py`.
    With a sharded model it leaves the run, with a warning.

    Args:
        interval: Iterations between two lines in `metrics.jsonl` and TensorBoard.
        cosine_interval: Iterations between two looks at the cosine of the tasks' gradients on the
            shared map, each of which costs a backward pass through the heads; 0 for never.
        update_interval: Iterations between two measurements of update over weight, each of which
            takes a copy of all weights; 0 for never.
        warn_norm: Norm of the gradient above which a step is counted; twice `clip_grad.max_norm`
            where left out, or 100 without clipping.
        warn_share: Share of such steps above which there is a warning.
        auxiliary_ratio: Ratio of auxiliary to main losses above which there is a warning.
        max_bad_steps: So many steps in a row that are not finite stop the run.
        score_threshold: Score from which a predicted box is counted in validation.
        map_threshold: Probability from which a predicted map cell is counted in validation.
        thresholds: Thresholds of further rules, by the rules' names.

    Raises:
        ConfigError: An interval is negative, or a threshold is of no rule.
    """

    priority = 'NORMAL'

    def __init__(self, *, interval: int = 50, cosine_interval: int = 200,
                 update_interval: int = 100, warn_norm: Optional[float] = None,
                 warn_share: float = 0.05, auxiliary_ratio: float = 5.0, max_bad_steps: int = 10,
                 score_threshold: float = 0.1, map_threshold: float = 0.35,
                 thresholds: Optional[Mapping[str, float]] = None) -> None:
        if interval < 1 or max_bad_steps < 1 or min(cosine_interval, update_interval) < 0:
            raise ConfigError('HealthHook: interval and max_bad_steps must be 1 or more, '
                              'cosine_interval and update_interval 0 or more')
        self._interval, self._cosine_interval = interval, cosine_interval
        self._update_interval, self._max_bad_steps = update_interval, max_bad_steps
        self._warn_norm = warn_norm
        self._report = HealthReport({'gradient_over_warn': warn_share,
                                     'auxiliary_dominates': auxiliary_ratio,
                                     **(thresholds or {})})
        self._score_threshold, self._map_threshold = score_threshold, map_threshold
        self._watch: Optional[StepWatch] = None
        self._bad_row = 0
        self._resumed = False
        self._stop: Optional[str] = None

    # ---- the start of a run

    def before_run(self, runner: Runner) -> None:
        """Step aside where the parameters are dealt out: whole gradients are nowhere to read."""
        if is_sharded(runner.model):
            runner._hooks = [hook for hook in runner._hooks if hook is not self]
            runner.logger.warning('HealthHook reads whole gradients, which no process of a sharded '
                                  'model has: health is not measured in this run')

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Note what differs between the run that wrote the checkpoint and this one."""
        text = (checkpoint.get('meta') or {}).get('cfg')
        if isinstance(text, str):
            self._report.compare_configs(text, runner.cfg)

    def before_train(self, runner: Runner) -> None:
        """Stand before the optimizer's step, and go on with what a resumed run had measured.

        Raises:
            ConfigError: The run has several optimizers.
        """
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ConfigError('HealthHook watches one optimizer, but optim_wrapper holds several; '
                              'leave the hook out')
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._device = next(self._model.parameters()).device
        self._watch = StepWatch(
            self._model, runner.optim_wrapper, agree=_agree if get_world_size() > 1 else None,
            on_step=lambda reading: self._after_step(runner, reading))
        self._meters = EpochMeters(modules=self._watch.modules,
                                   ratio_names=self._watch.ratio_names)
        self._tokens: List[List[str]] = []
        self._buffers = BufferGuard(self._model)
        self._predictions = PredictionMeter(
            classes=self._class_names(runner), score_threshold=self._score_threshold,
            map_threshold=self._map_threshold)
        self._weights = statistics_of(self._model)
        self._loaded_changes = 0
        state = runner.message_hub.pop_info(STATE)
        self._report.open(runner)
        if state and runner._resume:
            self._go_on(runner, state)
        self._watch.install()

    def _go_on(self, runner: Runner, state: Mapping[str, Any]) -> None:
        """Restore the meters, and compare the weights with what they were when they were saved."""
        self._resumed = True
        self._report.load(state)
        self._bad_row = state['bad_row']
        self._meters.load(state['meters'], self._device, first=is_main_process())
        changes = weight_changes(state['weights'], self._weights,
                                 same=state['iteration'] == runner.iter)
        self._loaded_changes = len(changes)
        if changes:
            self._report.add_event(
                runner, 'weights are not those that were saved',
                tensors=[str(change) for change in changes[:5]], count=len(changes))

    # ---- every iteration

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Decide what is measured of this iteration, and remember whose it is."""
        self._tokens.append(tokens_of(data_batch))
        ends = (0, len(runner.train_dataloader) - 1)  # of the epoch: its first and last rates
        if batch_idx in ends or _due(runner.iter, self._interval):
            self._meters.rates.add(self._learning_rates(runner))
        if _due(runner.iter, self._cosine_interval):
            probe = getattr(self._model, 'gradient_probe', None)
            if probe is not None:
                probe.due = True
        if _due(runner.iter, self._update_interval):
            self._watch.measure_update = True

    def _after_step(self, runner: Runner, reading: StepReading) -> None:
        """Take the reading of an update; called between the backward pass and `zero_grad`."""
        tokens, self._tokens = self._tokens, []
        if reading.overflow:
            self._meters.gradients.overflow += 1
        elif reading.skipped:
            self._after_bad_step(runner, reading, tokens)
        else:
            self._bad_row = 0
            self._meters.add_step(runner.iter + 1, reading)

    def _after_bad_step(self, runner: Runner, reading: StepReading,
                        tokens: Sequence[Sequence[str]]) -> None:
        self._bad_row += 1
        gradients = self._meters.gradients
        gradients.nonfinite += 1
        gradients.longest_row = max(gradients.longest_row, self._bad_row)
        guilty = [sample for sample, finite in zip(tokens, reading.loss_finite) if not finite]
        suspects = _everywhere(guilty)
        if not any(suspects):  # the losses were finite: it may be any of them
            suspects = _everywhere(tokens)
        self._report.add_event(runner, 'step skipped: ' + (
            'the loss is not finite' if not all(reading.loss_finite) else
            'the gradient is not finite' if not reading.gradient_finite else
            'the loss of another process is not finite'),
            samples=[token for process in suspects for batch in process for token in batch],
            modules=list(reading.bad_modules), restored=self._buffers.restore())
        if self._bad_row >= self._max_bad_steps:
            self._stop = (f'{self._bad_row} steps in a row had a loss or gradient that is not '
                          f'finite, up to iteration {runner.iter + 1}')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[Mapping[str, torch.Tensor]] = None) -> None:
        """Add the losses up; write a line at the interval.

        Raises:
            TrainingError: Too many steps in a row were not finite.
        """
        iteration = runner.iter + 1
        self._meters.add_logged(iteration, outputs or {})
        if self._stop:
            good = last_good_checkpoint(runner) if is_main_process() else None
            raise TrainingError(self._report.stop(runner, self._stop, self._measure(runner),
                                                  good=good))
        if iteration % self._interval == 0:
            self._write_line(runner, iteration, list(outputs or {}))
            if self._bad_row == 0 and self._buffers.finite():
                self._buffers.keep()

    def _write_line(self, runner: Runner, iteration: int, names: Sequence[str]) -> None:
        hub = runner.message_hub
        gradients = {f'gradients/{name}': norm
                     for name, norm in self._meters.gradients.newest.items()}
        rates = {f'learning_rate/{name}': row[1]
                 for name, row in self._meters.rates.rates.items()}
        losses = {name: hub.get_scalar(f'train/{name}').mean(self._interval) for name in names
                  if f'train/{name}' in hub.log_scalars}
        runner.visualizer.add_scalars({**gradients, **rates}, step=iteration)
        self._report.add_line('train', epoch=runner.epoch + 1, iteration=iteration,
                              values={**losses, **gradients, **rates})

    def _learning_rates(self, runner: Runner) -> Dict[str, float]:
        """The highest rate of each group's name."""
        groups = runner.optim_wrapper.optimizer.param_groups
        names = {id(p): name for name, p in self._model.named_parameters()}
        return rates_by_label(group_labels(groups, names), groups)

    # ---- the end of an epoch

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure the epoch, and tell it."""
        measured = self._measure(runner)
        self._meters.reset()
        self._resumed, self._loaded_changes = False, 0
        self._report.add_epoch(runner, measured)

    def _measure(self, runner: Runner) -> Dict[str, float]:
        """Measurements of the epoch, of all processes together."""
        history = self._report.history
        self._meters.add_class_counts(getattr(self._model, 'heads', {}))
        weights = statistics_of(self._model)
        changes = weight_changes(self._weights if history else {}, weights)
        self._weights = weights
        measured = {'epoch': float(runner.epoch + 1), 'steps.resumed': float(self._resumed),
                    'weights.changed': float(len(changes)),
                    'weights.nonfinite': float(sum(c.kind == 'not finite' for c in changes)),
                    'weights.changed_on_load': float(self._loaded_changes)}
        clipping = getattr(runner.optim_wrapper, 'clip_grad_kwargs', None)
        measured.update(self._meters.measure(
            _everywhere(self._meters.part()), classes=self._class_names(runner),
            warn_norm=self._warn_norm or default_warn_norm(clipping)))
        measured.update(compare_with_previous(
            measured, history[-1] if history else None, resumed=self._resumed))
        return measured

    def _class_names(self, runner: Runner) -> Dict[str, Sequence[str]]:
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
        return {'object': metainfo.get('classes') or (), 'map': metainfo.get('map_classes') or ()}

    # ---- validation

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                       outputs: Optional[Sequence[Any]] = None) -> None:
        """Count the predictions."""
        if self._watch is not None:
            self._predictions.add(outputs or ())

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Measure the predictions, and tell it with the metrics."""
        if self._watch is None:
            return
        counts: Dict[str, Any] = {}
        for part in _everywhere(self._predictions.take()):
            add_counts(counts, part)
        self._report.add_validation(runner, self._predictions.measure(counts),
                                    metrics=metrics or {}, counts=counts)

    # ---- what survives

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Put what was measured so far into the checkpoint's message hub, as plain data."""
        if self._watch is None or 'message_hub' not in checkpoint:
            return
        hub = checkpoint['message_hub']
        checkpoint['message_hub'] = {
            **hub, 'runtime_info': {**hub['runtime_info'], STATE: self._state(checkpoint)},
            'resumed_keys': {**hub['resumed_keys'], STATE: True}}

    def _state(self, checkpoint: Mapping[str, Any]) -> Dict[str, Any]:
        self._meters.add_class_counts(getattr(self._model, 'heads', {}))
        return copy.deepcopy(dict(
            iteration=(checkpoint.get('meta') or {}).get('iter', -1), **self._report.state(),
            bad_row=self._bad_row, weights=statistics_of(self._model),
            meters=self._meters.state()))

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizer wrapper as it was."""
        if self._watch is not None:
            self._watch.remove()


def tokens_of(batch: Any) -> List[str]:
    """Tokens of a batch's samples, as the data loader gives it; indices where there are none."""
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    metainfos = [getattr(sample, 'metainfo', {}) for sample in samples or ()]
    return [str(info.get('token', info.get('sample_idx', '?'))) for info in metainfos]


def _due(iteration: int, interval: int) -> bool:
    return interval > 0 and (iteration + 1) % interval == 0


def _agree(flag: torch.Tensor) -> None:
    """Make a flag that of the process where it is largest."""
    all_reduce(flag, op='max')


def _everywhere(value: Any) -> List[Any]:
    """The value of every process."""
    return all_gather_object(value) if get_world_size() > 1 else [value]
