"""One save after the other: the state is copied, and a thread writes it while training goes on."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from mmengine.logging import MessageHub
from mmengine.runner import Runner

from ...checkpoints.background import BackgroundWriter
from ...checkpoints.folder import LAST
from ...checkpoints.snapshot import Snapshot, tensor_sizes
from ...checkpoints.storage import delete_checkpoint, write_bytes, write_checkpoint
from ...errors import CheckpointError
from .checkpoint_contents import shallow_copy


@dataclass
class Save:
    """One save, from its request to its end in the background.

    Attributes:
        folder: Where checkpoints go.
        name: File of the run's state, or None for a best checkpoint alone.
        meta: Epoch and iteration.
        better: Metrics that are better than ever, and their values.
        best_name: How the best checkpoint would be called at an interval.
        kept: Names of the run's files once this one is written.
        in_use: A file that is never deleted.
        best_paths: Files of the best checkpoints.
        previous: Entries of the message hub before, to go back to when the write fails.
        files: What is written, in this order.
        surplus: What is deleted once everything is written.
        warnings: What went wrong after everything was written.
    """

    folder: Path
    name: Optional[str]
    meta: Dict[str, int]
    better: Dict[str, float]
    best_name: str
    kept: List[str]
    in_use: Optional[Path] = None
    best_paths: List[Path] = field(default_factory=list)
    previous: Dict[str, Any] = field(default_factory=dict)
    files: List[Tuple[Dict[str, Any], Path]] = field(default_factory=list)
    surplus: List[Path] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What is written, for messages."""
        return self.name or f'the best checkpoint ({", ".join(self.better)})'

    def note(self, hub: MessageHub, key: str, value: Any) -> None:
        """Put an entry into the message hub that `take_back` takes out again."""
        self.previous[key] = hub.runtime_info.get(key)
        hub.update_info(key, value)

    def take_back(self, hub: MessageHub) -> None:
        """Put the entries of the message hub back as they were before the save."""
        for key, value in self.previous.items():
            hub.runtime_info.pop(key, None)
            if value is not None:
                hub.update_info(key, value)


class BackgroundSaver:
    """Copies the state of a run and writes it in the background, one save at a time."""

    def __init__(self) -> None:
        self._writer = BackgroundWriter()
        self._snapshot = Snapshot()
        self._pending: Optional[Save] = None

    @property
    def pending(self) -> bool:
        """Whether there is a save of which `take_ended` has not told the end."""
        return self._pending is not None

    def reserve(self, content: Any) -> None:
        """Get memory for copies of the tensors in `content`, in the background."""
        sizes = list(tensor_sizes(content))
        self._writer.submit(lambda: self._snapshot.reserve(sizes))

    def begin(self, runner: Runner, save: Save, content: Dict[str, Any], *,
              unchanging: Callable[[], Set[int]]) -> None:
        """Copy the state, with what hooks put into each file of it, and have it written.

        Args:
            runner: The run.
            save: The save, whose files are filled in.
            content: The checkpoint; its tensors are those that training goes on with.
            unchanging: Gives the addresses of tensors whose copy may be left to the writer.
        """
        self._snapshot.begin(own=content['message_hub']['log_scalars'].values())  # copies already
        copied = self._snapshot.copy(content, unchanging=unchanging())
        best = {key: copied[key] for key in ('meta', 'state_dict', 'message_hub')}
        for content, paths in ((best, save.best_paths),
                               (copied, [save.folder / save.name] if save.name else [])):
            if paths:
                content = shallow_copy(content)
                runner.call_hook('before_save_checkpoint', checkpoint=content)
                content = self._snapshot.copy(content, unchanging=unchanging())
                save.files += [(content, path) for path in paths]
        self._pending = save
        self._writer.submit(lambda: self._copy_and_write(save, Path(runner.work_dir)))

    def wait_for_copy(self) -> None:
        """Return once a save reads nothing any more that training writes to."""
        self._snapshot.help()

    def take_ended(self, *, wait: bool) -> Optional[Tuple[Save, Optional[Exception]]]:
        """The save before and its error, once; None where there is none.

        Args:
            wait: Wait for its end; otherwise there is none as long as it runs.
        """
        if wait:
            self._writer.wait()
        elif self._writer.busy:
            return None
        save, self._pending = self._pending, None
        error = self._writer.take_error()
        if save is None:
            return None
        save.files.clear()
        return save, error

    def _copy_and_write(self, save: Save, work_dir: Path) -> None:
        self._snapshot.complete()
        _write(save, work_dir)


def _write(save: Save, work_dir: Path) -> None:
    """In the background: the files, then what names them, then what they make superfluous."""
    for content, path in save.files:
        write_checkpoint(content, path)
    try:
        if save.name is not None:
            write_bytes(str(save.folder / save.name).encode(), work_dir / LAST)
    except CheckpointError as error:
        save.warnings.append(str(error))
    written = {path.resolve() for _, path in save.files}
    for path in save.surplus:
        if path.resolve() not in written | {save.in_use}:
            try:
                delete_checkpoint(path)
            except CheckpointError as error:
                save.warnings.append(str(error))
    save.files.clear()
