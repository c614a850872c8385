"""Reading a config, overriding it from the command line, and the folder that its run lives in."""
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from mmengine.config import Config, DictAction

from ..errors import ConfigError

_CONFIGS = 'configs'


def load_config(path: str, overrides: Optional[Sequence[str]] = None) -> Config:
    """Read a config file and apply `key=value` overrides.

    Raises:
        ConfigError: The file, or one of its bases, is missing or cannot be parsed, or an override
            names something that is not there.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f'config {path} does not exist; the configs of this project are in '
                          f'{_CONFIGS}/')
    try:
        config = Config.fromfile(file)
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
        ConfigError: A pair has no `=`, or its key leads through something that holds no keys.
    """
    for pair in overrides:
        key, separator, text = pair.partition('=')
        if not separator or not key:
            raise ConfigError(f'--cfg-options {pair!r} is not of the form key=value')
        try:
            value: Any = DictAction._parse_iterable(text)
            config.merge_from_dict({key: value})
        except (KeyError, TypeError, AssertionError, IndexError, AttributeError) as error:
            raise ConfigError(f'--cfg-options {pair}: cannot be applied to this config '
                              f'({" ".join(str(error).split())})') from error


def default_work_dir(config_path: str) -> str:
    """`work_dirs/` and the config's path below `configs/`: no two configs share a folder."""
    path = Path(config_path).absolute().with_suffix('')
    parts = path.parts
    if _CONFIGS in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index(_CONFIGS)
        return str(Path('work_dirs', *parts[last + 1:]))
    return str(Path('work_dirs', path.name))


def use_checkpoint_hook(config: Config) -> None:
    """Put `PartialLoadCheckpointHook` where a config has MMEngine's CheckpointHook or none."""
    hooks: Dict[str, Any] = config.setdefault('default_hooks', {})
    hook = hooks.get('checkpoint')
    if hook is None:
        hooks['checkpoint'] = dict(type='PartialLoadCheckpointHook', interval=1)
    elif hook.get('type') == 'CheckpointHook':
        hook['type'] = 'PartialLoadCheckpointHook'
