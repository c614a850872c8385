"""Moving out of the way what must not be overwritten; nothing is ever deleted."""
import time
from pathlib import Path
from typing import Optional


def move_aside(folder: Path) -> Optional[Path]:
    """Rename a folder to `<name>_<time of its last change>`.

    Returns:
        Its new path, or None where there was nothing to move: no folder, or an empty one.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    changed = time.strftime('%Y%m%d_%H%M%S', time.localtime(folder.stat().st_mtime))
    return folder.rename(free_path(folder.with_name(f'{folder.name}_{changed}')))


def free_path(path: Path) -> Path:
    """The path itself, or the first of `<path>_2`, `<path>_3`, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f'{path.name}_{number}')
    return candidate
