"""What a run may do in its folder: nothing that another run left there is overwritten."""
import os
import tempfile
from pathlib import Path
from typing import Optional

from ...checkpoints.durable import PathLike
from ...checkpoints.folder import FoundCheckpoint, find_newest, iterations_of, list_checkpoints
from ...errors import CheckpointError

__all__ = ['FoundCheckpoint', 'find_newest', 'iterations_of', 'list_checkpoints',
           'refuse_overwriting', 'refuse_used_folder', 'require_writable']


def require_writable(folder: PathLike) -> None:
    """Find out before training whether checkpoints can be written; leaves nothing behind.

    Args:
        folder: A run's folder; where it does not exist yet, the folder it would be made in counts.

    Raises:
        CheckpointError: It is read-only, full, or not a folder.
    """
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    try:
        descriptor, name = tempfile.mkstemp(prefix='.write_test.', dir=nearest)
        try:
            os.write(descriptor, b'x')
        finally:
            os.close(descriptor)
            os.unlink(name)
    except OSError as error:
        raise CheckpointError(f'work dir {folder} cannot be written to '
                              f'({nearest}: {error.strerror or error}); give another --work-dir'
                              ) from error


def refuse_used_folder(folder: PathLike, *, template: Optional[str] = None) -> None:
    """Keep a new run out of a folder that holds another run's checkpoints.

    Args:
        folder: A run's folder.
        template: `filename_tmpl` of the run, where it has one of its own.

    Raises:
        CheckpointError: There are checkpoints in it.
    """
    existing = list_checkpoints(folder, template=template)
    if existing:
        raise CheckpointError(
            f'work dir {folder} already holds {len(existing)} checkpoint'
            f'{"s" if len(existing) > 1 else ""} of an earlier run ({existing[-1].name}, ...), '
            'which a new run would overwrite; go on with --resume, or give another --work-dir')


def refuse_overwriting(folder: PathLike, resumed: PathLike, *, template: Optional[str] = None
                       ) -> None:
    """Keep a resumed run from overwriting checkpoints of another one, or later ones of its own.

    Args:
        folder: A run's folder.
        resumed: The checkpoint that it goes on from.
        template: `filename_tmpl` of the run, where it has one of its own.

    Raises:
        CheckpointError: `folder` holds checkpoints, and `resumed` is not among them or not the
            furthest.
    """
    existing = list_checkpoints(folder, template=template)
    resumed = Path(resumed).expanduser()
    if not existing:
        return
    if resumed.resolve().parent != Path(folder).resolve():
        refuse_used_folder(folder, template=template)
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
