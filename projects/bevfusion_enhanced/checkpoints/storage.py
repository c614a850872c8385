"""Checkpoint files: read without executing anything, written so that no half file can remain.

Torch's own format (`.pth` and whatever else) and `.safetensors`; told apart by their content when
read and by their name when written.
"""
import functools
import os
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Union

import torch

from ..compat import torch_load, torch_names
from ..errors import CheckpointError
from . import durable, safetensors_files, sidecar
from .durable import Bytes, FileBeside
from .numpy_records import resolve
from .pickle_names import first_unknown, names_in
from .safe_types import safe_types
from .trust import OPTION, is_trusted

PathLike = Union[str, 'os.PathLike[str]']

_HEAD_BYTES = 512
_ZIP = b'PK'
_REFUSED = (
    re.compile(r'GLOBAL (\S*) was not an allowed'),
    re.compile(r'unsupported GLOBAL (\S+) whose module'),
    re.compile(r'reduce for unrecognized function (.+?)(?: which belongs|$)', re.MULTILINE),
    re.compile(r'but got <class \'([^\']+)\'>'),
)
_ON_TRUST = f'or, if the file is your own, add {OPTION}'


def read_checkpoint(path: PathLike, *, map_location: Any = 'cpu', mmap: bool = False,
                    trust: bool = False, verify: bool = False) -> Dict[str, Any]:
    """Read a checkpoint written by torch, by MMEngine or by `write_checkpoint`.

    Only tensors, containers, NumPy values and MMEngine's records are rebuilt (`safe_types`); a
    file that asks for any other object is refused before that object is touched.

    Args:
        path: A local file.
        map_location: Where the tensors go, as for `torch.load`; a device for `.safetensors`.
        mmap: Map the tensors from the file in place of reading them: for looking at names, shapes
            and metadata. Ignored for files of torch's old format.
        trust: Execute whatever the file asks for, as `torch.load` did before 2.6. Also so for
            files given to `trust.trust_files`.
        verify: Compare the file with its sums first, where it has any: see `verify_checkpoint`.
            A file that this process found to be whole is not read again until it changes.

    Raises:
        CheckpointError: The file is missing, empty, cut short, something else than a checkpoint,
            holds an object that is not allowed, or is damaged.
    """
    path = Path(path).expanduser()
    head = _read_head(path)
    if verify and (head.startswith(_ZIP) or sidecar.read_sums(path)):
        status = path.stat()
        _verify_once(path, status.st_size, status.st_mtime_ns)
    local = str(map_location) == 'cpu'
    try:
        if safetensors_files.is_safetensors(head):
            return safetensors_files.read(path, map_location=map_location, mmap=mmap)
        mmap = mmap and head.startswith(_ZIP) and local
        if trust or is_trusted(path):
            checkpoint = torch.load(path, map_location=map_location, weights_only=False, mmap=mmap)
        else:
            checkpoint = resolve(
                torch_load(path, safe_types(), map_location=map_location, mmap=mmap))
    except Exception as error:  # torch meets a damaged file with almost any kind
        raise CheckpointError(f'checkpoint {path} {_explain(error, path)}') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary of '
            'tensors or one with a "state_dict" entry')
    return checkpoint


def write_checkpoint(checkpoint: Dict[str, Any], path: PathLike) -> str:
    """Write a checkpoint whole or not at all, with its SHA-256 beside it (see `sidecar`).

    It is written beside the target, flushed to disk, then renamed: a crash, a full disk or a kill
    leaves what was there before. What earlier such writes left behind in the folder is deleted.

    Args:
        checkpoint: Anything that torch can store; for `.safetensors`, weights or a dictionary of
            `state_dict` and `meta`.
        path: Its name decides the format: `.safetensors`, or torch's.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        CheckpointError: The file cannot be written; what was there before is untouched.
    """
    path = Path(path).expanduser()
    try:
        with FileBeside(path) as file:
            _serialise(checkpoint, file, path)
            digest = file.finish()
            sidecar.put_in_place(file.path, digest, path)
    except OSError as error:
        raise _not_written(path, error) from error
    _sweep(path.parent)
    return digest


def publish_checkpoint(checkpoint: Dict[str, Any], path: PathLike) -> Path:
    """Write a checkpoint beside `path`, under its name and the first 8 digits of its own SHA-256.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path = Path(path).expanduser()
    try:
        with FileBeside(path) as file:
            _serialise(checkpoint, file, path)
            digest = file.finish()
            target = path.with_name(f'{path.stem}-{digest[:8]}{path.suffix}')
            sidecar.put_in_place(file.path, digest, target)
    except OSError as error:
        raise _not_written(path, error) from error
    return target


def write_bytes(data: Bytes, path: PathLike) -> None:
    """Replace the file `path` by `data` in one step; see `write_checkpoint`."""
    path = Path(path).expanduser()
    try:
        durable.replace_bytes(data, path)
    except OSError as error:
        raise _not_written(path, error) from error


def verify_checkpoint(path: PathLike) -> None:
    """Read every byte of a checkpoint and compare with its SHA-256, or the sums within it.

    `torch.load` does not notice a flipped bit in a tensor; this does. A sidecar that another file
    of this name left behind is told from damage and not held against a file that is whole.

    Raises:
        CheckpointError: The file is damaged, cut short, or in a format without sums and without a
            sidecar.
    """
    path = Path(path).expanduser()
    head = _read_head(path)
    sums = sidecar.read_sums(path)
    if sums:
        try:
            digest = sidecar.file_digest(path)
        except OSError as error:
            raise CheckpointError(f'checkpoint {path} cannot be read: {error.strerror}') from error
        if digest in {entry.digest for entry in sums}:
            return
        parts = sidecar.parts_digest(path)
        if parts is None or parts in {entry.parts for entry in sums}:
            raise CheckpointError(
                f'checkpoint {path} is damaged or cut short (its SHA-256 is not the one in '
                f'{sidecar.sidecar_of(path).name}); use another one, or delete that file if the '
                'checkpoint was replaced on purpose')
    if safetensors_files.is_safetensors(head):
        safetensors_files.check_structure(path)
    else:
        _verify_parts(path)


@functools.lru_cache(maxsize=64)
def _verify_once(path: Path, size: int, changed: int) -> None:
    verify_checkpoint(path)


def delete_checkpoint(path: PathLike) -> None:
    """Delete a checkpoint and its sidecar; the sidecar last, so that it never misleads.

    Raises:
        CheckpointError: The file cannot be deleted.
    """
    path = Path(path)
    try:
        path.unlink(missing_ok=True)
        sidecar.sidecar_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f'cannot delete {path}: {error.strerror or error}; delete it by hand'
                              ) from error


def _serialise(checkpoint: Dict[str, Any], file: FileBeside, path: Path) -> None:
    if path.suffix == safetensors_files.SUFFIX:
        safetensors_files.write(checkpoint, file, target=path)
        return
    try:
        torch.save(checkpoint, file)
    except OSError:
        raise
    except Exception as error:  # pickle meets what it cannot store with almost any kind
        raise CheckpointError(
            f'cannot write {path}: it holds something that cannot be stored '
            f'({type(error).__name__}: {" ".join(str(error).split())[:200]})') from error


def _not_written(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f'cannot write {path}: {error.strerror or error}; what was there before is untouched, '
        'free some space or give another --work-dir')


def _sweep(folder: Path) -> None:
    try:
        durable.sweep(folder)
    except OSError:
        pass  # leftovers are ignored by every reader; the next write tries again


def _verify_parts(path: Path) -> None:
    """Compare the parts of a zip file with the sums stored in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f'checkpoint {path} {_explain(error, path)}') from error
    if damaged:
        raise CheckpointError(f'checkpoint {path} is damaged (its part {damaged} does not have the '
                              'sum that was stored with it); use another one')


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
    if isinstance(error, ModuleNotFoundError):
        return f'needs the module {error.name}, which is not installed; install it'
    for pattern in _REFUSED:
        found = pattern.search(message)
        if found and not _ends_within(path, found.group(1)):
            return (f'holds {found.group(1)}, which is not data: nothing of it was executed; '
                    f'export the weights alone with torch.save(model.state_dict(), ...), '
                    f'{_ON_TRUST}')
    if '.tar format' in message or 'TorchScript' in message:
        return ('is of a format that cannot be read safely (TorchScript or torch before 1.0); '
                f'export the weights alone with torch.save(model.state_dict(), ...), {_ON_TRUST}')
    if 'Unsupported operand' in message or 'Invalid magic number' in message:
        names = names_in(path)
        if names is not None:
            return _explain_protocol(names)
    reason = message.strip().split('\n')[0].split('. ')[0][:100]
    if len(reason) < 8:  # a bare byte or key says nothing by itself
        reason = f'{type(error).__name__} {reason}'.strip()
    return (f'is damaged, cut short or no checkpoint ({path.stat().st_size:,} bytes: {reason}); '
            'copy or download it again')


def _explain_protocol(names: List[str]) -> str:
    """Why a whole pickle that torch does not read safely is refused; what it asks for is named."""
    unknown = first_unknown(names, {*torch_names(), *(name for _, name in safe_types())})
    again = 'export the weights alone with torch.save(model.state_dict(), ...)'
    if unknown is not None:
        return f'holds {unknown}, which is not data: nothing of it was executed; {again}'
    return ('is a pickle of a kind that cannot be read safely (not of torch.save, or of another '
            f'protocol than 2); {again}')
