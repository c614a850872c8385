"""Files that the user vouches for, process-wide: `--trust-checkpoint`.

MMEngine reads checkpoints in places that take no options (the runner, `init_cfg`), so what is
trusted is a matter of the process: exactly the files named, and no others.
"""
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Counter as CounterType
from typing import Iterable, Optional, Type, Union

PathLike = Union[str, 'os.PathLike[str]']

OPTION = '--trust-checkpoint'
_trusted: CounterType[str] = Counter()


class trust_files:
    """Read these files with everything in them, code included, from now on.

    Holds for the process, or for the block where it is used as a context manager.

    Args:
        paths: Local files; as many as the user named, never a folder or a pattern.
    """

    def __init__(self, paths: Iterable[PathLike]) -> None:
        self._names = [_name(path) for path in paths]
        _trusted.update(self._names)

    def __enter__(self) -> 'trust_files':
        """Itself."""
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        """Trust them no longer."""
        _trusted.subtract(self._names)


def is_trusted(path: PathLike) -> bool:
    """Whether the user vouched for this very file."""
    return _trusted[_name(path)] > 0


def _name(path: PathLike) -> str:
    return os.path.normcase(Path(path).expanduser().resolve())
