"""`tools/train.py` as a function: from a config and options to a trained model."""
import os
from dataclasses import dataclass
from typing import List, Optional, Sequence

from mmengine.config import Config

from ..checkpoints.source_classes import parse_source_classes
from ..errors import ConfigError
from .config import (
    default_work_dir,
    load_config,
    make_deterministic,
    use_checkpoint_hook,
    use_exact_resume,
)

AUTOMATIC = 'auto'


@dataclass(frozen=True)
class TrainOptions:
    """What the command line asks for.

    Attributes:
        config: Path of the config file.
        work_dir: The run's folder; from the config, or its path, when left out.
        load_from: Checkpoints to take weights from, in order of preference; 'MODULE=FILE' assigns
            one to a module.
        source_classes: 'LIST=NAME,NAME,...': classes of those checkpoints, where they do not say.
        resume: A checkpoint to go on from, `AUTOMATIC` for the newest of this run, or None.
        fresh_schedule: Resume with the schedule of the config, started anew.
        trust_checkpoint: Read the checkpoints that are named with everything in them, code
            included.
        deterministic: Let two trainings on one machine be the same, bit for bit.
        amp: Train with automatic mixed precision.
        overrides: `key=value` pairs for the config.
        launcher: How several processes were started, as MMEngine names it.
    """

    config: str
    work_dir: Optional[str] = None
    load_from: Sequence[str] = ()
    source_classes: Sequence[str] = ()
    resume: Optional[str] = None
    fresh_schedule: bool = False
    trust_checkpoint: bool = False
    deterministic: bool = False
    amp: bool = False
    overrides: Sequence[str] = ()
    launcher: str = 'none'


def train(options: TrainOptions) -> None:
    """Check the config, then train.

    Raises:
        UserError: Something asked for is missing or wrong; nothing has been written by then.
    """
    config = resolve(options)
    from mmengine.runner import Runner

    from .. import compat
    from .preflight import check_config, trust_named_checkpoints
    compat.apply()
    if options.trust_checkpoint:
        trust_named_checkpoints(config)
    check_config(config, mode='train')
    Runner.from_cfg(config).train()


def resolve(options: TrainOptions) -> Config:
    """The config with the options of the command line in it.

    Raises:
        ConfigError: The config is missing or unreadable, or two options contradict each other.
    """
    if options.load_from and options.resume:
        raise ConfigError('--load-from starts a new run and --resume goes on with one; give one of '
                          'the two')
    config = load_config(options.config, options.overrides)
    prepare(config, options.config, work_dir=options.work_dir, launcher=options.launcher)
    start_from(config, options)
    if options.deterministic:
        make_deterministic(config)
    if options.amp:
        enable_amp(config)
    return config


def start_from(config: Config, options: TrainOptions) -> None:
    """Put where a training starts from into the config, in place.

    Raises:
        ConfigError: An option has no use without another one.
    """
    hook = config.default_hooks.checkpoint
    if options.load_from:
        sources: List[str] = list(options.load_from)
        config.load_from = sources[0] if len(sources) == 1 else sources
        config.resume = False
    elif options.resume:
        config.resume = True
        config.load_from = None if options.resume == AUTOMATIC else options.resume
    if options.fresh_schedule:
        if not config.get('resume'):
            raise ConfigError('--fresh-schedule: only a run that is resumed has an old schedule; '
                              'add --resume, or leave it out')
        hook['resume_schedule'] = False
    if options.source_classes:
        if config.get('resume') or not config.get('load_from'):
            raise ConfigError('--source-classes: says what --load-from loads; add that, or leave '
                              'it out')
        hook['source_classes'] = parse_source_classes(options.source_classes)


def prepare(config: Config, path: str, *, work_dir: Optional[str], launcher: str) -> None:
    """What training and testing share: the run's folder, our checkpoint hook, the processes."""
    import torch
    config.work_dir = work_dir or config.get('work_dir') or default_work_dir(path)
    config.launcher = launcher
    use_checkpoint_hook(config)
    use_exact_resume(config)
    if launcher != 'none' and not torch.cuda.is_available():
        use_cpu_processes(config, launcher)


def use_cpu_processes(config: Config, launcher: str) -> None:
    """Join processes that have no GPU, which MMEngine's own start takes for granted.

    Raises:
        ConfigError: They were started by something else than torchrun.
    """
    import torch
    if launcher != 'pytorch' or 'RANK' not in os.environ:
        raise ConfigError(f'--launcher {launcher}: without a GPU only processes started by '
                          'torchrun can be joined; use torchrun and --launcher pytorch')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    config.setdefault('model_wrapper_cfg', dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False)))


def enable_amp(config: Config) -> None:
    """Switch the optimizer wrapper to mixed precision.

    Raises:
        ConfigError: There is no GPU to do it on, or the wrapper is of another kind.
    """
    import torch
    wrapper = config.get('optim_wrapper') or {}
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp cannot be combined with optim_wrapper.type={kind!r}; use '
                          'OptimWrapper')
    if not torch.cuda.is_available():
        raise ConfigError('--amp needs a GPU, and none was found; leave it out')
    config.merge_from_dict({'optim_wrapper.type': 'AmpOptimWrapper'})
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_local_rank(local_rank: int) -> None:
    """Tell MMEngine which GPU this process drives, unless the launcher did."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
