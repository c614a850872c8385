"""Which checkpoints lie in the folder of a run, which of them is the newest that can be trusted."""
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from ..checkpoints.storage import PathLike, read_checkpoint, verify_checkpoint
from ..errors import CheckpointError

_NAME = re.compile(r'^(?:epoch|iter)_\d+\.pth$')


class FoundCheckpoint(NamedTuple):
    """A checkpoint of a run and the number of training iterations in it."""

    path: Path
    iteration: int


def list_checkpoints(folder: PathLike) -> List[Path]:
    """Files in `folder` that a run wrote at an interval (not the best ones), sorted by name."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.match(path.name) and path.is_file())


def iterations_of(path: PathLike) -> int:
    """Number of training iterations behind a checkpoint, from its metadata alone.

    Raises:
        CheckpointError: The file cannot be read, or is not one to resume from.
    """
    meta: Dict[str, Any] = read_checkpoint(path, mmap=True).get('meta') or {}
    if not isinstance(meta.get('iter'), int):
        raise CheckpointError(f'checkpoint {path} does not say how far its training was, so it '
                              'cannot be resumed; use --load-from to take its weights')
    return int(meta['iter'])


def find_newest(folder: PathLike, *, skipped: Callable[[str], None]) -> Optional[FoundCheckpoint]:
    """The checkpoint of most iterations that is whole, whatever `last_checkpoint` says.

    Args:
        folder: A run's folder.
        skipped: Called with the reason for each file that cannot be used.

    Returns:
        None where the folder holds no usable checkpoint.
    """
    readable = []
    for path in list_checkpoints(folder):
        try:
            readable.append(FoundCheckpoint(path, iterations_of(path)))
        except CheckpointError as error:
            skipped(str(error))
    for found in sorted(readable, key=lambda item: (item.iteration, item.path.name), reverse=True):
        try:
            verify_checkpoint(found.path)
            return found
        except CheckpointError as error:
            skipped(str(error))
    return None


def refuse_used_folder(folder: PathLike) -> None:
    """Keep a new run out of a folder that holds another run's checkpoints.

    Raises:
        CheckpointError: There are checkpoints in it.
    """
    existing = list_checkpoints(folder)
    if existing:
        raise CheckpointError(
            f'work dir {folder} already holds {len(existing)} checkpoint'
            f'{"s" if len(existing) > 1 else ""} of an earlier run ({existing[-1].name}, ...), '
            'which a new run would overwrite; go on with --resume, or give another --work-dir')


def refuse_overwriting(folder: PathLike, resumed: PathLike) -> None:
    """Keep a resumed run from overwriting checkpoints of another one, or later ones of its own.

    Raises:
        CheckpointError: `folder` holds checkpoints, and `resumed` is not among them or not the
            furthest.
    """
    existing = list_checkpoints(folder)
    resumed = Path(resumed).expanduser()
    if not existing:
        return
    if resumed.resolve().parent != Path(folder).resolve():
        refuse_used_folder(folder)
    limit = iterations_of(resumed)
    for path in existing:
        try:
            further = iterations_of(path) > limit
        except CheckpointError:
            further = False
        if further:
            raise CheckpointError(
                f'work dir {folder} holds {path.name}, which is further than {resumed.name} and '
                'would be overwritten; use --resume without a file, or give another --work-dir')
