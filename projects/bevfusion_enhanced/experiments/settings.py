"""On which settings of their configs runs differ."""
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..checkpoints.change_rules import rule_for
from ..checkpoints.config_difference import ABSENT, differences
from ..checkpoints.config_text import parse_config_text
from ..checkpoints.folder import template_in
from ..errors import CheckpointError, ConfigError
from .run_files import RunFiles

_PLACES = ('work_dir', 'log_file', 'resume', 'experiment_name', 'default_hooks.checkpoint.out_dir')
_LONGEST = 60


def read_config(files: RunFiles) -> Dict[str, Any]:
    """The resolved config of a run, as plain data.

    Raises:
        ConfigError: The run has none, or it cannot be read.
    """
    try:
        return parse_config_text(files.config.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(f'{files.config} cannot be read ({error}); it is written when a run '
                          'starts') from error


def template_of(files: RunFiles) -> Optional[str]:
    """How a run names its checkpoints, where that is a way of its own and its config says so."""
    try:
        return template_in(read_config(files))
    except (CheckpointError, ConfigError):
        return None


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> List[Dict[str, str]]:
    """For each config, the settings on which any of them differs, as text by dotted key.

    Where runs lie does not count as a difference, nor does a variable of a config file that no
    runner reads.
    """
    first, others = configs[0], configs[1:]
    found = [{item.key: item for item in differences(first, other)} for other in others]
    keys = [key for key in dict.fromkeys(key for items in found for key in items)
            if key not in _PLACES and rule_for(key) is not None]
    settings: List[Dict[str, str]] = [{} for _ in configs]
    for key in keys:
        old = next(items[key].old for items in found if key in items)
        settings[0][key] = _text(old)
        for values, items in zip(settings[1:], found, strict=True):
            values[key] = _text(items[key].new if key in items else old)
    return settings


def _text(value: Any) -> str:
    if value is ABSENT:
        return '-'
    text = str(value)
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST - 3]}...'
