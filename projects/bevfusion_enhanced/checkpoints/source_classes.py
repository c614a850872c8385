"""Class lists as a command line gives them, for checkpoints that do not say their own."""
from typing import Dict, List, Sequence

from ..errors import ConfigError
from .explain import CLASS_LISTS


def parse_source_classes(specs: Sequence[str]) -> Dict[str, List[str]]:
    """Read `classes=car,truck` and `map_classes=divider,walkway`, as `plan_load` takes them.

    Raises:
        ConfigError: Neither list is named, or one holds no name, or a name twice.
    """
    lists: Dict[str, List[str]] = {}
    for spec in specs:
        name, separator, text = spec.partition('=')
        classes = [item.strip() for item in text.split(',')]
        if not separator or name not in CLASS_LISTS:
            raise ConfigError(f'--source-classes {spec!r}: expected one of '
                              f'{", ".join(f"{known}=A,B,..." for known in CLASS_LISTS)}')
        if not all(classes) or len(set(classes)) != len(classes):
            raise ConfigError(f'--source-classes {spec!r}: names have to be given, each once, with '
                              'commas between them')
        lists[name] = classes
    return lists
