"""Watches a training: what is measured of it, what that means, and what is done about it."""
import copy
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from mmdet3d.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from ...checkpoints.config_text import parse_config_text
from ...checkpoints.folder import newest_first
from ...checkpoints.storage import read_checkpoint
from ...errors import CheckpointError, ConfigError, TrainingError
from ...experiments.start import changes_between
from ...monitoring.diagnosis import Finding, check_thresholds, diagnose, together
from ...monitoring.epoch import EpochMeters, default_warn_norm, rates_by_label
from ...monitoring.metrics_log import MetricsLog
from ...monitoring.predictions import PredictionMeter, add_counts
from ...monitoring.record import Record, detail, write_record
from ...monitoring.statistics import compare_with_previous
from ...monitoring.step_watch import StepReading, StepWatch, group_labels
from ...monitoring.weights import BufferGuard, statistics_of, weight_changes
from ..parallel.sharding import is_sharded

STATE = 'health'
_MAX_EVENTS = 200
_CHANGES_SHOWN = 30
_SEARCHED = 5  # checkpoints that are looked at for a good one


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
        self._thresholds = dict(gradient_over_warn=warn_share, auxiliary_dominates=auxiliary_ratio)
        self._thresholds.update(thresholds or {})
        check_thresholds(self._thresholds)
        self._score_threshold, self._map_threshold = score_threshold, map_threshold
        self._watch: Optional[StepWatch] = None
        self._history: List[Dict[str, float]] = []
        self._events: List[Dict[str, Any]] = []
        self._changes: List[str] = []
        self._findings: Sequence[Finding] = ()
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
        if not isinstance(text, str):
            return
        try:
            changes = changes_between(parse_config_text(text), runner.cfg)
        except CheckpointError as error:
            self._changes = [f'unknown: {error}']
            return
        self._changes = [str(change) for change in changes[:_CHANGES_SHOWN]]
        if len(changes) > _CHANGES_SHOWN:
            self._changes.append(f'and {len(changes) - _CHANGES_SHOWN} more')

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
        self._log = MetricsLog(Path(runner.work_dir))
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
        if is_main_process():
            self._log.cut(iteration=runner.iter)
        if state and runner._resume:
            self._go_on(runner, state)
        self._watch.install()

    def _go_on(self, runner: Runner, state: Mapping[str, Any]) -> None:
        """Restore the meters, and compare the weights with what they were when they were saved."""
        self._resumed = True
        self._history, self._events = list(state['history']), list(state['events'])
        self._bad_row = state['bad_row']
        self._meters.load(state['meters'], self._device, first=is_main_process())
        changes = weight_changes(state['weights'], self._weights,
                                 same=state['iteration'] == runner.iter)
        self._loaded_changes = len(changes)
        if changes:
            self._note(runner, 'weights are not those that were saved',
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
        self._note(runner, 'step skipped: ' + (
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
            self._give_up(runner)
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
        if is_main_process():
            self._log.write('train', epoch=runner.epoch + 1, iteration=iteration,
                            values={**losses, **gradients, **rates})

    def _learning_rates(self, runner: Runner) -> Dict[str, float]:
        """The highest rate of each group's name."""
        groups = runner.optim_wrapper.optimizer.param_groups
        names = {id(p): name for name, p in self._model.named_parameters()}
        return rates_by_label(group_labels(groups, names), groups)

    # ---- the end of an epoch

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure the epoch, diagnose, and rewrite the record."""
        measured = self._measure(runner)
        self._history.append(measured)
        self._meters.reset()
        self._resumed, self._loaded_changes = False, 0
        runner.visualizer.add_scalars(_tags(measured), step=runner.iter)
        self._diagnose(runner)
        if is_main_process():
            self._log.write('epoch', epoch=int(measured['epoch']), iteration=runner.iter,
                            values=dict(measurements=measured,
                                        findings=[f.message for f in self._findings]))
        self._write_record(runner, epoch=runner.epoch + 1)

    def _measure(self, runner: Runner) -> Dict[str, float]:
        """Measurements of the epoch, of all processes together."""
        self._meters.add_class_counts(getattr(self._model, 'heads', {}))
        weights = statistics_of(self._model)
        changes = weight_changes(self._weights if self._history else {}, weights)
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
            measured, self._history[-1] if self._history else None, resumed=self._resumed))
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
        """Add the validation to its epoch, diagnose again, and rewrite the record."""
        if self._watch is None:
            return
        counts: Dict[str, Any] = {}
        for part in _everywhere(self._predictions.take()):
            add_counts(counts, part)
        measured = self._predictions.measure(counts)
        runner.visualizer.add_scalars(_tags(measured), step=runner.iter)
        numbers = {name: float(value) for name, value in (metrics or {}).items()
                   if isinstance(value, (int, float))}
        measured.update({f'validation.metric.{name}': value for name, value in numbers.items()})
        if is_main_process():
            self._log.write('val', epoch=runner.epoch, iteration=runner.iter, again=True,
                            values={**numbers, 'predictions': counts})
        if self._history:
            self._history[-1].update(measured)
            self._diagnose(runner)
            self._write_record(runner, epoch=runner.epoch)

    # ---- telling

    def _diagnose(self, runner: Runner) -> None:
        known = {finding.message for finding in self._findings}
        self._findings = diagnose(self._history[-1], thresholds=self._thresholds)
        new = [finding for finding in self._findings if finding.message not in known]
        for finding, others in together(new):
            first = finding.explanations[0]
            same = f' (and {len(others)} more like it)' if others else ''
            why = 'none of the causes looked at fits what was measured'
            if not first.refuted:
                sure = 'likely' if first.likely else 'possibly'
                why = f'{sure}: {first.cause}; try: {first.change}'
            runner.logger.warning(f'health: {finding.message}{same}; {why}')

    def _note(self, runner: Runner, event: str, **details: Any) -> None:
        """Something happened: to the log, `metrics.jsonl` and the record."""
        record = dict(epoch=runner.epoch + 1, iter=runner.iter + 1, event=event,
                      **{key: value for key, value in details.items() if value})
        self._events = (self._events + [record])[-_MAX_EVENTS:]
        runner.logger.warning('health: ' + '; '.join(
            f'{key}: {detail(key, value)}' if key != 'event' else str(value)
            for key, value in record.items()))
        if is_main_process():
            self._log.write('event', epoch=record['epoch'], iteration=record['iter'],
                            values={k: v for k, v in record.items() if k not in ('epoch', 'iter')})

    def _write_record(self, runner: Runner, *, epoch: int) -> None:
        if not is_main_process():
            return
        source = runner._load_from or 'its own initialisation'
        info = {'run': runner.experiment_name, 'folder': runner.work_dir,
                'weights from': f'{source}{" (resumed)" if runner._resume else ""}'}
        if Path(runner.work_dir, 'load_report.md').is_file():
            info['what fitted'] = 'see load_report.md'
        write_record(Record(info=info, changes=self._changes, epoch=epoch,
                            max_epochs=runner.max_epochs, iteration=runner.iter,
                            history=self._history, findings=self._findings, events=self._events,
                            stopped=self._stop), Path(runner.work_dir))

    def _give_up(self, runner: Runner) -> None:
        """Write the record of a run that is stopped, and stop it."""
        good = self._last_good_checkpoint(runner) if is_main_process() else None
        self._stop += (f'; the last good checkpoint is {good}' if good else
                       '; no good checkpoint was saved before')
        self._history.append(self._measure(runner))
        self._diagnose(runner)
        self._write_record(runner, epoch=runner.epoch)
        again = f'--ckpt {good}' if good else '--restart'
        raise TrainingError(f'{self._stop}: see record.md in {runner.work_dir} for the likely '
                            f'causes, change what it says, then start again with {again}')

    def _last_good_checkpoint(self, runner: Runner) -> Optional[Path]:
        """The newest checkpoint that is whole and whose weights are all finite."""
        hooks = [hook for hook in runner.hooks if hasattr(hook, 'checkpoint_folder')]
        folder = hooks[0].checkpoint_folder(runner) if hooks else runner.work_dir
        template = getattr(hooks[0], 'filename_tmpl', None) if hooks else None
        for found in newest_first(folder, count=_SEARCHED, skipped=runner.logger.warning,
                                  template=template):
            weights = read_checkpoint(found.path, mmap=True).get('state_dict') or {}
            if all(bool(w.isfinite().all()) for w in weights.values() if w.is_floating_point()):
                return found.path
        return None

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
            iteration=(checkpoint.get('meta') or {}).get('iter', -1), history=self._history,
            events=self._events, bad_row=self._bad_row, weights=statistics_of(self._model),
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


def _tags(measured: Mapping[str, float]) -> Dict[str, float]:
    """Measurements under names that TensorBoard groups: `epoch/losses/total.mean`."""
    return {f'epoch/{name.replace(".", "/", 1)}': value for name, value in measured.items()}


def _due(iteration: int, interval: int) -> bool:
    return interval > 0 and (iteration + 1) % interval == 0


def _agree(flag: torch.Tensor) -> None:
    """Make a flag that of the process where it is largest."""
    all_reduce(flag, op='max')


def _everywhere(value: Any) -> List[Any]:
    """The value of every process."""
    return all_gather_object(value) if get_world_size() > 1 else [value]
