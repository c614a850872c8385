"""Checkpoint files: read without executing anything, written so that no half file can remain."""
import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, Union

import torch

from ..compat import torch_load
from ..errors import CheckpointError
from .numpy_records import resolve
from .safe_types import safe_types

PathLike = Union[str, 'os.PathLike[str]']

_HEAD_BYTES = 512
_REFUSED = (
    re.compile(r'GLOBAL (\S*) was not an allowed'),
    re.compile(r'unsupported GLOBAL (\S+) whose module'),
    re.compile(r'reduce for unrecognized function (.+?)(?: which belongs|$)', re.MULTILINE),
    re.compile(r'but got <class \'([^\']+)\'>'),
)


def read_checkpoint(path: PathLike, *, map_location: Any = 'cpu', mmap: bool = False
                    ) -> Dict[str, Any]:
    """Read a checkpoint written by torch, by MMEngine or by `write_checkpoint`.

    Only tensors, containers, NumPy values and MMEngine's records are rebuilt (`safe_types`); a
    file that asks for any other object is refused before that object is touched.

    Args:
        path: A local file.
        map_location: Where the tensors go, as for `torch.load`.
        mmap: Map the tensors from the file in place of reading them: for looking at names, shapes
            and metadata. Ignored for files of torch's old format.

    Raises:
        CheckpointError: The file is missing, empty, cut short, something else than a checkpoint,
            or holds an object that is not allowed.
    """
    path = Path(path).expanduser()
    head = _read_head(path)
    mmap = mmap and head.startswith(b'PK') and str(map_location) == 'cpu'
    try:
        checkpoint = resolve(
            torch_load(path, safe_types(), map_location=map_location, mmap=mmap))
    except Exception as error:  # torch meets a damaged file with almost any kind
        raise CheckpointError(f'checkpoint {path} {_explain(error, path)}') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary of '
            'tensors or one with a "state_dict" entry')
    return checkpoint


def write_checkpoint(checkpoint: Dict[str, Any], path: PathLike) -> None:
    """Write a checkpoint whole or not at all: beside the target, flushed to disk, then renamed.

    Raises:
        CheckpointError: The file cannot be written; what was there before is untouched.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(buffer.getbuffer(), path)


def write_bytes(data: Union[bytes, memoryview], path: PathLike) -> None:
    """Replace the file `path` by `data` in one step; see `write_checkpoint`."""
    path = Path(path).expanduser()
    beside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f'cannot write {path}: {error.strerror or error}; what was there before is untouched, '
            'free some space or give another --work-dir') from error
    finally:
        beside.unlink(missing_ok=True)


def verify_checkpoint(path: PathLike) -> None:
    """Read every byte of a checkpoint and compare with the sums stored in it.

    `torch.load` does not notice a flipped bit in a tensor; this does.

    Raises:
        CheckpointError: The file is damaged, cut short or not in torch's zip format.
    """
    path = Path(path).expanduser()
    _read_head(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f'checkpoint {path} {_explain(error, path)}') from error
    if damaged:
        raise CheckpointError(f'checkpoint {path} is damaged (its part {damaged} does not have the '
                              'sum that was stored with it); use another one')


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened (not on Windows)."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_head(path: Path) -> bytes:
    """The first bytes of the file, once they look like a checkpoint's."""
    if not path.exists():
        raise CheckpointError(f'checkpoint {path} does not exist; check the path')
    if path.is_dir():
        raise CheckpointError(f'checkpoint {path} is a folder; name a file in it')
    try:
        with open(path, 'rb') as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f'checkpoint {path} cannot be read: {error.strerror}') from error
    if not head:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes); copy or download it again')
    if head.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'checkpoint {path} is a git-LFS pointer, not the weights; run '
                              '"git lfs pull" where it came from')
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise CheckpointError(f'checkpoint {path} is a web page, not weights; download the file '
                              'itself, not the page that links to it')
    return head


def _ends_within(path: Path, name: str) -> bool:
    """Whether the file stops in the middle of this name, so that the name itself is cut short."""
    last = name.rpartition('.')[2].encode()
    with open(path, 'rb') as file:
        file.seek(max(path.stat().st_size - len(last) - 1, 0))
        tail = file.read()
    return tail.endswith(last) or tail[:-1] == last  # torch drops what it takes for a line's end


def _explain(error: Exception, path: Path) -> str:
    """Why torch refused the file, as the rest of a sentence that starts with its name."""
    message = str(error)
    for pattern in _REFUSED:
        found = pattern.search(message)
        if found and not _ends_within(path, found.group(1)):
            return (f'holds {found.group(1)}, which is not data: nothing of it was executed; '
                    'export the weights alone with torch.save(model.state_dict(), ...)')
    if '.tar format' in message or 'TorchScript' in message:
        return ('is of a format that cannot be read safely (TorchScript or torch before 1.0); '
                'export the weights alone with torch.save(model.state_dict(), ...)')
    reason = message.strip().split('\n')[0].split('. ')[0][:100]
    if len(reason) < 8:  # a bare byte or key says nothing by itself
        reason = f'{type(error).__name__} {reason}'.strip()
    return (f'is damaged, cut short or no checkpoint ({path.stat().st_size:,} bytes: {reason}); '
            'copy or download it again')
