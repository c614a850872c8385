"""What the start of a training means for the run that its folder already holds."""
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from ..checkpoints.change_rules import TRAINING
from ..checkpoints.explain import Change, explain_change
from ..checkpoints.folder import iterations_of, list_checkpoints
from ..checkpoints.sidecar import sidecar_of
from ..errors import CheckpointError, ConfigError
from .aside import free_path, move_aside
from .run_files import RunFiles
from .runs import read_lines
from .settings import read_config
from .status import FINISHED, is_locked, read_status
from .tags import DEFAULT

BEGIN, GO_ON, NOTHING = 'begin', 'go on', 'nothing'
_NAMED = 6
_STARTED = {'work_dir', 'load_from', 'resume', 'launcher', 'log_file',
            'default_hooks.checkpoint.out_dir', 'default_hooks.run_record.load_from'}
_LENGTH = ('train_cfg.max_epochs', 'param_scheduler')  # --epochs asks to go on, with both


@dataclass(frozen=True)
class Start:
    """What to do.

    Attributes:
        kind: `BEGIN` a training, `GO_ON` with the one that is there, or `NOTHING`.
        checkpoint: The file to go on from; None for the newest that is valid.
        notes: What the log says about the decision.
    """

    kind: str
    checkpoint: Optional[str] = None
    notes: Tuple[str, ...] = ()


def plan_start(files: RunFiles, config: Mapping[str, Any], *, checkpoints: Path,
               load_from: Sequence[str] = (), checkpoint: Optional[str] = None,
               template: Optional[str] = None) -> Start:
    """Go on with the run that the folder holds, where it is the same training; nothing is changed.

    Args:
        files: The run's folder.
        config: The resolved config of this start.
        checkpoints: Where its checkpoints go.
        load_from: Weights that this start asks for.
        checkpoint: A file that it asks to go on from.
        template: `filename_tmpl` of the training, where it has one of its own.

    Raises:
        ConfigError: The folder holds another training: names what differs, offers a new tag.
    """
    if not list_checkpoints(checkpoints, template=template):
        return Start(BEGIN if checkpoint is None else GO_ON, checkpoint)
    if load_from and checkpoint is None:
        _require_same_sources(files, load_from)
    changes = _changes(files, config)
    _require_same_architecture(files, changes)
    status = read_status(files) if files.is_run else None
    epochs = (config.get('train_cfg') or {}).get('max_epochs')
    if (checkpoint is None and status is not None and status.state == FINISHED
            and isinstance(epochs, int) and status.epoch >= epochs):
        return Start(NOTHING, notes=(
            f'{files.folder} is finished: {status.epoch} of {epochs} epochs; --epochs N goes on '
            'to more, --restart begins again, --extra-tag NEW begins another run',))
    return Start(GO_ON, checkpoint, notes=(
        f'{files.folder} holds a run: going on with it', *_another_default(files, changes)))


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> Tuple[Change, ...]:
    """What differs between two configs of one run, apart from how and where it is started."""
    return tuple(change for change in explain_change(old, new)
                 if not {change.key.split('.')[0], change.key} & _STARTED)


def _changes(files: RunFiles, config: Mapping[str, Any]) -> Tuple[Change, ...]:
    if not files.config.is_file():  # started by other means: the checkpoint itself is compared
        return ()
    return changes_between(read_config(files), config)


def _require_same_architecture(files: RunFiles, changes: Sequence[Change]) -> None:
    changes = [change for change in changes if change.kind != TRAINING]
    if changes:
        raise ConfigError(
            f'{files.folder} holds a run of another network: {_listed(changes)}; give this one '
            'its own folder with --extra-tag NEW (and --load-from a checkpoint of the other), or '
            'move the old run aside with --restart')


def _another_default(files: RunFiles, changes: Sequence[Change]) -> Tuple[str, ...]:
    """A warning where settings change under the tag of those who gave none."""
    changes = [change for change in changes if not change.key.startswith(_LENGTH)]
    if files.folder.name != DEFAULT or not changes:
        return ()
    return (f'warning: the tag "{DEFAULT}" is that of a run with other settings, which goes on '
            f'with these: {_listed(changes)}; --extra-tag NEW keeps the two apart',)


def _listed(changes: Sequence[Change]) -> str:
    more = f'; and {len(changes) - _NAMED} more' if len(changes) > _NAMED else ''
    return f'{"; ".join(map(str, changes[:_NAMED]))}{more}'


def _require_same_sources(files: RunFiles, load_from: Sequence[str]) -> None:
    starts = read_lines(files.history)
    first = list(starts[0].get('load_from') or []) if starts else None
    if first is not None and [_resolved(path) for path in first] == \
            [_resolved(path) for path in load_from]:
        return
    began = f'began from {", ".join(first)}' if first else 'began from other weights'
    raise ConfigError(
        f'{files.folder} holds a run that {began}: going on with it would not load '
        f'{", ".join(load_from)}; give another --extra-tag, leave --load-from out to go on, or '
        'move the old run aside with --restart')


def _resolved(spec: str) -> str:
    module, separator, path = spec.rpartition('=')
    return f'{module}{separator}{Path(path).expanduser().resolve()}'


def set_run_aside(files: RunFiles) -> Optional[Path]:
    """Rename a run's folder; see `move_aside`.

    Raises:
        ConfigError: A training is at work in it.
    """
    if is_locked(files):
        raise ConfigError(f'--restart: {files.folder} is in use by a training that is still '
                          'running; stop it first, or give another --extra-tag')
    return move_aside(files.folder)


def set_later_aside(checkpoints: Path, checkpoint: str, *, template: Optional[str] = None
                    ) -> List[Path]:
    """Move checkpoints that are further than the one to go on from into a folder beside them.

    Args:
        checkpoints: The run's; a file of another folder has nothing in its way here.
        checkpoint: The file to go on from.
        template: `filename_tmpl` of the run, where it has one of its own.

    Returns:
        Where they are now.
    """
    chosen = Path(checkpoint).expanduser()
    if chosen.resolve().parent != checkpoints.resolve():
        return []
    limit = iterations_of(chosen)
    candidates = [*list_checkpoints(checkpoints, template=template),
                  *checkpoints.glob('best_*.pth')]
    later = [path for path in candidates if _further(path, limit)]
    if not later:
        return []
    target = free_path(checkpoints / time.strftime('superseded_%Y%m%d_%H%M%S'))
    target.mkdir()
    moved = []
    for path in later:
        sidecar = sidecar_of(path)
        moved.append(path.rename(target / path.name))
        if sidecar.is_file():
            sidecar.rename(target / sidecar.name)
    return moved


def _further(path: Path, limit: int) -> bool:
    try:
        return iterations_of(path) > limit
    except CheckpointError:
        return False
