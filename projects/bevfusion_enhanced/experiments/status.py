"""What a run does now, or how it ended, as its own folder says.

A training holds a lock on its folder, which the system releases however the process ends. A folder
whose status says `running` but whose lock is free belongs to a process that was killed.
"""
import json
import os
import socket
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Iterator, Tuple

from filelock import FileLock, Timeout

from ..checkpoints.durable import replace_bytes
from ..errors import ConfigError
from .run_files import RunFiles

RUNNING, FINISHED, STOPPED, FAILED, KILLED = 'running', 'finished', 'stopped', 'failed', 'killed'
_WAIT = 2.0  # seconds; someone who lists runs holds a lock for an instant


@dataclass(frozen=True)
class Status:
    """The contents of `status.json`.

    Attributes:
        state: `running`, `finished` (all epochs done), `stopped` (asked to), `failed` (an error),
            or, as read back, `killed` (ended without a word).
        reason: Why it stopped or failed; empty otherwise.
        epoch: Epochs done.
        max_epochs: Epochs asked for.
        iteration: Iterations done.
        started: Time of the last start, ISO 8601.
        updated: Time of the last change of this record, ISO 8601.
        host: Name of the machine.
        process: Its process there.
    """

    state: str
    reason: str = ''
    epoch: int = 0
    max_epochs: int = 0
    iteration: int = 0
    started: str = ''
    updated: str = ''
    host: str = ''
    process: int = 0


def starting(*, max_epochs: int) -> Status:
    """The status of a run that starts now, in this process."""
    return Status(state=RUNNING, max_epochs=max_epochs, started=_now(), host=socket.gethostname(),
                  process=os.getpid())


def write_status(files: RunFiles, status: Status) -> Status:
    """Replace `status.json` in one step; returns what was written, with its time.

    Raises:
        OSError: It cannot be written; what was there before is untouched.
    """
    status = replace(status, updated=_now())
    replace_bytes((json.dumps(asdict(status), indent=2) + '\n').encode(), files.status)
    return status


def read_status(files: RunFiles) -> Status:
    """The state of a run as it is now: `running` only if its process still holds the lock."""
    try:
        record: Any = json.loads(files.status.read_text())
        known = {name: record[name] for name in Status.__dataclass_fields__ if name in record}
        status = Status(**known)
    except (OSError, ValueError, TypeError) as error:
        return Status(state=FAILED, reason=f'{files.status.name} cannot be read: {error}')
    if status.state == RUNNING and not is_locked(files):
        where = f'after epoch {status.epoch} of {status.max_epochs}' if status.max_epochs else ''
        return replace(status, state=KILLED, reason=f'ended without a word {where}'.strip())
    return status


def is_locked(files: RunFiles) -> bool:
    """Whether a training is at work in this folder."""
    if not files.lock.is_file():
        return False
    lock = FileLock(str(files.lock))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a read-only archive of runs
        return False
    lock.release()
    return False


@contextmanager
def locked(files: RunFiles) -> Iterator[None]:
    """Hold the folder for one training.

    Raises:
        ConfigError: Another process trains in it.
    """
    files.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(files.lock))
    try:
        lock.acquire(timeout=_WAIT)
    except Timeout:
        raise ConfigError(f'{files.folder} is in use by a training that is still running'
                          f'{_owner(files)}; give another --extra-tag, or wait') from None
    try:
        yield
    finally:
        lock.release()


def _owner(files: RunFiles) -> str:
    status = read_status(files) if files.status.is_file() else None
    return f' (process {status.process} on {status.host})' if status and status.process else ''


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')


def folder_size(folder: Path) -> Tuple[int, int]:
    """(bytes, files) below a folder; files that vanish meanwhile do not count."""
    size = count = 0
    for path in folder.rglob('*'):
        try:
            if path.is_file():
                size += path.stat().st_size
                count += 1
        except OSError:
            continue
    return size, count
