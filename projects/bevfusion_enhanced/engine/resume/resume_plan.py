"""Whether a run can go on from a checkpoint, decided before anything is loaded or written."""
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from mmengine.runner import Runner
from torch import nn

from ...checkpoints.change_rules import MEANING
from ...checkpoints.explain import Change, explain_change
from ...checkpoints.fingerprint import META_KEY, fingerprint_of, info_digests, make_fingerprint
from ...checkpoints.folder import where_checkpoints_lie
from ...checkpoints.geometry import geometry_of
from ...errors import CheckpointError
from ..runs.run_folder import find_newest
from .schedule_state import require_same_schedule

RESTART_KEY = 'restart'  # in our record of a checkpoint's metadata
KEYS_OF_THE_START = ('resume', 'load_from', 'work_dir', 'experiment_name', 'launcher')
_NEEDED = ('meta', 'optimizer', 'message_hub')


def fingerprint_of_run(runner: Runner, state: Mapping[str, Any], *,
                       class_lists: Mapping[str, Sequence[str]],
                       config_text: Optional[str] = None) -> Dict[str, Any]:
    """What this run trains: see `make_fingerprint`.

    Args:
        runner: The run.
        state: The model's state dict.
        class_lists: Of the data that it trains on.
        config_text: The config as text, where that is at hand.
    """
    from ... import __version__
    config = runner.cfg
    return make_fingerprint(
        state, version=__version__, class_lists=class_lists,
        config_text=config.pretty_text if config_text is None else config_text,
        geometry=geometry_of(config), info_digests=info_digests(config))


def changes_since(checkpoint: Mapping[str, Any], runner: Runner, model: nn.Module, *,
                  class_lists: Mapping[str, Sequence[str]], source: str) -> Tuple[Change, ...]:
    """What differs between a checkpoint's training and this run.

    Raises:
        CheckpointError: The checkpoint was written by a newer version, or holds no weights.
    """
    new = fingerprint_of_run(runner, model.state_dict(), class_lists=class_lists)
    return explain_change(fingerprint_of(checkpoint, source=source), new)


def changes_of_meaning(checkpoint: Mapping[str, Any], runner: Runner, *, source: str
                       ) -> Tuple[Change, ...]:
    """What differs in the geometry around tensors of unchanged shapes, class lists aside.

    A checkpoint that says nothing of that has no such changes; for one that a newer version wrote,
    that is logged.
    """
    if not runner.cfg:
        return ()
    try:
        changes = explain_change(fingerprint_of(checkpoint, source=source), runner.cfg)
    except CheckpointError as error:
        runner.logger.warning(f'not compared with the config: {error}')
        return ()
    return tuple(change for change in changes if change.kind == MEANING
                 and not change.key.endswith('classes'))  # those are matched by name


def require_resumable(checkpoint: Mapping[str, Any], *, source: str) -> None:
    """A checkpoint to go on from holds more than weights.

    Raises:
        CheckpointError: Names what is missing.
    """
    for entry in _NEEDED:
        if not checkpoint.get(entry):
            raise CheckpointError(f'checkpoint {source} holds no {entry}, so training cannot go on '
                                  'from it; use --load-from to take its weights')


def check_schedule(checkpoint: Mapping[str, Any], runner: Runner, *, source: str
                   ) -> Tuple[str, ...]:
    """Schedulers agree in number and kind; see `require_same_schedule`."""
    return require_same_schedule(
        runner, checkpoint.get('param_schedulers'),
        restart_record(checkpoint).get('schedulers', {}), source=source)


def restart_record(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `PartialLoadCheckpointHook` notes for a resume; empty where it did not write the file.

    `schedulers` are the kinds of them, `fresh` the names of the tensors that were fresh when the
    run began, or None where it began from nothing.
    """
    record = (checkpoint.get('meta') or {}).get(META_KEY)
    return record.get(RESTART_KEY, {}) if isinstance(record, Mapping) else {}


def newest_in(folder: str, runner: Runner, *, template: Optional[str] = None) -> str:
    """The newest checkpoint of a folder, or of a run's, that verifies; what was skipped is logged.

    Args:
        folder: The folder.
        runner: The run, for its log.
        template: `filename_tmpl` of the run, where it has one of its own.

    Raises:
        CheckpointError: There is none.
    """
    found = find_newest(
        where_checkpoints_lie(folder, template=template), template=template,
        skipped=lambda reason: runner.logger.warning(f'skipped for resuming: {reason}'))
    if found is None:
        what = 'holds no checkpoint that can be resumed' if Path(folder).is_dir() else \
            'does not exist'
        raise CheckpointError(f'--resume: work dir {folder} {what}; leave --resume out to start, '
                              'or name a file')
    runner.logger.info(f'resume from {found.path}, the newest valid checkpoint')
    return str(found.path)
