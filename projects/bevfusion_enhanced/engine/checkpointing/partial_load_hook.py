"""Loading that survives a change of architecture, and checkpoints that say what they are."""
import os.path as osp
from dataclasses import replace
from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from mmdet3d.registry import HOOKS
from mmengine.dist import master_only
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from ...checkpoints import report as load_report
from ...checkpoints.explain import Change, safe_to_resume
from ...checkpoints.fingerprint import META_KEY, class_lists_of
from ...checkpoints.geometry import geometry_of
from ...checkpoints.loading import LoadPlan, LoadSource, parse_sources, plan_load
from ...checkpoints.matching import LoadReport, require_complete, require_related
from ...checkpoints.storage import read_checkpoint
from ...errors import CheckpointError, ConfigError
from ..resume import optimizer_state, schedule_state, training_state
from ..resume.resume_plan import (
    KEYS_OF_THE_START,
    RESTART_KEY,
    changes_of_meaning,
    changes_since,
    check_schedule,
    fingerprint_of_run,
    newest_in,
    require_resumable,
    restart_record,
)
from ..resume.schedule_replay import stretch
from ..runs.run_folder import refuse_overwriting, refuse_used_folder
from .checkpoint_saving import SafeCheckpointHook
from .fresh_modules import FreshModulesHook, FreshOptions, group_lines, split_groups
from .load_first_hook import load_before_all_others, loads_before_all_others, put_in_front

_LOAD, _RESUME, _TEST = 'load', 'resume', 'test'
_CHECKPOINTS = 'hold'
_MORE_EPOCHS = {_CHECKPOINTS: None, 'stretch': stretch, 'restart': schedule_state.restart}


@HOOKS.register_module()
class PartialLoadCheckpointHook(SafeCheckpointHook):
    """MMEngine's CheckpointHook, for models whose architecture changes between runs.

    - `load_from` takes every tensor that fits by name and shape, leaves the rest at its own
      initialisation, and reports both in the log and in `load_report.json` and `.md` of the run's
      folder. It may be a list: each module then comes from the first file that holds it, or from
      the one assigned to it ('encoders.camera=FILE').
    - `resume` goes on as if never stopped; see `on_architecture_change` for when it cannot. The
      optimizer's state is matched by the names of the parameters.
    - Before a test every tensor of the model has to be found.
    - Checkpoints carry a fingerprint of what was trained, and never overwrite those of an earlier
      run.

    Args:
        on_architecture_change: What an explicit `resume` from another architecture does: 'load'
            treats it as `load_from` and says so, 'error' stops. An automatic one always stops.
        resume_schedule: Whether a resumed run goes on with the checkpoint's schedule. Otherwise
            weights, moments and epoch are kept, and the schedule of the config starts from there:
            schedulers that end with the run span what is left of it, the others count from there.
        more_epochs: What becomes of that schedule where the run is now to be of another length:
            'hold' leaves it, 'stretch' takes the one of a run of that length, at the epoch that
            was reached, 'restart' starts the config's anew as `resume_schedule=False` does.
        fresh_lr_mult: Rate of the fresh parameters after a load in part, as a multiple.
        freeze_reused_epochs: Epochs after a load in part during which what was reused stands
            still, running statistics of norms included.
        fresh_warmup_iters: Iterations of a linear warm-up of the fresh parameters alone, on top
            of the schedule.
        keep_optimizer_state: Whether a load takes along the moments of the parameters that are
            reused as they are.
        source_classes: Classes of the checkpoints that `load_from` names, under `classes` and
            `map_classes`, where they do not say themselves.
        interval: This and the following: see `SafeCheckpointHook`.

    Raises:
        ConfigError: An option has a value that it cannot have.
    """

    def __init__(self, *, on_architecture_change: str = 'load', resume_schedule: bool = True,
                 more_epochs: str = 'hold', fresh_lr_mult: float = 1.,
                 freeze_reused_epochs: int = 0, fresh_warmup_iters: int = 0,
                 keep_optimizer_state: bool = False,
                 source_classes: Optional[Mapping[str, Sequence[str]]] = None,
                 interval: int = -1, by_epoch: bool = True, save_optimizer: bool = True,
                 save_param_scheduler: bool = True, out_dir: Optional[str] = None,
                 max_keep_ckpts: int = -1, save_last: bool = True,
                 save_best: Union[str, List[str], None] = None,
                 rule: Union[str, List[str], None] = None, filename_tmpl: Optional[str] = None,
                 published_keys: Union[str, List[str], None] = None, save_begin: int = 0,
                 backend_args: Optional[dict] = None) -> None:
        if on_architecture_change not in ('load', 'error'):
            raise ConfigError('PartialLoadCheckpointHook.on_architecture_change is '
                              f'{on_architecture_change!r}; choose load or error')
        if more_epochs not in _MORE_EPOCHS:
            raise ConfigError(f'PartialLoadCheckpointHook.more_epochs is {more_epochs!r}; choose '
                              f'one of {", ".join(_MORE_EPOCHS)}')
        super().__init__(
            interval=interval, by_epoch=by_epoch, save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler, out_dir=out_dir,
            max_keep_ckpts=max_keep_ckpts, save_last=save_last, save_best=save_best, rule=rule,
            filename_tmpl=filename_tmpl, published_keys=published_keys, save_begin=save_begin,
            backend_args=backend_args)
        self.on_architecture_change = on_architecture_change
        self.resume_schedule = resume_schedule
        self.more_epochs = more_epochs
        self._schedule = _CHECKPOINTS
        self.keep_optimizer_state = keep_optimizer_state
        self.source_classes = dict(source_classes or {})
        self.fresh_options = FreshOptions(lr_mult=fresh_lr_mult, freeze_epochs=freeze_reused_epochs,
                                          warmup_iters=fresh_warmup_iters)
        self._mode = _LOAD
        self._sources: Tuple[LoadSource, ...] = ()
        self._optimizer_changed = False
        self._fresh: Optional[Tuple[str, ...]] = None  # None: this run began from nothing

    # What is loaded, decided before anything is.

    def before_run(self, runner: Runner) -> None:
        """Decide between loading, resuming and testing, and refuse what would lose something."""
        load_before_all_others(runner, self._load)
        if not isinstance(runner._train_loop, BaseLoop):
            self._mode, self._sources = _TEST, _sources(runner._load_from)
        elif runner.iter > 0:  # this runner trained before; it goes on
            self._mode = _LOAD
        elif not runner._resume:
            self._plan_load(runner, _sources(runner._load_from))
        else:
            self._plan_resume(runner)

    def _plan_load(self, runner: Runner, sources: Tuple[LoadSource, ...]) -> None:
        refuse_used_folder(self.checkpoint_folder(runner), template=self.filename_tmpl)
        self._mode, self._sources = _LOAD, sources
        runner._resume = False
        if sources:
            runner._load_from = sources[0].path
        elif self.fresh_options.active:
            runner.logger.warning('nothing is loaded, so nothing is reused: fresh_lr_mult, '
                                  'freeze_reused_epochs and fresh_warmup_iters have no effect')

    def _plan_resume(self, runner: Runner) -> None:
        """Go on where the checkpoint's training and this one agree; otherwise say what differs."""
        explicit, folder = runner._load_from is not None, self.checkpoint_folder(runner)
        asked = str(runner._load_from) if explicit else folder
        named = explicit and not osp.isdir(asked)
        path = asked if named else newest_in(asked, runner, template=self.filename_tmpl)
        checkpoint = read_checkpoint(path, mmap=True)
        changes = changes_since(checkpoint, runner, _model(runner), source=path,
                                class_lists=self._class_lists(runner))
        if not safe_to_resume(changes):
            self._plan_for_another_architecture(
                runner, path, '; '.join(str(c) for c in changes if not safe_to_resume([c])),
                explicit=explicit)
            return
        require_resumable(checkpoint, source=path)
        if named or osp.realpath(osp.dirname(path)) != osp.realpath(folder):
            refuse_overwriting(folder, path, template=self.filename_tmpl)
        self._schedule = self._choose_schedule(changes)
        notes = () if self._schedule == 'restart' else check_schedule(checkpoint, runner,
                                                                      source=path)
        for change in (c for c in changes if c.key not in KEYS_OF_THE_START):
            runner.logger.info(f'changed since {path}: {change}')
        for note in notes if self._schedule == _CHECKPOINTS else ():
            runner.logger.warning(note)
        self._optimizer_changed = any(c.key.startswith('optim_wrapper') for c in changes)
        self._mode, self._sources = _RESUME, (LoadSource(path),)
        runner._load_from = path

    def _choose_schedule(self, changes: Collection[Change]) -> str:
        """One of `_MORE_EPOCHS`."""
        if not self.resume_schedule:
            return 'restart'
        longer = any(change.key == 'train_cfg.max_epochs' for change in changes)
        return self.more_epochs if longer else _CHECKPOINTS

    def _plan_for_another_architecture(self, runner: Runner, path: str, changes: str, *,
                                       explicit: bool) -> None:
        if not explicit:
            raise CheckpointError(
                f'cannot resume {path}: the architecture changed ({changes}); start a new run with '
                f'--work-dir NEW --load-from {path}')
        what = f'the architecture differs from that of {path} ({changes})'
        if self.on_architecture_change == 'error':
            raise CheckpointError(f'cannot resume: {what}; use --load-from to take the weights '
                                  'that fit')
        runner.logger.warning(f'{what}: --resume acts as --load-from, with the weights that fit, '
                              'a fresh optimizer and schedule, from epoch 1')
        self._plan_load(runner, (LoadSource(path),))

    # What happens to each tensor.

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Load, unless `before_run` arranged for that to happen before all other hooks."""
        if not loads_before_all_others(runner):
            self._load(runner, checkpoint)

    def _load(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Replace the checkpoint's weights by a state dict that is complete for the model."""
        model = _model(runner)
        sources = self._sources or (LoadSource('checkpoint'),)
        plan = plan_load(
            model.state_dict(), [(sources[0], checkpoint), *sources[1:]],
            parameters=dict(model.named_parameters()).keys(), geometry=geometry_of(runner.cfg),
            class_lists=self._class_lists(runner), source_classes=self.source_classes)
        if self._mode == _TEST:
            require_complete(plan.report)
        else:
            require_related(plan.report)
        self._check_classes(runner, checkpoint, plan.report, sources[0].path)
        if self._mode == _RESUME:
            self._resume_training(runner, checkpoint, model, sources[0].path)
        else:
            meaning = changes_of_meaning(checkpoint, runner, source=sources[0].path)
            report = replace(plan.report, meaning=(*plan.report.meaning, *meaning))
            _tell(runner, report, save=self._mode == _LOAD)
        if self._mode == _LOAD and isinstance(runner.optim_wrapper, OptimWrapper):
            self._start_training(runner, checkpoint, model, plan, sources)
        checkpoint['state_dict'] = plan.weights

    def _start_training(self, runner: Runner, checkpoint: Dict[str, Any], model: nn.Module,
                        plan: LoadPlan, sources: Sequence[LoadSource]) -> None:
        """Parameter groups and moments of a run that starts from a load."""
        self._train_fresh_apart(runner, model, (*plan.report.fresh, *plan.report.partly_fresh))
        if self.keep_optimizer_state:
            files = {source.path: checkpoint if source.path == sources[0].path else
                     read_checkpoint(source.path, mmap=True) for source in sources}
            for note in optimizer_state.carry_over(tuple(files.items()), plan.weights,
                                                   runner.optim_wrapper, model):
                runner.logger.info(note)

    def _resume_training(self, runner: Runner, checkpoint: Dict[str, Any], model: nn.Module,
                         path: str) -> None:
        """Bring optimizer and schedule into the form in which this run takes them up."""
        for note in training_state.restore(runner, checkpoint.get(training_state.ENTRY, {})):
            runner.logger.warning(f'not resumed exactly: {note}')
        fresh = restart_record(checkpoint).get('fresh')
        if fresh is not None:
            self._train_fresh_apart(runner, model, fresh)
        renew = _MORE_EPOCHS[self._schedule]
        if renew is not None:
            checkpoint.pop('param_schedulers', None)
            for note in renew(runner, epoch=checkpoint['meta']['epoch'],
                              iteration=checkpoint['meta']['iter']):
                runner.logger.info(note)
        for note in optimizer_state.adopt(
                checkpoint, runner.optim_wrapper, model, source=path,
                keep_schedule=renew is None, keep_options=not self._optimizer_changed):
            runner.logger.info(note)
        if 'param_schedulers' in checkpoint:
            schedule_state.fit_to_groups(checkpoint['param_schedulers'], checkpoint['optimizer'],
                                         runner)

    def _train_fresh_apart(self, runner: Runner, model: nn.Module, fresh: Collection[str]) -> None:
        """Apply the options for fresh modules, and remember the names for a resume."""
        self._fresh = tuple(fresh)
        if self.fresh_options.splits_groups:
            split_groups(runner, model, fresh, lr_mult=self.fresh_options.lr_mult)
        if self.fresh_options.active:
            put_in_front(runner, FreshModulesHook(options=self.fresh_options, model=model,
                                                  fresh=fresh))
        else:
            for line in group_lines(runner.optim_wrapper, model, fresh):
                runner.logger.info(line)

    def _check_classes(self, runner: Runner, checkpoint: Dict[str, Any], report: LoadReport,
                       path: str) -> None:
        """Classes at other places mean other things, unless the head was put together by name."""
        by_name = {match.class_list for match in report.classes if not match.problem}
        old, new = class_lists_of(checkpoint.get('meta')), self._class_lists(runner)
        for name in set(old) & set(new) - by_name:
            if old[name] != new[name]:
                message = f'{name} of {path} are {old[name]}, those of this run {new[name]}'
                if self._mode == _TEST:
                    raise CheckpointError(f'{message}; test with the classes it was trained on')
                runner.logger.warning(f'{message}: weights are taken by position, not by name')

    # What is written.

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Add the fingerprint, and what a resume needs beyond MMEngine's entries."""
        record = fingerprint_of_run(
            runner, checkpoint['state_dict'], class_lists=self._class_lists(runner),
            config_text=checkpoint['meta'].get('cfg', ''))
        fresh = None if self._fresh is None else list(self._fresh)
        record[RESTART_KEY] = dict(schedulers=schedule_state.describe(runner), fresh=fresh)
        checkpoint['meta'][META_KEY] = record
        if 'optimizer' in checkpoint:
            checkpoint[optimizer_state.NAMES] = optimizer_state.describe(
                runner.optim_wrapper, _model(runner))

    def _class_lists(self, runner: Runner) -> Dict[str, List[str]]:
        loop = runner._test_loop if self._mode == _TEST else runner._train_loop
        if self._mode == _TEST and not isinstance(loop, BaseLoop):
            loop = runner._val_loop
        dataset = loop.dataloader.dataset if isinstance(loop, BaseLoop) else None
        return class_lists_of(getattr(dataset, 'metainfo', None))


def _model(runner: Runner) -> nn.Module:
    """The model itself, out of DistributedDataParallel and of test-time augmentation."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.module if isinstance(model, BaseTTAModel) else model


def _sources(load_from: Union[str, Sequence[str], None]) -> Tuple[LoadSource, ...]:
    if load_from is None:
        return ()
    specs = [load_from] if isinstance(load_from, str) else [str(spec) for spec in load_from]
    return parse_sources(specs)


def _tell(runner: Runner, report: LoadReport, *, save: bool) -> None:
    """The report in the log and, for a training, in the run's folder."""
    for line in load_report.log_lines(report):
        runner.logger.info(line)
    runner.logger.info(f'load report:\n{load_report.table(report)}')
    if save:
        _save_report(report, runner.work_dir)


@master_only
def _save_report(report: LoadReport, folder: str) -> None:
    load_report.save(report, folder)
