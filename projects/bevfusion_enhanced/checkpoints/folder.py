"""Which checkpoints lie in the folder of a run, which of them is the newest that can be trusted."""
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

from ..errors import CheckpointError
from .durable import PathLike
from .storage import read_checkpoint, verify_checkpoint

LAST = 'last_checkpoint'
INSIDE = 'checkpoints'  # of a run's folder
_NAME = r'(?:epoch|iter)_\d+\.pth'


class FoundCheckpoint(NamedTuple):
    """A checkpoint of a run, the training iterations in it and the epochs that were finished."""

    path: Path
    iteration: int
    epoch: int = 0


def list_checkpoints(folder: PathLike, *, template: Optional[str] = None) -> List[Path]:
    """Files in `folder` that a run wrote at an interval (not the best ones), sorted by name.

    Args:
        folder: A run's folder; one that does not exist holds none.
        template: `filename_tmpl` of a run that names its files in a way of its own, beside the
            usual `epoch_{}.pth` and `iter_{}.pth`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    name = re.compile(_NAME if template is None else
                      rf'{_NAME}|{re.escape(template).replace(re.escape("{}"), "[0-9]+")}')
    return sorted(path for path in folder.iterdir()
                  if name.fullmatch(path.name) and path.is_file())


def template_in(config: Mapping[str, Any]) -> Optional[str]:
    """`filename_tmpl` of a training that names its files in a way of its own, from its config."""
    return ((config.get('default_hooks') or {}).get('checkpoint') or {}).get('filename_tmpl')


def where_checkpoints_lie(folder: PathLike, *, template: Optional[str] = None) -> Path:
    """The folder itself where it holds checkpoints, else the one for them in a run's folder."""
    folder = Path(folder)
    inside = folder / INSIDE
    if inside.is_dir() and not list_checkpoints(folder, template=template):
        return inside
    return folder


def iterations_of(path: PathLike) -> int:
    """Number of training iterations behind a checkpoint, from its metadata alone.

    Raises:
        CheckpointError: The file cannot be read, or is not one to resume from.
    """
    return _progress(Path(path)).iteration


def find_newest(folder: PathLike, *, skipped: Callable[[str], None],
                template: Optional[str] = None) -> Optional[FoundCheckpoint]:
    """The checkpoint of most iterations that is whole, whatever `last_checkpoint` says.

    Of two with as many iterations, the one that finished the epoch.

    Args:
        folder: A run's folder.
        skipped: Called with the reason for each file that cannot be used.
        template: See `list_checkpoints`.

    Returns:
        None where the folder holds no usable checkpoint.
    """
    return next(iter(newest_first(folder, count=1, skipped=skipped, template=template)), None)


def newest_first(folder: PathLike, *, count: int, skipped: Callable[[str], None],
                 template: Optional[str] = None) -> List[FoundCheckpoint]:
    """Up to `count` checkpoints that are whole, the furthest first; see `find_newest`."""
    readable: List[FoundCheckpoint] = []
    for path in list_checkpoints(folder, template=template):
        try:
            readable.append(_progress(path))
        except CheckpointError as error:
            skipped(str(error))
    readable.sort(key=lambda found: (found.iteration, found.epoch, found.path.name), reverse=True)
    whole: List[FoundCheckpoint] = []
    for found in readable:
        if len(whole) == count:
            break
        try:
            verify_checkpoint(found.path)
            whole.append(found)
        except CheckpointError as error:
            skipped(str(error))
    return whole


def _progress(path: Path) -> FoundCheckpoint:
    meta: Dict[str, Any] = read_checkpoint(path, mmap=True).get('meta') or {}
    if not isinstance(meta, dict) or not isinstance(meta.get('iter'), int):
        raise CheckpointError(f'checkpoint {path} does not say how far its training was, so it '
                              'cannot be resumed; use --load-from to take its weights')
    epoch = meta.get('epoch')
    return FoundCheckpoint(path, int(meta['iter']), epoch if isinstance(epoch, int) else 0)
