"""What is told of a training's health: in the log, `metrics.jsonl`, TensorBoard and `record.md`."""
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from ...checkpoints.config_text import parse_config_text
from ...checkpoints.folder import newest_first
from ...checkpoints.storage import read_checkpoint
from ...errors import CheckpointError
from ...experiments.start import changes_between
from ...monitoring.diagnosis import Finding, check_thresholds, diagnose, together
from ...monitoring.metrics_log import MetricsLog
from ...monitoring.record import Record, detail, write_record

_MAX_EVENTS = 200
_CHANGES_SHOWN = 30
_SEARCHED = 5  # checkpoints that are looked at for a good one


class HealthReport:
    """What was measured of a run, epoch by epoch, what happened in it, and what that means.

    Files are written by the first process alone; the others keep the same history.

    Args:
        thresholds: Of rules, by their names.

    Raises:
        ConfigError: A threshold is of no rule.
    """

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        check_thresholds(thresholds)
        self._thresholds = dict(thresholds)
        self._events: List[Dict[str, Any]] = []
        self._changes: List[str] = []
        self._findings: Sequence[Finding] = ()
        self._stopped: Optional[str] = None
        self.history: List[Dict[str, float]] = []
        """Measurements of each epoch."""

    # ---- the start of a run

    def compare_configs(self, text: str, config: Config) -> None:
        """Note what differs between the config of a loaded checkpoint and that of the run."""
        try:
            changes = changes_between(parse_config_text(text), config)
        except CheckpointError as error:
            self._changes = [f'unknown: {error}']
            return
        self._changes = [str(change) for change in changes[:_CHANGES_SHOWN]]
        if len(changes) > _CHANGES_SHOWN:
            self._changes.append(f'and {len(changes) - _CHANGES_SHOWN} more')

    def open(self, runner: Runner) -> None:
        """Write to the run's folder from now on; what lies beyond the run's place is cut off."""
        self._log = MetricsLog(Path(runner.work_dir))
        if is_main_process():
            self._log.cut(iteration=runner.iter)

    def state(self) -> Dict[str, Any]:
        """What a resumed run goes on with."""
        return dict(history=self.history, events=self._events)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        self.history, self._events = list(state['history']), list(state['events'])

    # ---- while it runs

    def add_line(self, kind: str, *, epoch: int, iteration: int, values: Mapping[str, Any],
                 again: bool = False) -> None:
        """A line of `metrics.jsonl`: see `MetricsLog.write`."""
        if is_main_process():
            self._log.write(kind, epoch=epoch, iteration=iteration, values=values, again=again)

    def add_event(self, runner: Runner, event: str, **details: Any) -> None:
        """Something happened: to the log, `metrics.jsonl` and the record."""
        record = dict(epoch=runner.epoch + 1, iter=runner.iter + 1, event=event,
                      **{key: value for key, value in details.items() if value})
        self._events = (self._events + [record])[-_MAX_EVENTS:]
        runner.logger.warning('health: ' + '; '.join(
            f'{key}: {detail(key, value)}' if key != 'event' else str(value)
            for key, value in record.items()))
        self.add_line('event', epoch=record['epoch'], iteration=record['iter'],
                      values={k: v for k, v in record.items() if k not in ('epoch', 'iter')})

    def add_epoch(self, runner: Runner, measured: Dict[str, float]) -> None:
        """What was measured of an epoch: diagnose it, and rewrite the record."""
        self.history.append(measured)
        runner.visualizer.add_scalars(_tags(measured), step=runner.iter)
        self._diagnose(runner)
        self.add_line('epoch', epoch=int(measured['epoch']), iteration=runner.iter,
                      values=dict(measurements=measured,
                                  findings=[finding.message for finding in self._findings]))
        self._write_record(runner, epoch=runner.epoch + 1)

    def add_validation(self, runner: Runner, measured: Dict[str, float], *,
                       metrics: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
        """Add a validation to its epoch, diagnose that again, and rewrite the record.

        Args:
            runner: The run.
            measured: Of the predictions.
            metrics: Results of the validation.
            counts: Of the predictions, in all processes.
        """
        runner.visualizer.add_scalars(_tags(measured), step=runner.iter)
        numbers = {name: float(value) for name, value in metrics.items()
                   if isinstance(value, (int, float))}
        self.add_line('val', epoch=runner.epoch, iteration=runner.iter, again=True,
                      values={**numbers, 'predictions': counts})
        if self.history:
            self.history[-1].update(measured)
            self.history[-1].update({f'validation.metric.{name}': value
                                     for name, value in numbers.items()})
            self._diagnose(runner)
            self._write_record(runner, epoch=runner.epoch)

    def stop(self, runner: Runner, reason: str, measured: Dict[str, float], *,
             good: Optional[Path]) -> str:
        """Write the record of a run that is to stop.

        Args:
            runner: The run.
            reason: Why it stops.
            measured: Of the epoch so far.
            good: The checkpoint to start again from, where there is one.

        Returns:
            What to tell the user.
        """
        self._stopped = reason + (f'; the last good checkpoint is {good}' if good else
                                  '; no good checkpoint was saved before')
        self.history.append(measured)
        self._diagnose(runner)
        self._write_record(runner, epoch=runner.epoch)
        again = f'--ckpt {good}' if good else '--restart'
        return (f'{self._stopped}: see record.md in {runner.work_dir} for the likely causes, '
                f'change what it says, then start again with {again}')

    def _diagnose(self, runner: Runner) -> None:
        known = {finding.message for finding in self._findings}
        self._findings = diagnose(self.history[-1], thresholds=self._thresholds)
        new = [finding for finding in self._findings if finding.message not in known]
        for finding, others in together(new):
            first = finding.explanations[0]
            same = f' (and {len(others)} more like it)' if others else ''
            why = 'none of the causes looked at fits what was measured'
            if not first.refuted:
                sure = 'likely' if first.likely else 'possibly'
                why = f'{sure}: {first.cause}; try: {first.change}'
            runner.logger.warning(f'health: {finding.message}{same}; {why}')

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
                            history=self.history, findings=self._findings, events=self._events,
                            stopped=self._stopped), Path(runner.work_dir))


def last_good_checkpoint(runner: Runner) -> Optional[Path]:
    """The newest checkpoint of a run that is whole and whose weights are all finite."""
    hooks = [hook for hook in runner.hooks if hasattr(hook, 'checkpoint_folder')]
    folder = hooks[0].checkpoint_folder(runner) if hooks else runner.work_dir
    template = getattr(hooks[0], 'filename_tmpl', None) if hooks else None
    for found in newest_first(folder, count=_SEARCHED, skipped=runner.logger.warning,
                              template=template):
        weights = read_checkpoint(found.path, mmap=True).get('state_dict') or {}
        if all(bool(w.isfinite().all()) for w in weights.values() if w.is_floating_point()):
            return found.path
    return None


def _tags(measured: Mapping[str, float]) -> Dict[str, float]:
    """Measurements under names that TensorBoard groups: `epoch/losses/total.mean`."""
    return {f'epoch/{name.replace(".", "/", 1)}': value for name, value in measured.items()}
