"""What `tools/experiments.py` does, a function for each command."""
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from rich.console import Console

from ..errors import ConfigError
from ..units import readable_size
from .curves import draw_curves
from .run_files import RunFiles
from .run_tables import (
    Row,
    as_csv,
    as_markdown,
    rich_table,
    run_record,
    run_row,
    side_by_side,
)
from .runs import HEADLINES, Run, best_run, list_runs, read_lines, select_runs
from .settings import differing_settings, read_config, template_of

_WIDTH = 180


def list_all(*, root: Path, console: Optional[Console] = None) -> None:
    """Print every run, a line each."""
    _console(console).print(rich_table([run_row(run) for run in _runs(root)]))


def show(name: str, *, root: Path, console: Optional[Console] = None) -> None:
    """Print one run: its line, its starts, its checkpoints, and where its files are."""
    console = _console(console)
    run = select_runs(root, [name])[0]
    console.print(rich_table([run_row(run)]))
    for start in read_lines(run.files.history):
        console.print(f'{start.get("time", "")}  {start.get("command", "")}', highlight=False,
                      markup=False, soft_wrap=True)
        for change in start.get('changes', []):
            console.print(f'    {change}', highlight=False, markup=False, soft_wrap=True)
    for path in sorted(run.files.checkpoints.glob('*.pth')):
        console.print(f'{readable_size(path.stat().st_size):>9}  {path}', highlight=False,
                      soft_wrap=True)
    for path in _readable_files(run.files):
        console.print(f'{"":9}  {path}', highlight=False, soft_wrap=True)


def compare(names: Sequence[str], *, root: Path, png: Path,
            console: Optional[Console] = None) -> None:
    """Print the settings on which runs differ beside their metrics, and draw their curves.

    Raises:
        ConfigError: Fewer than two runs are named, or one of them is unknown.
    """
    if len(names) < 2:
        raise ConfigError('compare: name at least two runs')
    console = _console(console)
    runs = select_runs(root, names)
    titles = [run.name for run in runs]
    settings = differing_settings([read_config(run.files) for run in runs])
    rows = side_by_side(titles, settings)
    for key in ('state', 'epoch', *HEADLINES, 'size'):
        rows.append({'setting': key,
                     **{run.name: run_row(run)[key] for run in runs}})
    console.print(rich_table(rows, title='settings that differ, and what was reached'))
    console.print(f'curves: {draw_curves(runs, png)}', highlight=False, soft_wrap=True)


def best(metric: str, *, root: Path, console: Optional[Console] = None) -> None:
    """Print the run of the highest value of a metric, and the checkpoint of that epoch."""
    console = _console(console)
    run = best_run(_runs(root), metric=metric)
    if run is None:
        raise ConfigError(f'no run below {root} has measured {metric} yet')
    found = run.best[metric]
    console.print(f'{metric} {found.value:.4f} after epoch {found.epoch}: {run.name}',
                  highlight=False, soft_wrap=True)
    kept = [*run.files.checkpoints.glob('best_*.pth'),
            run.files.checkpoints / f'epoch_{found.epoch}.pth']
    for path in kept:
        if path.is_file():
            console.print(str(path), highlight=False, soft_wrap=True)


def prune(names: Sequence[str], *, root: Path, keep: int, yes: bool,
          console: Optional[Console] = None) -> None:
    """Show which checkpoints no run needs, with their sizes; delete them once agreed to."""
    from ..checkpoints.retention import plan_prune
    from ..checkpoints.retention import prune as delete
    console = _console(console)
    runs = select_runs(root, names) if names else _runs(root)
    plans = [plan_prune(run.files.checkpoints, keep=keep, template=template_of(run.files))
             for run in runs
             if run.status.state != 'running' and run.files.checkpoints.is_dir()]
    files = [item for plan in plans for item in plan.delete]
    if not files:
        console.print('nothing to delete')
        return
    for item in files:
        console.print(f'{readable_size(item.size):>9}  {item.path}', highlight=False,
                      soft_wrap=True)
    total = readable_size(sum(item.size for item in files))
    question = f'delete these {len(files)} checkpoints ({total})? [y/N] '
    if yes or agreed(console, question):
        for plan in plans:
            delete(plan)
        console.print(f'deleted {len(files)} checkpoints, {total}')


def export(out: Path, *, root: Path, force: bool, console: Optional[Console] = None) -> None:
    """Write the list of runs as CSV or Markdown, by the name's end.

    Raises:
        ConfigError: The name ends otherwise, or the file exists and `force` is not given.
    """
    writers = {'.csv': (as_csv, run_record), '.md': (as_markdown, run_row)}
    if out.suffix not in writers:
        raise ConfigError(f'export {out}: the name has to end in .csv or .md')
    if out.exists() and not force:
        raise ConfigError(f'export {out}: the file exists; add --force to replace it')
    write, row_of = writers[out.suffix]
    rows: List[Row] = [row_of(run) for run in _runs(root)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(write(rows), encoding='utf-8')
    _console(console).print(f'{len(rows)} runs: {out}', highlight=False, soft_wrap=True)


def agreed(console: Console, question: str) -> bool:
    """Whether the answer is y; where nobody is there to answer, it is not."""
    try:
        return console.input(question, markup=False).strip().lower() == 'y'
    except EOFError:
        console.print()
        return False


def _runs(root: Path) -> List[Run]:
    runs = list_runs(root)
    if not runs:
        raise ConfigError(f'there are no runs below {root}; tools/train.py makes them, --root '
                          'names another folder')
    return runs


def _readable_files(files: RunFiles) -> List[Path]:
    paths = [files.config, files.environment, files.metrics, files.folder / 'record.md',
             *sorted(files.folder.glob('load_report.*')), *sorted(files.folder.glob('log_*.txt'))]
    return [path for path in paths if path.is_file()]


def _console(console: Optional[Console]) -> Console:
    """The one given, or standard output; where that is no terminal, lines are not folded at 80."""
    return console or Console(width=None if sys.stdout.isatty() else _WIDTH)
