"""What a start of `tools/train.py` does with its run's folder, decided once for all processes."""
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, TypeVar

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process

from ...checkpoints.folder import template_in
from ...errors import CheckpointError, ConfigError, UserError
from ...experiments.run_files import RunFiles
from ...experiments.start import BEGIN, GO_ON, Start, plan_start, set_later_aside, set_run_aside
from ...experiments.status import is_locked
from ..configuration.config import checkpoint_folder

T = TypeVar('T')


def decide_start(config: Config, *, load_from: Sequence[str], resume: bool,
                 checkpoint: Optional[str], restart: bool) -> Start:
    """Begin, go on, or do nothing; moves aside what is in the way, where that was asked for.

    Args:
        config: The resolved config; its `work_dir` is the run's folder.
        load_from: Weights asked for.
        resume: Going on was asked for.
        checkpoint: A file asked for to go on from.
        restart: Beginning again was asked for.

    Raises:
        UserError: The run's folder holds something else, or is in use.
    """
    files, checkpoints = RunFiles(Path(config.work_dir)), checkpoint_folder(config)
    template = template_in(config)
    notes: List[str] = []
    if is_locked(files):
        raise ConfigError(f'{files.folder} is in use by a training that is still running; give '
                          'another --extra-tag, or wait')
    if restart:
        moved = set_run_aside(files)
        notes += [f'the run that was in {files.folder} is now {moved}'] if moved else []
    start = plan_start(files, config, checkpoints=checkpoints, load_from=load_from,
                       checkpoint=checkpoint, template=template)
    if resume and start.kind == BEGIN:
        raise CheckpointError(f'--resume: {checkpoints} holds no checkpoint; leave --resume '
                              'out to start, or name a file')
    if start.kind == GO_ON and start.checkpoint:
        notes += [f'{path.name} is further than {start.checkpoint}: it is now {path}'
                  for path in set_later_aside(checkpoints, start.checkpoint, template=template)]
    return Start(start.kind, start.checkpoint, (*notes, *start.notes))


def once_for_all(decide: Callable[[], T]) -> T:
    """Call `decide` in the main process; its result, or its error, is that of every process."""
    outcome: List[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
