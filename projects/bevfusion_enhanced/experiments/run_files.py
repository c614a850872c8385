"""The folder of a run: what lies where in it.

    work_dirs/<config group>/<config name>/<tag>/
        checkpoints/     epoch_N.pth, iter_N.pth, best_*.pth, each with its .sha256
        tensorboard/     all curves; `tensorboard --logdir work_dirs/<group>/<name>` shows every tag
        log_<time>.txt   one for every start
        config.py        resolved, as the last start used it
        environment.json versions, GPU, commit, of the last start
        status.json      running, finished, stopped or failed, and why
        history.jsonl    one line for every start: the command and what changed since the last
        load_report.*    where weights came from
        metrics.jsonl    training and validation figures
        record.md        the run in words
"""
from dataclasses import dataclass
from pathlib import Path
from typing import List

from .tags import DEFAULT

_CONFIGS = 'configs'
WORK_DIRS = 'work_dirs'


@dataclass(frozen=True)
class RunFiles:
    """Paths within one run's folder; none of them needs to exist."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / 'checkpoints'

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.folder / 'tensorboard'

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.folder / 'config.py'

    @property
    def environment(self) -> Path:
        """Versions, hardware and commit."""
        return self.folder / 'environment.json'

    @property
    def status(self) -> Path:
        """What the run does, or how it ended."""
        return self.folder / 'status.json'

    @property
    def history(self) -> Path:
        """Every start of the run."""
        return self.folder / 'history.jsonl'

    @property
    def metrics(self) -> Path:
        """Training and validation figures."""
        return self.folder / 'metrics.jsonl'

    @property
    def lock(self) -> Path:
        """Locked by the process that trains; the lock ends with the process."""
        return self.folder / '.lock'

    @property
    def is_run(self) -> bool:
        """Whether a training was started in this folder."""
        return self.status.is_file()


def config_folder(config_path: str, *, root: str = WORK_DIRS) -> Path:
    """`work_dirs/` and the config's path below `configs/`: no two configs share a folder."""
    path = Path(config_path).absolute().with_suffix('')
    parts = path.parts
    if _CONFIGS in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index(_CONFIGS)
        return Path(root, *parts[last + 1:])
    return Path(root, path.name)


def run_folder(config_path: str, *, tag: str = DEFAULT, root: str = WORK_DIRS) -> Path:
    """Where a run of this config and tag lives."""
    return config_folder(config_path, root=root) / tag


def find_runs(root: Path) -> List[RunFiles]:
    """Every run below `root`, sorted by path; what a run keeps inside its own folder is no run."""
    found: List[RunFiles] = []
    pending = [root] if root.is_dir() else []
    while pending:
        folder = pending.pop()
        files = RunFiles(folder)
        if files.is_run:
            found.append(files)
        else:
            pending += [path for path in folder.iterdir()
                        if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda files: files.folder)
