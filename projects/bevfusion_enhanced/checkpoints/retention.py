"""Which checkpoints of a run can be deleted; first said, then done."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..errors import CheckpointError
from .durable import PathLike, leftovers
from .folder import (
    INSIDE,
    LAST,
    FoundCheckpoint,
    list_checkpoints,
    newest_first,
    where_checkpoints_lie,
)
from .sidecar import SUFFIX, sidecar_of
from .storage import delete_checkpoint, read_checkpoint

_BEST = 'best_'


@dataclass(frozen=True)
class Item:
    """A file, its size in bytes with what belongs to it, and why it is kept or deleted."""

    path: Path
    size: int
    reason: str


@dataclass(frozen=True)
class PrunePlan:
    """What `prune` would do.

    Attributes:
        folder: Where the checkpoints lie.
        delete: Files to delete, in the order of their names.
        keep: Checkpoints that stay.
        skipped: What is wrong with checkpoints that cannot be used.
    """

    folder: Path
    delete: Tuple[Item, ...]
    keep: Tuple[Item, ...]
    skipped: Tuple[str, ...]

    @property
    def bytes_freed(self) -> int:
        """Sum of the sizes of what would be deleted."""
        return sum(item.size for item in self.delete)


def plan_prune(folder: PathLike, *, keep: int = 1, template: Optional[str] = None) -> PrunePlan:
    """Choose what to delete: checkpoints of an interval beyond the newest `keep` that are whole.

    Never the best ones, the newest whole one, and the one that `last_checkpoint` names. Damaged
    ones count as nothing kept. Unfinished files and sums without a file go too. Where no
    checkpoint is whole, nothing is deleted.

    Args:
        folder: A run's folder, or that of its checkpoints; no training is going on in it.
        keep: How many to keep, at least 1.
        template: `filename_tmpl` of the run, where it has one of its own.

    Raises:
        CheckpointError: The folder does not exist, or `keep` is less than 1.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f'{folder} is not a folder; name the folder of a run')
    folder = where_checkpoints_lie(folder, template=template)
    if keep < 1:
        raise CheckpointError(f'keep is {keep}; at least the newest checkpoint is kept')
    skipped: List[str] = []
    newest = newest_first(folder, count=keep, skipped=skipped.append, template=template)
    reasons = _reasons_to_keep(folder, newest)
    kept = [_item(path, reason) for path, reason in sorted(reasons.items())]
    delete: List[Item] = []
    for path in list_checkpoints(folder, template=template) if newest else ():
        if path not in reasons:
            damaged = any(text.startswith(f'checkpoint {path} ') for text in skipped)
            delete.append(_item(path, 'cannot be used' if damaged
                                else f'older than the newest {keep}'))
    delete += [_item(path, 'unfinished') for path in leftovers(folder)]
    delete += [_item(path, 'sums of a file that is gone') for path in _orphans(folder)]
    return PrunePlan(folder, tuple(delete), tuple(kept), tuple(skipped))


def prune(plan: PrunePlan) -> Tuple[Path, ...]:
    """Delete what the plan says; returns what was deleted.

    Raises:
        CheckpointError: A file cannot be deleted, or what the plan keeps is gone by now; nothing
            further was deleted.
    """
    for item in plan.keep:
        if not item.path.exists():
            raise CheckpointError(f'{item.path} was to be kept and is gone; look at the folder and '
                                  'plan again')
    for item in plan.delete:
        delete_checkpoint(item.path)
    return tuple(item.path for item in plan.delete)


def _reasons_to_keep(folder: Path, newest: List[FoundCheckpoint]) -> Dict[Path, str]:
    reasons: Dict[Path, str] = {}
    for found in newest:
        reasons[found.path] = 'newest' if found is newest[0] else 'among the newest'
    last = _last(folder)
    if last is not None:
        reasons.setdefault(last, f'named by {LAST}')
    for path in folder.glob(f'{_BEST}*'):
        if path.suffix != SUFFIX and path.is_file():
            reasons.setdefault(path, 'best')
    for found in newest:
        for name in _best_in(read_checkpoint(found.path, mmap=True)):
            if (folder / name).is_file():
                reasons.setdefault(folder / name, 'best')
    return reasons


def _last(folder: Path) -> Optional[Path]:
    place = folder.parent if folder.name == INSIDE else folder  # MMEngine writes it into work_dir
    try:
        name = Path((place / LAST).read_text(encoding='utf-8').strip()).name
    except (OSError, UnicodeDecodeError):
        return None
    return folder / name if name and (folder / name).is_file() else None


def _best_in(checkpoint: Dict[str, Any]) -> List[str]:
    """Names of the best checkpoints, as a run notes them for its resumption."""
    info = (checkpoint.get('message_hub') or {}).get('runtime_info') or {}
    return [Path(value).name for key, value in info.items()
            if key.startswith('best_ckpt') and isinstance(value, str)]


def _orphans(folder: Path) -> List[Path]:
    return sorted(path for path in folder.glob(f'*.pth{SUFFIX}')
                  if not path.with_name(path.name[:-len(SUFFIX)]).exists())


def _item(path: Path, reason: str) -> Item:
    files = [path, sidecar_of(path)]
    return Item(path, sum(file.stat().st_size for file in files if file.is_file()), reason)
