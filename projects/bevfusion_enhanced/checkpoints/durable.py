"""Files that appear whole or not at all: written beside the target, flushed to disk, then renamed.

What a killed process leaves behind is a hidden file named after its target and its process, which
nothing reads and `sweep` deletes.
"""
import hashlib
import itertools
import os
import re
from pathlib import Path
from types import TracebackType
from typing import List, Optional, Set, Type, Union

PathLike = Union[str, 'os.PathLike[str]']
Bytes = Union[bytes, bytearray, memoryview]

_LEFTOVER = re.compile(r'^\..+\.(\d+)(?:-\d+)?\.tmp$')
_NUMBER = itertools.count()
_in_progress: Set[Path] = set()


class FileBeside:
    """A new file beside its target, which knows the SHA-256 of what was written to it.

    Serves as the file object of `torch.save`, hence `write` and `flush`. A failed write is kept
    for `finish` and everything after it dropped: an exception that passes through torch's writer
    comes out as another one, without its cause.

    Args:
        target: What the file is meant to replace; its folder is made.

    Raises:
        OSError: The folder or the file cannot be made.
    """

    def __init__(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path = target.with_name(f'.{target.name}.{os.getpid()}-{next(_NUMBER)}.tmp')
        self._digest = hashlib.sha256()
        self._error: Optional[OSError] = None
        _in_progress.add(self.path)
        try:
            # No buffer of Python's: a process forked in the meantime would flush it once more.
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                                       | getattr(os, 'O_BINARY', 0), 0o666)
        except OSError:
            _in_progress.discard(self.path)
            raise

    def write(self, data: Bytes) -> int:
        """Append `data`; an error is raised by `finish`."""
        rest = memoryview(data).cast('B')
        if self._error is None:
            try:
                self._digest.update(rest)
                while rest:
                    rest = rest[os.write(self._descriptor, rest):]
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Nothing is held back; `finish` flushes to disk."""

    def finish(self) -> str:
        """Flush to disk and return the SHA-256, in hexadecimal digits.

        Raises:
            OSError: This or an earlier write failed.
        """
        if self._error is not None:
            raise self._error
        os.fsync(self._descriptor)
        self._close()
        return self._digest.hexdigest()

    def __enter__(self) -> 'FileBeside':
        """The file itself."""
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        """Delete the file, unless it was renamed to its target."""
        try:
            self._close()
        finally:
            _delete(self.path)
            _in_progress.discard(self.path)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Replace `target` by `source`, and make that durable."""
    os.replace(source, target)
    sync_folder(target.parent)


def replace_bytes(data: Bytes, path: Path) -> None:
    """Replace the file `path` by `data` in one step.

    Raises:
        OSError: It cannot be written; what was there before is untouched.
    """
    with FileBeside(path) as file:
        file.write(data)
        file.finish()
        rename(file.path, path)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system lets it be opened (not on Windows)."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leftovers(folder: PathLike) -> List[Path]:
    """Unfinished files of writes that were killed, sorted by name."""
    return sorted(path for path in Path(folder).iterdir() if _is_leftover(path))


def sweep(folder: PathLike) -> None:
    """Delete the unfinished files of writes that were killed, as far as that is possible."""
    for path in leftovers(folder):
        _delete(path)


def _is_leftover(path: Path) -> bool:
    found = _LEFTOVER.match(path.name)
    if not found or path in _in_progress:
        return False
    process = int(found.group(1))
    # In a container every process that ever wrote here may have had the number that this one has.
    return process == os.getpid() or not _is_alive(process)


def _is_alive(process: int) -> bool:
    if os.name != 'posix':
        return False  # a signal would end it; a file that is open cannot be deleted there anyway
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _delete(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
