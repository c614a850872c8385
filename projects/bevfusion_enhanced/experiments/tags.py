"""Tags tell runs of one config apart: the last part of a run's folder."""
import datetime
import re
from typing import Sequence, Tuple

from ..errors import ConfigError

DEFAULT = 'default'
AUTOMATIC = 'auto'
_ALLOWED = re.compile(r'[A-Za-z0-9._-]+')
_LONGEST = 80
_FIRST = ('model.', 'optim_wrapper.')  # what people try variants of
_LOADING = ('num_workers', 'persistent_workers', 'prefetch_factor')  # changes no result

# Windows keeps these names for devices, whatever stands after a dot.
_RESERVED = re.compile(r'^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def check_tag(tag: str) -> str:
    """Return the tag, once it can name a folder on every system.

    Raises:
        ConfigError: It holds another character than letters, digits, dot, underscore and minus, is
            longer than 80 of them, ends in a dot, or is a name that Windows keeps for itself.
    """
    if not _ALLOWED.fullmatch(tag):
        raise ConfigError(f'--extra-tag {tag!r}: a tag is made of letters, digits, ".", "_" and '
                          '"-"; choose another')
    if len(tag) > _LONGEST or tag.endswith('.') or _RESERVED.match(tag):
        raise ConfigError(f'--extra-tag {tag!r} cannot name a folder on every system; choose one '
                          f'of at most {_LONGEST} characters that does not end in "."')
    return tag


def automatic_tag(differences: Sequence[Tuple[str, object]], *, now: datetime.datetime) -> str:
    """The date and what differs from the config file: `20261120-153000_lr-0.0004`.

    Args:
        differences: (dotted config key, new value) of each setting that the command line changed.
        now: The time of the start.
    """
    tag = now.strftime('%Y%m%d-%H%M%S')
    telling = [item for item in differences if item[0].rpartition('.')[2] not in _LOADING]
    telling.sort(key=lambda item: not item[0].startswith(_FIRST))
    for part in dict.fromkeys(f'{key.rpartition(".")[2]}-{_word(value)}' for key, value in telling):
        if len(f'{tag}_{part}') <= _LONGEST:  # what has no room is in the run's config
            tag = f'{tag}_{part}'
    return tag.rstrip('.')


def _word(value: object) -> str:
    text = re.sub(r'[^A-Za-z0-9.]+', '-', str(value)).strip('-')
    return text or 'none'
