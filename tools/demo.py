"""The main job on the synthetic dataset: data, phase 3, phase 4a from it, official evaluation.

    python tools/demo.py [--data-root data/synthetic] [--work-dir work_dirs/demo] [--workers N]

Every step is one of the project's own commands, printed before it runs, so that each can be
repeated and changed by hand. On a terminal the commands draw their own progress bars; elsewhere
their output goes to files in `<work-dir>/logs`. What an earlier demo wrote is moved aside, never
overwritten.
"""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from rich.console import Console

from bevfusion_enhanced.engine.commands.cli import run_cli
from bevfusion_enhanced.errors import CheckpointError, DataError
from bevfusion_enhanced.experiments.aside import move_aside
from bevfusion_enhanced.experiments.comparison import Summary, make_table, read_metrics, summarise
from bevfusion_enhanced.experiments.run_files import RunFiles
from bevfusion_enhanced.synthetic.dataset import MANIFEST, REVISION

REPO = Path(__file__).resolve().parents[1]
CONFIGS = {'phase3': 'configs/mini/phase3_enhanced_seg.py',
           'phase4a': 'configs/mini/phase4a_task_gca.py'}
DATA_ROOT = REPO / 'data' / 'synthetic'
"""Where the mini configs look for the dataset."""
VERSION = 'v1.0-mini'
INFOS = ('nuscenes_infos_train.pkl', 'nuscenes_infos_val.pkl')


class Step(NamedTuple):
    """One command of the demo.

    Attributes:
        name: Names its log file.
        title: What it does, for people.
        command: A tool and its arguments, without the interpreter.
    """
    name: str
    title: str
    command: Tuple[str, ...]


class StepFailed(Exception):
    """A command ended with an exit status that is not 0."""

    def __init__(self, *, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


# ---- folders


def has_dataset(data_root: Path) -> bool:
    """Whether a synthetic dataset is there; the simulator puts it in its place when it is whole.

    Raises:
        DataError: If another version of the simulator wrote it.
    """
    try:
        manifest = json.loads((data_root / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    if manifest.get('revision') != REVISION:
        raise DataError(f'{shown(data_root)} was written by another version of the simulator; '
                        'move it away, or choose another --data-root')
    return True


def newest_checkpoint(work_dir: Path) -> Path:
    """The checkpoint of the last epoch in a training's folder.

    Raises:
        CheckpointError: If there is none.
    """
    numbered = {int(match.group(1)): path
                for path in RunFiles(work_dir).checkpoints.glob('epoch_*.pth')
                if (match := re.fullmatch(r'epoch_(\d+)\.pth', path.name))}
    if not numbered:
        raise CheckpointError(f'{RunFiles(work_dir).checkpoints} holds no epoch_N.pth; the '
                              'training should have saved it')
    return numbered[max(numbered)]


def shown(path: Path) -> str:
    """A path as it is printed and passed on: relative to the repository where it lies inside."""
    return str(path.relative_to(REPO)) if path.is_relative_to(REPO) else str(path)


# ---- the steps


def root_options(config: Any, old: str, new: str, key: str = '') -> List[str]:
    """`key=value` overrides that replace the data root in every string of a config below `key`.

    Args:
        config: A nested config value.
        old: The data root in it, e.g. 'data/synthetic/'.
        new: The other one, ending in '/'.
        key: The dotted name of `config`; the outermost call names nothing.
    """
    if isinstance(config, str):
        return [f'{key}={new}{config[len(old):]}'] if config.startswith(old) else []
    if isinstance(config, Mapping):
        items: Any = config.items()
    elif isinstance(config, (list, tuple)):
        items = enumerate(config)
    else:
        return []
    prefix = f'{key}.' if key else ''
    return [option for name, value in items
            for option in root_options(value, old, new, f'{prefix}{name}')]


def config_options(config_file: str, data_root: Path) -> Tuple[str, ...]:
    """`--cfg-options ...` for a data root that is not the config's own; () for its own."""
    if data_root == DATA_ROOT:
        return ()
    from bevfusion_enhanced.engine.configuration.config import load_config
    config = load_config(str(REPO / config_file))
    used = {key: config[key] for key in config if key.endswith(('_dataloader', '_evaluator'))}
    return ('--cfg-options', *root_options(used, config.data_root, f'{data_root}/'))


def data_steps(data_root: Path, workers: int) -> List[Step]:
    """Make the dataset and its info files, as far as they are not there."""
    steps, root = [], shown(data_root)
    if not has_dataset(data_root):
        steps.append(Step('1_create_dataset', 'generate the synthetic dataset',
                          ('tools/create_synthetic_nuscenes.py', '--out', root,
                           '--workers', str(workers))))
    if steps or not all((data_root / name).is_file() for name in INFOS):
        steps.append(Step('1_create_infos', 'write its info files',
                          ('tools/create_data.py', '--root-path', root, '--version', VERSION)))
    return steps


def train_step(phase: str, work_dir: Path, options: Tuple[str, ...],
               load_from: Optional[Path] = None) -> Step:
    """Train one phase, from scratch or from another phase's checkpoint."""
    number, source = ('2', ()) if load_from is None else ('3', ('--load-from', shown(load_from)))
    title = f'train {phase}' + (f' from {load_from.name} of phase3' if load_from else '')
    return Step(f'{number}_train_{phase}', title,
                ('tools/train.py', CONFIGS[phase], *source, '--work-dir', shown(work_dir / phase),
                 *options))


def evaluate_step(phase: str, work_dir: Path, options: Tuple[str, ...],
              show_dir: Optional[Path] = None) -> Step:
    """Evaluate one phase on the held-out scenes, with pictures where a folder is given."""
    pictures = () if show_dir is None else ('--show-dir', shown(show_dir))
    checkpoint = newest_checkpoint(work_dir / phase)
    return Step(f'4_test_{phase}', f'evaluate {phase} on the held-out scenes',
                ('tools/test.py', CONFIGS[phase], shown(checkpoint),
                 '--work-dir', shown(work_dir / phase / 'test'), *pictures, *options))


class Runner:
    """Runs steps as subprocesses: on a terminal they draw, elsewhere they write to log files.

    Args:
        console: Where the commands are printed.
        log_dir: Folder of the log files.
    """

    def __init__(self, *, console: Console, log_dir: Path) -> None:
        self.console = console
        self.log_dir = log_dir
        self.minutes: Dict[str, float] = {}

    def run(self, step: Step) -> None:
        """Print the command, run it, and note how long it took.

        Raises:
            StepFailed: If it fails.
        """
        self.console.print(f'[bold]{step.name[0]}. {step.title}[/bold]')
        self.console.print(f'   $ python {shlex.join(step.command)}', style='cyan', markup=False,
                           highlight=False, soft_wrap=True)
        start = time.monotonic()
        command = [sys.executable, *step.command]
        if self.console.is_terminal:
            status, log = subprocess.call(command, cwd=REPO), None
        else:
            status, log = self._run_into_file(command, step.name)
        self.minutes[step.name] = round((time.monotonic() - start) / 60., 2)
        if status:
            raise StepFailed(message=failure(step, status, log),
                             status=status if status > 0 else 128 - status)
        self.console.print(f'   done in {self.minutes[step.name]:.1f} min', highlight=False)

    def _run_into_file(self, command: List[str], name: str) -> Tuple[int, Path]:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        log = self.log_dir / f'{name}.txt'
        with log.open('w') as stream:
            return subprocess.call(command, cwd=REPO, stdout=stream, stderr=subprocess.STDOUT), log


def failure(step: Step, status: int, log: Optional[Path]) -> str:
    """One line that says which step failed, with the last line of its log where there is one."""
    message = f'the demo stopped: "{step.title}" ended with exit status {status}'
    if log is None:
        return message
    lines = log.read_text(errors='replace').strip().splitlines()
    return f'{message}: {lines[-1].strip() if lines else "no output"} (all of it: {shown(log)})'


# ---- the whole


def run_demo(*, data_root: Path, work_dir: Path, workers: int, console: Console) -> None:
    """Run every step and report; see the module's docstring."""
    start = time.monotonic()
    prepare = data_steps(data_root, workers)
    moved = move_aside(work_dir)
    if moved:
        console.print(f'An earlier demo was moved to {shown(moved)}.', highlight=False)
    if not prepare:
        console.print(f'[bold]1.[/bold] {shown(data_root)} is complete and is used as it is.',
                      highlight=False)
    runner = Runner(console=console, log_dir=work_dir / 'logs')
    for step in prepare:
        runner.run(step)
    options = {phase: config_options(file, data_root) for phase, file in CONFIGS.items()}
    runner.run(train_step('phase3', work_dir, options['phase3']))
    runner.run(train_step('phase4a', work_dir, options['phase4a'],
                          load_from=newest_checkpoint(work_dir / 'phase3')))
    pictures = work_dir / 'pictures'
    runner.run(evaluate_step('phase3', work_dir, options['phase3']))
    runner.run(evaluate_step('phase4a', work_dir, options['phase4a'], show_dir=pictures))
    summary = {phase: summarise(read_metrics(work_dir / phase / 'test')) for phase in CONFIGS}
    summary['minutes'] = round((time.monotonic() - start) / 60., 2)
    summary['minutes_by_step'] = runner.minutes
    report(summary, work_dir=work_dir, pictures=pictures, console=console)


def report(summary: Summary, *, work_dir: Path, pictures: Path, console: Console) -> None:
    """Save the summary, print its table, and say where everything is."""
    file = work_dir / 'summary.json'
    file.write_text(json.dumps(summary, indent=2) + '\n')
    console.print(make_table(summary['phase3'], summary['phase4a']))
    load_reports = sorted((work_dir / 'phase4a').rglob('load_report.*'))
    for label, paths in (('summary', [file]), ('load report', load_reports),
                         ('pictures', sorted(pictures.rglob('*.png')))):
        for path in paths:
            console.print(f'{label + ":":13}{shown(path)}', highlight=False, soft_wrap=True)
    console.print(f'The demo took {summary["minutes"]:.1f} minutes.', highlight=False)


def main() -> None:
    """Parse the command line and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', type=Path, default=DATA_ROOT,
                        help='synthetic dataset; generated where it is missing')
    parser.add_argument('--work-dir', type=Path, default=REPO / 'work_dirs' / 'demo',
                        help='everything the demo writes beside the dataset')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1,
                        help='processes that generate the dataset')
    arguments = parser.parse_args()
    try:
        run_demo(data_root=arguments.data_root.resolve(), work_dir=arguments.work_dir.resolve(),
                 workers=arguments.workers, console=Console())
    except StepFailed as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(error.status) from None


if __name__ == '__main__':
    sys.exit(run_cli(main))
