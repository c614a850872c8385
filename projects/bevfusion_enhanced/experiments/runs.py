"""Every run below a folder, read from the runs' own files: there is no index to go stale."""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..errors import ConfigError
from .run_files import RunFiles, find_runs
from .status import Status, folder_size, read_status

HEADLINES = {'mAP': 'object/mAP', 'NDS': 'object/NDS', 'mIoU': 'map/mean/iou@max'}
"""Short names of the metrics that runs are compared by; the higher the better."""


class Best(NamedTuple):
    """The highest value that a metric reached, and after which epoch."""

    value: float
    epoch: int


@dataclass(frozen=True)
class Run:
    """A run as it is now.

    Attributes:
        name: Its path below the folder of all runs, with forward slashes: group/config/tag.
        files: Its folder.
        status: What it does, or how it ended.
        best: The best value of each of `HEADLINES` that was measured.
        size: Bytes on disk.
    """

    name: str
    files: RunFiles
    status: Status
    best: Mapping[str, Best]
    size: int

    @property
    def tag(self) -> str:
        """The last part of its folder."""
        return self.files.folder.name


def read_run(files: RunFiles, *, root: Path) -> Run:
    """Read one run's folder."""
    folder = files.folder
    name = folder.relative_to(root) if folder.is_relative_to(root) else folder
    return Run(name=name.as_posix(), files=files, status=read_status(files),
               best=best_of(validations(files)), size=folder_size(folder)[0])


def list_runs(root: Path) -> List[Run]:
    """Every run below `root`, sorted by name."""
    return [read_run(files, root=root) for files in find_runs(root)]


def select_runs(root: Path, names: Sequence[str]) -> List[Run]:
    """The runs of these names, in this order; a name is a path, or the end of one run's name.

    Raises:
        ConfigError: A name fits no run, or more than one.
    """
    known = find_runs(root)
    return [read_run(_find(known, name, root=root), root=root) for name in names]


def _find(known: Sequence[RunFiles], name: str, *, root: Path) -> RunFiles:
    by_path = RunFiles(Path(name))
    if by_path.is_run:
        return by_path
    wanted = tuple(Path(name).parts)
    fitting = [files for files in known if files.folder.parts[-len(wanted):] == wanted]
    exact = [files for files in fitting if files.folder == root.joinpath(*wanted)]
    fitting = exact or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ', '.join(files.folder.relative_to(root).as_posix() for files in fitting[:4])
        raise ConfigError(f'{name} fits {len(fitting)} runs ({names}); give more of the path')
    raise ConfigError(f'{name} is no run below {root}; see "tools/experiments.py list"')


def read_lines(path: Path) -> List[Dict[str, Any]]:
    """The records of a `.jsonl` file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def validations(files: RunFiles) -> List[Dict[str, Any]]:
    """The records of `metrics.jsonl` that hold a validation's metrics, in order."""
    return [record for record in read_lines(files.metrics) if record.get('kind') == 'val']


def best_of(records: Sequence[Mapping[str, Any]]) -> Dict[str, Best]:
    """The best value of each headline among the validations of a run."""
    best: Dict[str, Best] = {}
    for record in records:
        for name, metric in HEADLINES.items():
            value = record.get(metric)
            if isinstance(value, (int, float)) and (name not in best or value > best[name].value):
                best[name] = Best(value=float(value), epoch=int(record.get('epoch', 0)))
    return best


def best_run(runs: Sequence[Run], *, metric: str) -> Optional[Run]:
    """The run of the highest value of a headline; None where no run measured it.

    Raises:
        ConfigError: It is no headline.
    """
    if metric not in HEADLINES:
        raise ConfigError(f'--metric {metric}: choose one of {", ".join(HEADLINES)}')
    measured = [run for run in runs if metric in run.best]
    return max(measured, key=lambda run: run.best[metric].value) if measured else None
