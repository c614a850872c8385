"""What a pickle asks for, told without unpickling it: for files of a kind that torch refuses."""
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Collection, Dict, List, Optional

_TEXT = {'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE',
         'BINUNICODE8'}
_STORES = {'MEMOIZE', 'PUT', 'BINPUT', 'LONG_BINPUT'}
_FETCHES = {'GET', 'BINGET', 'LONG_BINGET'}


def names_in(path: Path) -> Optional[List[str]]:
    """The objects that a plain pickle, or the one in torch's zip file, asks for, in order.

    Returns:
        None where the file holds no pickle that is whole.
    """
    try:
        if not zipfile.is_zipfile(path):
            with open(path, 'rb') as file:
                return _names(file)
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith('data.pkl')]
            with archive.open(inside[0]) as file:
                return _names(file)
    except Exception:  # whatever is no pickle ends in almost any kind
        return None


def first_unknown(names: Collection[str], known: Collection[str]) -> Optional[str]:
    """The first of `names` that is not known to be data."""
    return next((name for name in names if name not in known), None)


def _names(file: IO[bytes]) -> List[str]:
    names: List[str] = []
    texts: List[str] = []  # pushed so far: a STACK_GLOBAL names its object by the last two
    memo: Dict[int, Optional[str]] = {}
    pushed: Optional[str] = None  # by the step before, where that was a text
    for step, argument, _ in pickletools.genops(file):
        kind = step.name
        if kind in _STORES:
            memo[len(memo) if argument is None else argument] = pushed
            continue
        pushed = argument if kind in _TEXT else memo.get(argument) if kind in _FETCHES else None
        if pushed is not None:
            texts.append(pushed)
        if kind in ('GLOBAL', 'INST'):
            names.append(argument.replace(' ', '.'))
        elif kind == 'STACK_GLOBAL':
            names.append('.'.join(texts[-2:]))
    return names
