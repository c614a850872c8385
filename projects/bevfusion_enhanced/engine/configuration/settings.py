"""Settings of the command line that people change most, put where a config keeps them."""
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from mmengine.config import Config

from ...errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """What the command line changes; None leaves the config's own value.

    Attributes:
        batch_size: Samples of one forward pass in each process.
        workers: Processes that load data, for each training process.
        epochs: Length of the training; the schedule is stretched or shortened with it.
        lr: Base learning rate.
        accumulate: Forward passes whose gradients make one update.
        seed: Of all random numbers.
    """

    batch_size: Optional[int] = None
    workers: Optional[int] = None
    epochs: Optional[int] = None
    lr: Optional[float] = None
    accumulate: Optional[int] = None
    seed: Optional[int] = None


def apply_settings(config: Config, settings: Settings) -> None:
    """Change a config, in place.

    Raises:
        ConfigError: A number is out of range, or the config has no place for it.
    """
    for name in ('batch_size', 'epochs', 'accumulate'):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f'--{name.replace("_", "-")} {value}: give a number of at least 1')
    if settings.workers is not None and settings.workers < 0:
        raise ConfigError(f'--workers {settings.workers}: give 0 (load in the training process) '
                          'or more')
    if settings.lr is not None and not settings.lr > 0:
        raise ConfigError(f'--lr {settings.lr}: a learning rate is greater than 0')
    if settings.batch_size is not None:
        _section(config, 'train_dataloader', '--batch-size')['batch_size'] = settings.batch_size
    if settings.workers is not None:
        _set_workers(config, settings.workers)
    if settings.epochs is not None:
        set_epochs(config, settings.epochs)
    if settings.lr is not None:
        _section(config, 'optim_wrapper', '--lr')['optimizer']['lr'] = settings.lr
    if settings.accumulate is not None:
        _accumulate(config, settings.accumulate)
    if settings.seed is not None:
        config.merge_from_dict(dict(randomness=dict(seed=settings.seed)))


def set_epochs(config: Config, epochs: int) -> None:
    """Train for so many epochs: schedules that end with the training end with it still.

    Schedulers that count epochs have their `begin`, `end`, `T_max` and `milestones` scaled; those
    that count iterations (warm-ups) stay as they are. Objects are pasted for the same share of the
    training as before.

    Raises:
        ConfigError: The config does not train by epochs.
    """
    train_cfg = _section(config, 'train_cfg', '--epochs')
    old = train_cfg.get('max_epochs')
    if not isinstance(old, int) or old < 1:
        raise ConfigError('--epochs: the config has no train_cfg.max_epochs, so it does not train '
                          'by epochs')
    train_cfg['max_epochs'] = epochs
    if isinstance(config.get('max_epochs'), int):  # the variable that configs say it with
        config['max_epochs'] = epochs
    config['param_scheduler'] = [
        _scaled(scheduler, epochs / old) for scheduler in _as_list(config.get('param_scheduler'))]
    _scale_pasting(config, epochs / old)


def _scale_pasting(config: Config, factor: float) -> None:
    from .preflight import leaf_datasets
    from .preflight_data import flatten
    dataset = (config.get('train_dataloader') or {}).get('dataset') or {}
    for _, leaf in leaf_datasets(dataset, 'train_dataloader.dataset'):
        for step in flatten(leaf.get('pipeline') or ()):
            if step.get('stop_epoch') is not None:
                step['stop_epoch'] = round(step['stop_epoch'] * factor)


def _scaled(scheduler: Mapping[str, Any], factor: float) -> Dict[str, Any]:
    scaled = dict(scheduler)
    if scheduler.get('by_epoch', True):
        for name in ('begin', 'end', 'T_max'):
            if isinstance(scheduler.get(name), int):
                scaled[name] = round(scheduler[name] * factor)
        if scheduler.get('milestones'):
            scaled['milestones'] = [round(epoch * factor) for epoch in scheduler['milestones']]
    return scaled


def _accumulate(config: Config, parts: int) -> None:
    """Load batches that are so many times as large, and train on each in so many parts."""
    loop = _section(config, 'train_cfg', '--accumulate')
    if loop.get('type') not in ('EpochBasedTrainLoop', 'ResumableTrainLoop') \
            and not loop.get('by_epoch'):
        raise ConfigError('--accumulate: the config does not train by epochs')
    loader = _section(config, 'train_dataloader', '--accumulate')
    loader['batch_size'] = loader.get('batch_size', 1) * parts // loop.get('accumulate', 1)
    loop['accumulate'] = parts


def _set_workers(config: Config, workers: int) -> None:
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = config.get(name)
        if loader is not None:
            loader['num_workers'] = workers
            if workers == 0:  # torch refuses these two without a process to apply them to
                loader['persistent_workers'] = False
                loader.pop('prefetch_factor', None)


def _as_list(schedulers: Any) -> List[Mapping[str, Any]]:
    if schedulers is None:
        return []
    return [schedulers] if isinstance(schedulers, Mapping) else list(schedulers)


def _section(config: Config, name: str, option: str) -> Dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(f'{option}: the config has no {name}=dict(...) to set it in')
    return section  # type: ignore[return-value]
