"""`tools/train.py` as a function: from a config and options to a trained model."""
import datetime
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence

from mmengine.config import Config

from ...checkpoints.config_difference import differences
from ...checkpoints.source_classes import parse_source_classes
from ...errors import ConfigError, UserError
from ...experiments import tags
from ...experiments.run_files import RunFiles, run_folder
from ...experiments.start import BEGIN, GO_ON, NOTHING
from ..configuration.config import (
    load_config,
    make_deterministic,
    use_checkpoint_hook,
    use_exact_resume,
    use_monitoring,
    use_run_files,
)
from ..configuration.settings import Settings, apply_settings
from ..parallel.process_group import use_cpu_processes

AUTOMATIC = 'auto'


@dataclass(frozen=True)
class TrainOptions:
    """What the command line asks for.

    Attributes:
        config: Path of the config file.
        work_dir: The run's folder; from the config, or its path and `extra_tag`, when left out.
        extra_tag: Tells runs of one config apart; 'auto' for the date and what differs.
        load_from: Checkpoints to take weights from, in order of preference; 'MODULE=FILE' assigns
            one to a module.
        source_classes: 'LIST=NAME,NAME,...': classes of those checkpoints, where they do not say.
        resume: A checkpoint to go on from, `AUTOMATIC` for the newest of this run. None goes on
            with the run that the folder holds, or begins one.
        restart: Move the run that the folder holds aside, and begin again.
        fresh_schedule: Go on with the schedule of the config, started anew.
        trust_checkpoint: Read the checkpoints that are named with everything in them, code
            included.
        deterministic: Let two trainings on one machine be the same, bit for bit.
        amp: Train with automatic mixed precision.
        auto_scale_lr: Scale the learning rate with the batch of all processes.
        settings: Batch size, epochs and the like.
        overrides: `key=value` pairs for the config.
        launcher: How several processes were started, as MMEngine names it.
    """

    config: str
    work_dir: Optional[str] = None
    extra_tag: str = tags.DEFAULT
    load_from: Sequence[str] = ()
    source_classes: Sequence[str] = ()
    resume: Optional[str] = None
    restart: bool = False
    fresh_schedule: bool = False
    trust_checkpoint: bool = False
    deterministic: bool = False
    amp: bool = False
    auto_scale_lr: bool = False
    settings: Settings = Settings()
    overrides: Sequence[str] = ()
    launcher: str = 'none'


def train(options: TrainOptions) -> None:
    """Check the config, then begin, or go on with what its folder holds.

    Raises:
        UserError: Something asked for is missing or wrong; nothing has been written by then.
    """
    config = planned_config(options)
    if config is not None:
        from ..configuration.preflight import check_config
        check_config(config, mode='train')
        run(config)


def planned_config(options: TrainOptions) -> Optional[Config]:
    """The config of the training that is to be run, with where it starts from.

    Returns:
        None where there is nothing to do, which is said.

    Raises:
        UserError: Something asked for is missing or wrong, or the run's folder holds another run.
    """
    config = resolve(options)
    join_processes(config)
    use_run_files(config, load_from=options.load_from)
    from ... import register
    from ..configuration.preflight import trust_named_checkpoints
    from .run_start import decide_start, once_for_all
    register()
    start = once_for_all(lambda: decide_start(
        config, load_from=options.load_from, resume=options.resume is not None,
        checkpoint=None if options.resume == AUTOMATIC else options.resume,
        restart=options.restart))
    _say(start.notes)
    if start.kind == NOTHING:
        return None
    if options.fresh_schedule and start.kind == BEGIN:
        raise ConfigError('--fresh-schedule: only a run that is gone on with has an old schedule; '
                          'leave it out')
    start_from(config, options, going_on=start.kind == GO_ON)
    if options.trust_checkpoint:
        trust_named_checkpoints(config)
    return config


def run(config: Config) -> None:
    """Train; how it ended is in the run's folder, whatever happens.

    A start that is refused leaves no folder behind where there was none.
    """
    from ...ops.memory import keep_freed_memory
    from ..hooks.run_record_hook import RunRecordHook
    from ..runs.experiment_runner import ExperimentRunner
    keep_freed_memory()
    files = RunFiles(Path(config.work_dir))
    is_new = not files.folder.exists()
    runner = ExperimentRunner.from_cfg(config)
    records = [hook for hook in runner.hooks if isinstance(hook, RunRecordHook)]
    try:
        runner.train()
    except BaseException as error:
        for record in records:
            record.ended(runner, error)
        if isinstance(error, UserError) and is_new and not files.is_run:
            shutil.rmtree(files.folder, ignore_errors=True)
        raise


def resolve(options: TrainOptions) -> Config:
    """The config with the options of the command line in it.

    Raises:
        ConfigError: The config is missing or unreadable, or two options contradict each other.
    """
    if options.load_from and options.resume:
        raise ConfigError('--load-from starts a new run and --resume goes on with one; give one of '
                          'the two')
    config = load_config(options.config, options.overrides)
    file = load_config(options.config, import_modules=False)
    apply_settings(config, options.settings)
    config.work_dir = options.work_dir or config.get('work_dir') or str(run_folder(
        options.config, tag=choose_tag(options.extra_tag, file, config)))
    prepare(config, launcher=options.launcher)
    start_from(config, options, going_on=options.resume is not None)
    if options.deterministic:
        make_deterministic(config)
    if options.amp:
        enable_amp(config)
    if options.auto_scale_lr:
        scale_lr(config)
    return config


def choose_tag(tag: str, file: Config, config: Config) -> str:
    """The tag given, or the date and what the command line changed in the config file.

    Raises:
        ConfigError: It cannot name a folder.
    """
    if tag != tags.AUTOMATIC:
        return tags.check_tag(tag)
    changed = [(item.key, item.new) for item in differences(file, config)]
    return tags.automatic_tag(changed, now=datetime.datetime.now())


def start_from(config: Config, options: TrainOptions, *, going_on: bool) -> None:
    """Put where a training starts from into the config, in place.

    Raises:
        ConfigError: An option has no use in this start.
    """
    hook = config.default_hooks.checkpoint
    if going_on:
        config.resume = True
        config.load_from = None if options.resume in (None, AUTOMATIC) else options.resume
    elif options.load_from:
        sources: List[str] = list(options.load_from)
        config.load_from = sources[0] if len(sources) == 1 else sources
        config.resume = False
    if options.fresh_schedule:
        hook['resume_schedule'] = False
    if options.source_classes:
        if not options.load_from and not config.get('load_from'):
            raise ConfigError('--source-classes: says what --load-from loads; add that, or leave '
                              'it out')
        hook['source_classes'] = parse_source_classes(options.source_classes)


def prepare(config: Config, *, launcher: str) -> None:
    """What training and testing share: our checkpoint hook, loop and signals; the processes."""
    config.launcher = launcher
    use_checkpoint_hook(config)
    use_exact_resume(config)
    use_monitoring(config)
    if launcher != 'none':
        import torch
        if not torch.cuda.is_available():
            use_cpu_processes(config, launcher)


def join_processes(config: Config) -> None:
    """Meet the other processes of this training, where there are some."""
    if config.launcher != 'none':
        from mmengine.dist import init_dist, is_distributed
        if not is_distributed():
            init_dist(config.launcher, **(config.get('env_cfg') or {}).get('dist_cfg', {}))


def scale_lr(config: Config) -> None:
    """Scale the learning rate with the batch of all processes, from the one that it is meant for.

    Raises:
        ConfigError: The config does not say which that is.
    """
    if not (config.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise ConfigError('--auto-scale-lr: the config does not say for how large a batch its '
                          'learning rate is; add auto_scale_lr=dict(base_batch_size=N)')
    config.auto_scale_lr.enable = True


def enable_amp(config: Config) -> None:
    """Switch the optimizer wrapper to mixed precision: float16 on a GPU, bfloat16 on a CPU.

    Raises:
        ConfigError: The CPU is slower in bfloat16, or the wrapper is of another kind.
    """
    import torch

    from ..loop.bfloat16 import BFloat16OptimWrapper, is_fast_here
    without_gpu = BFloat16OptimWrapper.__name__
    wrapper = config.get('optim_wrapper') or {}
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', without_gpu):
        raise ConfigError(f'--amp cannot be combined with optim_wrapper.type={kind!r}; use '
                          'OptimWrapper')
    if kind == without_gpu:
        return
    if not torch.cuda.is_available():
        if not is_fast_here():
            raise ConfigError('--amp needs a GPU or a CPU that computes in bfloat16, and there is '
                              'neither; leave it out')
        config.merge_from_dict({'optim_wrapper.type': without_gpu})
        return
    config.merge_from_dict({'optim_wrapper.type': 'AmpOptimWrapper'})
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_local_rank(local_rank: int) -> None:
    """Tell MMEngine which GPU this process drives, unless the launcher did."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))


def _say(notes: Sequence[str]) -> None:
    from mmengine.dist import is_main_process
    if is_main_process():
        for note in notes:
            print(note)
