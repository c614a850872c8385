"""When checkpoints are saved, what they are called, and which of them are kept."""
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Union

from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner
from torch.utils.hooks import RemovableHandle

from ...checkpoints.snapshot import ChangedMeanwhileError
from ...checkpoints.storage import publish_checkpoint, read_checkpoint
from ...errors import CheckpointError, ConfigError
from ..configuration.config import checkpoint_folder
from ..parallel.sharding import deal_out_moments, is_sharded
from ..resume import training_state
from ..resume.optimizer_state import wrappers_of
from ..runs.run_folder import require_writable
from . import best_metric
from .background_save import BackgroundSaver, Save
from .checkpoint_contents import describe_run, flush_logs, optimizer_and_schedule, weights_and_meta
from .unchanging import put_barrier_in_front, tells_before_it_steps, unchanging_addresses

_KEPT = 'kept_checkpoints'  # in the message hub: names of this run's files, oldest first


class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, with a way of writing of its own.

    - The state is copied and written by a thread, beside the target, flushed to disk, renamed;
      its SHA-256 lies beside it. At most one write is in flight. What the optimizer alone changes
      is copied while the next forward and backward run; its next step waits for that. A hook of
      one's own that acts before an iteration or on a checkpoint has all of it copied at once.
    - What a new checkpoint makes superfluous is deleted once that one is on disk. The checkpoint
      that a run was started or resumed from is never deleted.
    - A write that fails (a full disk) is logged; training goes on and tries again at the next
      interval. After the last epoch it is tried once more, then it is an error.
    - The best checkpoint is measured by `mAP`, `NDS`, `mIoU`, any metric in full, or a weighted
      sum: `save_best='0.5*NDS + 0.5*mIoU'`.

    Args:
        interval: Save every so many epochs (iterations, where `by_epoch` is false).
        by_epoch: Whether `interval` counts epochs.
        save_optimizer: Save the optimizer's state; needed to resume.
        save_param_scheduler: Save the schedulers' state; needed to resume.
        out_dir: Where checkpoints go, in a folder named after the work dir; the work dir itself
            when left out.
        max_keep_ckpts: Delete the oldest checkpoints beyond this number; -1 keeps all.
        save_last: Save after the last epoch too, whatever the interval.
        save_best: Metrics of which the best checkpoint is kept.
        rule: 'greater' or 'less' for each of `save_best`.
        filename_tmpl: Name of a checkpoint file, with one `{}`.
        published_keys: Entries of the file that is published after training; none when left out.
        save_begin: Number of epochs or iterations before the first checkpoint.
        backend_args: MMEngine's choice of storage, of which only the local disk is there.

    Raises:
        ConfigError: `save_best`, `rule` or `backend_args` cannot be used.
    """

    _default_greater_keys = [*CheckpointHook._default_greater_keys, 'NDS', 'iou']

    def __init__(self, *, interval: int = -1, by_epoch: bool = True, save_optimizer: bool = True,
                 save_param_scheduler: bool = True, out_dir: Optional[str] = None,
                 max_keep_ckpts: int = -1, save_last: bool = True,
                 save_best: Union[str, List[str], None] = None,
                 rule: Union[str, List[str], None] = None, filename_tmpl: Optional[str] = None,
                 published_keys: Union[str, List[str], None] = None, save_begin: int = 0,
                 backend_args: Optional[dict] = None) -> None:
        if backend_args and backend_args.get('backend', 'local') != 'local':
            raise ConfigError(f'backend_args={backend_args}: checkpoints are written to a disk '
                              'that is mounted here; give its path as out_dir')
        for text in [save_best] if isinstance(save_best, str) else save_best or ():
            best_metric.parse(text)
        try:
            super().__init__(
                interval=interval, by_epoch=by_epoch, save_optimizer=save_optimizer,
                save_param_scheduler=save_param_scheduler, out_dir=out_dir,
                max_keep_ckpts=max_keep_ckpts, save_last=save_last, save_best=save_best, rule=rule,
                filename_tmpl=filename_tmpl, published_keys=published_keys, save_begin=save_begin)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f'default_hooks.checkpoint: {error}') from error
        self._root = out_dir
        self._saver = BackgroundSaver()
        self._failed: Optional[Save] = None
        self._last_meta: Optional[Dict[str, int]] = None
        self._kept: List[str] = []
        self._in_use: Optional[Path] = None
        self._description: Dict[str, Any] = {}
        self._reserved = False
        self._copies_at_once = False
        self._step_hooks: List[RemovableHandle] = []

    # Stages of a run.

    def before_train(self, runner: Runner) -> None:
        """Find out where checkpoints go, and what is there of this run."""
        self.out_dir = self.checkpoint_folder(runner)
        if is_main_process():
            require_writable(self.out_dir)
        runner.logger.info(f'Checkpoints will be saved to {self.out_dir}.')
        info = runner.message_hub.runtime_info
        self._kept = [name for name in self._names_in(info)
                      if Path(self.out_dir, name).is_file()]
        if isinstance(runner._load_from, str):
            self._in_use = Path(runner._load_from).expanduser().resolve()
        if self.save_best is not None and len(self.key_indicators) == 1:
            self.best_ckpt_path = info.get('best_ckpt')
        elif self.save_best is not None:
            self.best_ckpt_path_dict = {
                name: info.get(f'best_ckpt_{name}') for name in self.key_indicators}
        self._description = describe_run(runner)
        self._sharded = is_sharded(runner.model)
        self._reserved = self._sharded  # its parts say nothing of the sizes to come
        if self._sharded:
            for wrapper in wrappers_of(runner.optim_wrapper).values():
                deal_out_moments(wrapper.optimizer)
        self._guard_weights(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None,
                         outputs: Optional[dict] = None) -> None:
        """Save, where iterations count; log what became of the save before."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if not is_main_process():
            return
        if self._saver.pending:
            self._settle(runner, wait=False)
        if not self._reserved and not self._saver.pending:  # the optimizer has its moments by now
            self._reserved = True
            entries = optimizer_and_schedule(runner, optimizer=self.save_optimizer, schedule=False)
            self._saver.reserve([runner.model.state_dict(), entries])

    def after_train(self, runner: Runner) -> None:
        """Wait for the last write, try once more where it failed, then publish.

        Raises:
            CheckpointError: The state at the end of training could not be written.
        """
        self._settle(runner)
        failed: Optional[Save] = self._agree(self._failed)
        if failed and failed.meta['iter'] == runner.iter:
            runner.logger.info(f'trying once more to write {failed.title}')
            self._save(runner, name=failed.name, meta=failed.meta, better=failed.better,
                       best_name=failed.best_name)
            self._settle(runner)
            if self._agree(self._failed):
                raise CheckpointError(
                    f'training ended, but {failed.title} could not be written to {self.out_dir}; '
                    'the reason is in the log')
        super().after_train(runner)

    def save_now(self, runner: Runner, *, reason: str) -> Path:
        """Write the state as `iter_N.pth` and wait for it; to be called in all processes at once.

        For the end of an iteration (`after_train_iter`) or of an epoch. Where the last save was of
        this very moment, that file is the result.

        Args:
            runner: The run.
            reason: For the log.

        Returns:
            The file.

        Raises:
            CheckpointError: It could not be written; what was there before is untouched.
        """
        progress = getattr(runner.train_loop, 'progress', None)
        meta = dict(epoch=runner.epoch, iter=runner.iter + 1) if progress is None else \
            dict(epoch=progress.epoch, iter=progress.iteration)
        self._settle(runner)
        if not self._agree(self._last_meta == meta and self._failed is None):
            runner.logger.info(f'Saving checkpoint at {meta["iter"]} iterations ({reason})')
            self._save(runner, name=f'iter_{meta["iter"]}.pth', meta=meta)
            self._settle(runner)
        failed = self._agree(self._failed is not None)
        if failed:
            raise CheckpointError(f'{self.last_ckpt} could not be written; the reason is in the '
                                  'log, and the checkpoint before is untouched')
        return Path(str(self.last_ckpt))

    def wait_for_copy(self) -> None:
        """Return once a save reads nothing any more that training writes to.

        For what changes weights or the optimizer's state elsewhere than in the optimizer's step.
        """
        self._saver.wait_for_copy()

    # What MMEngine's hook calls.

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: Dict[str, int]) -> None:
        self._save(runner, name=self.filename_tmpl.format(step), meta=meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: Dict[str, Any]) -> None:
        """Keep the checkpoint where a metric is the best so far, and note that in the last one."""
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        self._settle(runner)
        step = runner.epoch if self.by_epoch else runner.iter
        better: Dict[str, float] = self._agree(self._better(runner, metrics))
        if not better:
            return
        name = self.filename_tmpl.format(step)
        self._save(runner, name=None if self.last_ckpt is None else name,
                   meta=dict(epoch=runner.epoch, iter=runner.iter), better=better,
                   best_name=name)

    def _better(self, runner: Runner, metrics: Dict[str, Any]) -> Dict[str, float]:
        """{metric of `save_best`: value} of those that are better than ever."""
        better: Dict[str, float] = {}
        for metric, rule in zip(self.key_indicators, self.rules, strict=True):
            value = best_metric.score(metric, metrics)
            best = runner.message_hub.runtime_info.get(
                self._hub_keys(metric)[0], self.init_value_map[rule])
            if value is not None and self.is_better_than[metric](value, best):
                better[metric] = value
        return better

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: Optional[str]) -> None:
        """Write the entries of `published_keys` beside, under a name that ends in its SHA-256."""
        if ckpt_path is None or not Path(ckpt_path).is_file():
            return
        checkpoint = read_checkpoint(ckpt_path)
        removed = [key for key in checkpoint if key not in (self.published_keys or ())]
        path = publish_checkpoint({key: value for key, value in checkpoint.items()
                                   if key not in removed}, ckpt_path)
        runner.logger.info(f'The checkpoint {ckpt_path} is published to {path}, without '
                           f'{", ".join(removed) or "leaving anything out"}.')

    # One save.

    def _save(self, runner: Runner, *, name: Optional[str], meta: Dict[str, int],
              better: Optional[Dict[str, float]] = None, best_name: str = '') -> None:
        """Copy the state and hand it to the writer; to be called in all processes at once.

        Args:
            runner: The run.
            name: File of the run's state; None leaves it out.
            meta: Epoch and iteration.
            better: Metrics that are better than ever, of which the best checkpoint is written too.
            best_name: How that checkpoint would be called at an interval.
        """
        self._settle(runner)
        save = Save(Path(self.out_dir), name, meta, better or {}, best_name, list(self._kept),
                    in_use=self._in_use)
        if name is not None:
            save.kept = [kept for kept in self._kept if kept != name] + [name]
            self._leave_out_surplus(save)
            save.note(runner.message_hub, _KEPT, list(save.kept))
            save.note(runner.message_hub, 'keep_ckpt_ids', self._steps(save.kept))
            self.last_ckpt = str(Path(self.out_dir, name))
            save.note(runner.message_hub, 'last_ckpt', self.last_ckpt)
            self._last_meta = dict(meta)
        self._note_best(runner, save)
        if is_main_process():
            flush_logs(runner)
        state = training_state.gather(runner)
        if is_main_process() or self._sharded:  # every process gives its part of what is sharded
            content = self._contents(runner, save)
        if is_main_process():
            self._saver.begin(runner, save, dict(content, training_state=state),
                              unchanging=lambda: self._unchanging(runner))

    def _guard_weights(self, runner: Runner) -> None:
        """Have whatever changes weights wait until they are copied."""
        put_barrier_in_front(runner, self.wait_for_copy)
        for handle in self._step_hooks:  # of an earlier training by this runner
            handle.remove()
        self._step_hooks = [
            wrapper.optimizer.register_step_pre_hook(lambda *_: self.wait_for_copy())
            for wrapper in wrappers_of(runner.optim_wrapper).values()
            if tells_before_it_steps(wrapper.optimizer)]

    def _unchanging(self, runner: Runner) -> Set[int]:
        return set() if self._copies_at_once else unchanging_addresses(runner, saving=self)

    def _note_best(self, runner: Runner, save: Save) -> None:
        """Record the best scores and where they lie; the files before them become superfluous."""
        for metric, value in save.better.items():
            score_key, path_key = self._hub_keys(metric)
            before = runner.message_hub.runtime_info.get(path_key)
            path = Path(self.out_dir, self._best_file(metric, save.best_name))
            if before and Path(before).name != path.name:
                save.surplus.append(Path(before))
            save.note(runner.message_hub, score_key, value)
            save.note(runner.message_hub, path_key, str(path))
            self._set_best_path(metric, str(path))
            save.best_paths.append(path)

    def _contents(self, runner: Runner, save: Save) -> Dict[str, Any]:
        entries = optimizer_and_schedule(runner, optimizer=self.save_optimizer,
                                         schedule=self.save_param_scheduler)
        return dict(weights_and_meta(runner, {**self._description, **save.meta}), **entries)

    def _settle(self, runner: Runner, *, wait: bool = True) -> None:
        """Log how the save before ended; where it failed, all is as if it had not been asked for.

        Args:
            runner: The run.
            wait: Wait for its end; otherwise nothing happens as long as it runs.
        """
        ended = self._saver.take_ended(wait=wait)
        if ended is None:
            return
        save, error = ended
        if error is None:
            self._kept, self._failed = save.kept, None
            for metric, value in save.better.items():
                runner.logger.info(
                    f'The best checkpoint with {value:0.4f} {metric} (epoch '
                    f'{save.meta["epoch"]}, iteration {save.meta["iter"]}) is saved to '
                    f'{self._best_file(metric, save.best_name)}.')
            for warning in save.warnings:
                runner.logger.warning(warning)
            return
        self._failed = save
        save.take_back(runner.message_hub)
        for metric in self.key_indicators if self.save_best else ():
            self._set_best_path(metric, save.previous.get(self._hub_keys(metric)[1],
                                                          self._best_path(metric)))
        runner.logger.error(f'checkpoint not saved: {error}. Training goes on; the next attempt is '
                            'at the next interval')
        if isinstance(error, ChangedMeanwhileError):
            self._copies_at_once = True
            runner.logger.warning('from now on training waits until all of a checkpoint is copied')

    # Names and entries.

    def checkpoint_folder(self, runner: Runner) -> str:
        """Where this run's checkpoints go: as MMEngine has it, or in a folder within the run's."""
        return str(checkpoint_folder(dict(
            work_dir=runner.work_dir, default_hooks=dict(checkpoint=dict(out_dir=self._root)))))

    def _names_in(self, info: Dict[str, Any]) -> List[str]:
        """Names of a resumed run's files; MMEngine notes their steps alone."""
        if _KEPT in info:
            return list(info[_KEPT])
        return [self.filename_tmpl.format(step) for step in info.get('keep_ckpt_ids', ())]

    def _steps(self, names: Sequence[str]) -> List[int]:
        """What MMEngine's own hook would need to go on with this run."""
        pattern = re.compile(re.escape(self.filename_tmpl).replace(re.escape('{}'), r'(\d+)'))
        return [int(found.group(1)) for found in map(pattern.fullmatch, names) if found]

    def _leave_out_surplus(self, save: Save) -> None:
        """Move the oldest names beyond `max_keep_ckpts` from those kept to those to delete."""
        if self.max_keep_ckpts <= 0:
            return
        for name in save.kept[:-self.max_keep_ckpts]:
            path = Path(self.out_dir, name)
            if path.resolve() != self._in_use:
                save.kept.remove(name)
                save.surplus.append(path)

    def _best_file(self, metric: str, name: str) -> str:
        return f'best_{best_metric.file_part(metric)}_{name}'

    def _hub_keys(self, metric: str) -> Tuple[str, str]:
        """Where MMEngine notes the best score and its file."""
        ending = '' if len(self.key_indicators) == 1 else f'_{metric}'
        return f'best_score{ending}', f'best_ckpt{ending}'

    def _best_path(self, metric: str) -> Optional[str]:
        return self.best_ckpt_path if len(self.key_indicators) == 1 else \
            self.best_ckpt_path_dict.get(metric)

    def _set_best_path(self, metric: str, path: Optional[str]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[metric] = path

    @staticmethod
    def _agree(value: Any) -> Any:
        """The first process's value, in all processes: it alone knows how a write ended."""
        values = [value]
        broadcast_object_list(values)
        return values[0]

