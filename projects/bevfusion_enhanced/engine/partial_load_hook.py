"""Loading that survives a change of architecture, and checkpoints that say what they are."""
import os.path as osp
from typing import Any, Dict, List, Optional, Sequence, Union

from mmdet3d.registry import HOOKS
from mmengine.dist import master_only
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from ..checkpoints import report as load_report
from ..checkpoints.fingerprint import META_KEY, class_lists_of, explain_change, make_fingerprint
from ..checkpoints.matching import (
    LoadReport,
    combine,
    fill,
    match,
    require_complete,
    require_related,
)
from ..checkpoints.state_dict import weights_of
from ..checkpoints.storage import read_checkpoint
from ..errors import CheckpointError, ConfigError
from .checkpoint_saving import SafeCheckpointHook
from .run_folder import find_newest, refuse_overwriting, refuse_used_folder

_LOAD, _RESUME, _TEST = 'load', 'resume', 'test'


@HOOKS.register_module()
class PartialLoadCheckpointHook(SafeCheckpointHook):
    """MMEngine's CheckpointHook, for models whose architecture changes between runs.

    - `load_from` takes every tensor that fits by name and shape, leaves the rest at its own
      initialisation, and reports both in the log and in `load_report.json` and `.md` of the run's
      folder. It may be a list: each module then comes from the first file that holds it.
    - `resume` goes on as if never stopped; see `on_architecture_change` for when it cannot.
    - Before a test every tensor of the model has to be found.
    - Checkpoints carry a fingerprint of what was trained, and never overwrite those of an earlier
      run.

    Args:
        on_architecture_change: What an explicit `resume` from another architecture does: 'load'
            treats it as `load_from` and says so, 'error' stops. An automatic one always stops.
        interval: This and the following: see `SafeCheckpointHook`.

    Raises:
        ConfigError: `on_architecture_change` is neither.
    """

    def __init__(self, *, on_architecture_change: str = 'load', interval: int = -1,
                 by_epoch: bool = True, save_optimizer: bool = True,
                 save_param_scheduler: bool = True, out_dir: Optional[str] = None,
                 max_keep_ckpts: int = -1, save_last: bool = True,
                 save_best: Union[str, List[str], None] = None,
                 rule: Union[str, List[str], None] = None, filename_tmpl: Optional[str] = None,
                 published_keys: Union[str, List[str], None] = None, save_begin: int = 0,
                 backend_args: Optional[dict] = None) -> None:
        if on_architecture_change not in ('load', 'error'):
            raise ConfigError('PartialLoadCheckpointHook.on_architecture_change is '
                              f'{on_architecture_change!r}; choose load or error')
        super().__init__(
            interval=interval, by_epoch=by_epoch, save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler, out_dir=out_dir,
            max_keep_ckpts=max_keep_ckpts, save_last=save_last, save_best=save_best, rule=rule,
            filename_tmpl=filename_tmpl, published_keys=published_keys, save_begin=save_begin,
            backend_args=backend_args)
        self.on_architecture_change = on_architecture_change
        self._mode = _LOAD
        self._sources: List[str] = []

    # What is loaded, decided before anything is.

    def before_run(self, runner: Runner) -> None:
        """Decide between loading, resuming and testing, and refuse what would lose something."""
        self._sources = _as_list(runner._load_from)
        if not isinstance(runner._train_loop, BaseLoop):
            self._mode = _TEST
        elif runner.iter > 0:  # this runner trained before; it goes on
            self._mode = _LOAD
        elif not runner._resume:
            self._plan_load(runner)
        elif self._sources:
            self._plan_explicit_resume(runner, self._sources[0])
        else:
            self._plan_automatic_resume(runner)

    def _plan_load(self, runner: Runner) -> None:
        refuse_used_folder(self._folder(runner))
        self._mode = _LOAD
        runner._resume = False
        if self._sources:
            runner._load_from = self._sources[0]

    def _plan_explicit_resume(self, runner: Runner, path: str) -> None:
        checkpoint = read_checkpoint(path, mmap=True)
        changes = self._changes(runner, checkpoint, path)
        if not changes:
            _require_resumable(checkpoint, path)
            refuse_overwriting(self._folder(runner), path)
            self._mode = _RESUME
            return
        what = f'the architecture differs from that of {path} ({"; ".join(changes)})'
        if self.on_architecture_change == 'error':
            raise CheckpointError(f'cannot resume: {what}; use --load-from to take the weights '
                                  'that fit')
        runner.logger.warning(f'{what}: --resume acts as --load-from, with the weights that fit, '
                              'a fresh optimizer and schedule, from epoch 1')
        self._plan_load(runner)

    def _plan_automatic_resume(self, runner: Runner) -> None:
        folder = self._folder(runner)
        newest = find_newest(folder, skipped=lambda reason: runner.logger.warning(
            f'skipped for resuming: {reason}'))
        if newest is None:
            raise CheckpointError(f'--resume: work dir {folder} holds no checkpoint that can be '
                                  'resumed; leave --resume out to start, or name a file')
        checkpoint = read_checkpoint(newest.path, mmap=True)
        changes = self._changes(runner, checkpoint, str(newest.path))
        if changes:
            raise CheckpointError(
                f'cannot resume {newest.path}: the architecture changed ({"; ".join(changes)}); '
                f'start a new run with --work-dir NEW --load-from {newest.path}')
        _require_resumable(checkpoint, str(newest.path))
        runner.logger.info(f'resume from {newest.path}, the newest valid checkpoint')
        self._mode, self._sources = _RESUME, [str(newest.path)]
        runner._load_from = str(newest.path)

    def _changes(self, runner: Runner, checkpoint: Dict[str, Any], path: str) -> List[str]:
        """How the run's architecture differs from the checkpoint's."""
        weights = weights_of(checkpoint, source=path)
        return explain_change(match(_model(runner).state_dict(), weights),
                              class_lists_of(checkpoint.get('meta')), self._class_lists(runner))

    # What happens to each tensor.

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Replace the checkpoint's weights by a state dict that is complete for the model."""
        names = self._sources or ['checkpoint']
        sources = [(names[0], weights_of(checkpoint, source=names[0]))]
        if self._mode == _LOAD:
            sources += [(name, weights_of(read_checkpoint(name), source=name))
                        for name in names[1:]]
        model = _model(runner)
        state = model.state_dict()
        combined = combine(sources)
        report = match(state, combined.weights, sources=[name for name, _ in sources],
                       parameters=dict(model.named_parameters()).keys(),
                       module_sources=combined.module_sources, shadowed=combined.shadowed)
        if self._mode == _TEST:
            require_complete(report)
        else:
            require_related(report)
        self._check_classes(runner, checkpoint, names[0])
        if self._mode != _RESUME:
            self._tell(runner, report)
        checkpoint['state_dict'] = fill(state, combined.weights, report)

    def _check_classes(self, runner: Runner, checkpoint: Dict[str, Any], path: str) -> None:
        """A class list in another order means other classes at the same places."""
        old, new = class_lists_of(checkpoint.get('meta')), self._class_lists(runner)
        for name in old:
            if name in new and old[name] != new[name]:
                message = (f'{name} of {path} are {old[name]}, those of this run {new[name]}')
                if self._mode == _TEST:
                    raise CheckpointError(f'{message}; test with the classes it was trained on')
                runner.logger.warning(f'{message}: weights are taken by position, not by name')

    def _tell(self, runner: Runner, report: LoadReport) -> None:
        for line in load_report.log_lines(report):
            runner.logger.info(line)
        runner.logger.info(f'load report:\n{load_report.table(report)}')
        if self._mode == _LOAD:
            _save_report(report, runner.work_dir)

    # What is written.

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Add the fingerprint to the metadata."""
        from .. import __version__
        checkpoint['meta'][META_KEY] = make_fingerprint(
            checkpoint['state_dict'], version=__version__, class_lists=self._class_lists(runner))

    def _class_lists(self, runner: Runner) -> Dict[str, List[str]]:
        loop = runner._test_loop if self._mode == _TEST else runner._train_loop
        if self._mode == _TEST and not isinstance(loop, BaseLoop):
            loop = runner._val_loop
        dataset = loop.dataloader.dataset if isinstance(loop, BaseLoop) else None
        return class_lists_of(getattr(dataset, 'metainfo', None))

    def _folder(self, runner: Runner) -> str:
        """Where this run's checkpoints go, as CheckpointHook decides in `before_train`."""
        if self.out_dir is None or self.out_dir == runner.work_dir:
            return runner.work_dir
        return osp.join(self.out_dir, osp.basename(runner.work_dir.rstrip(osp.sep)))


def _model(runner: Runner) -> nn.Module:
    """The model itself, out of a wrapper such as DistributedDataParallel."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _as_list(load_from: Union[str, Sequence[str], None]) -> List[str]:
    if load_from is None:
        return []
    return [load_from] if isinstance(load_from, str) else [str(path) for path in load_from]


def _require_resumable(checkpoint: Dict[str, Any], path: str) -> None:
    for entry in ('meta', 'optimizer', 'message_hub'):
        if entry not in checkpoint:
            raise CheckpointError(f'checkpoint {path} holds no {entry}, so training cannot go on '
                                  'from it; use --load-from to take its weights')


@master_only
def _save_report(report: LoadReport, folder: str) -> None:
    load_report.save(report, folder)
