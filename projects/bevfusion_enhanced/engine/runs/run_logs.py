"""Logs that a run appends to over all its starts: exactly as long as its checkpoint says.

Events after the newest checkpoint are written again when a killed run is resumed. So a checkpoint
carries the length of each log, and resuming cuts the logs to those lengths. What is cut off is not
thrown away: it goes to `superseded/` in the folder of the new start.

A log is anything among the visualizer's backends and the hooks that is a `RunLog`.
"""
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, List, Protocol, Tuple, runtime_checkable

from mmengine.dist import is_main_process
from mmengine.runner import Runner

LogLengths = Dict[str, Dict[str, Any]]

SUPERSEDED = 'superseded'
_TAIL_BYTES = 4096


@runtime_checkable
class RunLog(Protocol):
    """What appends to files in the run's folder."""

    def flush_log(self) -> None:
        """Bring everything logged so far into the files."""

    def log_files(self) -> List[Path]:
        """The files of this log that are there, of this start and of earlier ones."""

    def resume_log(self, iteration: int) -> None:
        """Told once, before anything is logged: the run goes on after so many iterations."""


def measure(runner: Runner) -> LogLengths:
    """Length and last bytes of each log file by its path in the run's folder; main process only."""
    lengths: LogLengths = {}
    for log in logs_of(runner):
        log.flush_log()
        for path in _files(log, runner):
            size = path.stat().st_size
            lengths[_name(path, runner)] = dict(size=size, tail=_digest_before(path, size))
    return lengths


def rewind(runner: Runner, lengths: LogLengths, *, iteration: int) -> Tuple[str, ...]:
    """Cut the logs to what they were at a checkpoint; does nothing but in the main process.

    Args:
        runner: The run that goes on.
        lengths: What `measure` returned then.
        iteration: Iterations done then.

    Returns:
        What is not as it was.
    """
    notes: List[str] = []
    if not is_main_process():
        return ()
    for log in logs_of(runner):
        for path in _files(log, runner):
            notes += _rewind_file(path, lengths.get(_name(path, runner)), runner)
        log.resume_log(iteration)
    return tuple(notes)


def start_anew(runner: Runner) -> None:
    """Set logs aside that an earlier start without a checkpoint left; only in the main process."""
    if is_main_process():
        for log in logs_of(runner):
            for path in _files(log, runner):
                _set_aside(path, runner)


def logs_of(runner: Runner) -> List[RunLog]:
    """The logs of a runner."""
    candidates: Iterable[Any] = (*runner.visualizer._vis_backends.values(), *runner.hooks)
    return [candidate for candidate in candidates if isinstance(candidate, RunLog)]


def _files(log: RunLog, runner: Runner) -> List[Path]:
    """Those of this run: MMEngine's visualizer, one for a process, may be that of a run before."""
    folder = Path(runner.work_dir).resolve()
    return [path for path in log.log_files() if path.resolve().is_relative_to(folder)]


def _rewind_file(path: Path, length: Dict[str, Any], runner: Runner) -> List[str]:
    if length is None:  # begun after the checkpoint, or by another run
        _set_aside(path, runner)
        return []
    size = path.stat().st_size
    if size < length['size']:
        return [f'{path} is shorter than it was at the checkpoint: entries are missing']
    if _digest_before(path, length['size']) != length['tail']:
        _set_aside(path, runner)
        return [f'{path} is not what it was at the checkpoint, and was set aside']
    if size > length['size']:
        _keep_tail(path, length['size'], runner)
        os.truncate(path, length['size'])
    return []


def _set_aside(path: Path, runner: Runner) -> None:
    shutil.move(str(path), str(_place_for(path, runner)))


def _keep_tail(path: Path, start: int, runner: Runner) -> None:
    with open(path, 'rb') as source, open(_place_for(path, runner), 'wb') as target:
        source.seek(start)
        shutil.copyfileobj(source, target)


def _place_for(path: Path, runner: Runner) -> Path:
    """A free path in `superseded/`, under a name that TensorBoard does not take for its own."""
    folder = Path(runner.log_dir, SUPERSEDED)
    folder.mkdir(parents=True, exist_ok=True)
    name = path.name.replace('tfevents', 'events')
    place, number = folder / name, 1
    while place.exists():
        place, number = folder / f'{name}.{number}', number + 1
    return place


def _digest_before(path: Path, end: int) -> str:
    """SHA-256 of the last bytes before `end`: tells this log from another of the same name."""
    with open(path, 'rb') as file:
        file.seek(max(end - _TAIL_BYTES, 0))
        return hashlib.sha256(file.read(min(end, _TAIL_BYTES))).hexdigest()


def _name(path: Path, runner: Runner) -> str:
    return Path(os.path.relpath(path, runner.work_dir)).as_posix()
