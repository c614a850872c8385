"""Reading a config, overriding it from the command line, and the folder that its run lives in."""
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from mmengine.config import Config, DictAction

from ...errors import ConfigError
from ...experiments.run_files import RunFiles

_CONFIGS = 'configs'
DEFAULT_SEED = 0


def load_config(path: str, overrides: Optional[Sequence[str]] = None, *,
                import_modules: bool = True) -> Config:
    """Read a config file and apply `key=value` overrides.

    Args:
        path: The file.
        overrides: `key=value` pairs.
        import_modules: Import its `custom_imports`, which takes seconds; to look at a config
            nothing has to be.

    Raises:
        ConfigError: The file, or one of its bases, is missing or cannot be parsed, or an override
            names something that is not there.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f'config {path} does not exist; the configs of this project are in '
                          f'{_CONFIGS}/')
    try:
        config = Config.fromfile(file, import_custom_modules=import_modules)
    except FileNotFoundError as error:
        raise ConfigError(f'config {path}: a base of it is missing: {error}; check _base_') \
            from error
    except SyntaxError as error:
        raise ConfigError(f'config {path}: {error.msg} (line {error.lineno}); correct it') \
            from error
    except ImportError as error:
        raise ConfigError(f'config {path}: custom_imports failed: {error.__cause__ or error}; '
                          'install what is missing') from error
    except (OSError, NameError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f'config {path} cannot be read: {type(error).__name__}: '
                          f'{" ".join(str(error).split())}; correct it') from error
    apply_overrides(config, overrides or ())
    return config


def apply_overrides(config: Config, overrides: Sequence[str]) -> None:
    """Merge `key=value` pairs into a config, in place; values as on MMEngine's command lines.

    Raises:
        ConfigError: A pair has no `=`, its value is not one for a command line, or its key leads
            through something that holds no keys.
    """
    for pair in overrides:
        key, separator, text = pair.partition('=')
        if not separator or not key:
            raise ConfigError(f'--cfg-options {pair!r} is not of the form key=value')
        try:
            value: Any = DictAction._parse_iterable(text)
            config.merge_from_dict({key: value})
        except RecursionError as error:  # MMEngine's answer to a comma within dict(...)
            raise ConfigError(f'--cfg-options {pair}: values are numbers, words and lists of them; '
                              'give KEY.NAME=VALUE for each name of a dict, or put it into a '
                              'config file') from error
        except (KeyError, TypeError, AssertionError, IndexError, AttributeError) as error:
            raise ConfigError(f'--cfg-options {pair}: cannot be applied to this config '
                              f'({" ".join(str(error).split())})') from error


def use_checkpoint_hook(config: Config) -> None:
    """Put `PartialLoadCheckpointHook` where a config has MMEngine's CheckpointHook or none."""
    hooks = _section(config, 'default_hooks')
    hook = hooks.get('checkpoint')
    if hook is None:
        hooks['checkpoint'] = dict(type='PartialLoadCheckpointHook', interval=1)
    elif hook.get('type') == 'CheckpointHook':
        hook['type'] = 'PartialLoadCheckpointHook'


def use_run_files(config: Config, *, load_from: Sequence[str] = ()) -> None:
    """Checkpoints in a folder of their own within the run's, and a record of what the run does."""
    hooks = _section(config, 'default_hooks')
    if hooks['checkpoint'].get('out_dir') is None:
        hooks['checkpoint']['out_dir'] = str(RunFiles(Path(config.work_dir)).checkpoints)
    hooks['run_record'] = dict(type='RunRecordHook', load_from=list(load_from))


def checkpoint_folder(config: Mapping[str, Any]) -> Path:
    """Where the checkpoints of a training go: as MMEngine has it, or a folder within the run's."""
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    work_dir, out_dir = Path(config['work_dir']), hook.get('out_dir')
    if out_dir is None or Path(out_dir) == work_dir:
        return work_dir
    if Path(out_dir).absolute().is_relative_to(work_dir.absolute()):
        return Path(out_dir)
    return Path(out_dir, work_dir.name)


def use_exact_resume(config: Config) -> None:
    """What a training needs to go on, after any stop, as if there had been none."""
    use_resumable_loop(config)
    use_interrupt_hook(config)
    use_fixed_seed(config)


def use_monitoring(config: Config) -> None:
    """Give every HealthHook the settings of `monitoring`, save those that it sets itself."""
    for hook in config.get('custom_hooks') or ():
        if hook['type'] == 'HealthHook':
            for name, value in (config.get('monitoring') or {}).items():
                hook.setdefault(name, value)


def use_resumable_loop(config: Config) -> None:
    """Put `ResumableTrainLoop` where a config trains by epochs with MMEngine's own loop."""
    loop: Optional[Dict[str, Any]] = config.get('train_cfg')
    if loop and (loop.get('type') == 'EpochBasedTrainLoop' or loop.get('by_epoch')):
        loop.pop('by_epoch', None)
        loop['type'] = 'ResumableTrainLoop'


def use_interrupt_hook(config: Config) -> None:
    """Let signals save before they stop a training; `default_hooks.interrupt=None` leaves it."""
    _section(config, 'default_hooks').setdefault('interrupt', dict(type='InterruptHook'))


def use_fixed_seed(config: Config) -> None:
    """Give a config without a seed one, so that the run's own config says which it was."""
    randomness = _section(config, 'randomness')
    if randomness.get('seed') is None:
        randomness['seed'] = DEFAULT_SEED


def make_deterministic(config: Config) -> None:
    """Let two trainings of a config on one machine be the same, bit for bit.

    Operations that exist on a GPU in a nondeterministic version only raise an error that names
    them. To be called before CUDA is used in this process.
    """
    use_fixed_seed(config)
    config.randomness['deterministic'] = True
    config.randomness['diff_rank_seed'] = False
    _section(config, 'env_cfg')['cudnn_benchmark'] = False
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def _section(config: Config, key: str) -> Dict[str, Any]:
    """A dictionary of the config itself, made where it is missing (`setdefault` gives a copy)."""
    if config.get(key) is None:
        config[key] = {}
    return config[key]
