"""What `tools/ablate.py` does: check every config, run what is missing, write the table."""
import json
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..checkpoints.durable import replace_bytes
from ..errors import ConfigError
from .ablation import (
    Ablation,
    Job,
    Result,
    config_of,
    origin_of,
    read_ablations,
    read_result,
    write_config,
)
from .ablation_runs import (
    CPU,
    DONE,
    TRAINING,
    AblationRunner,
    Stopped,
    Tools,
    default_devices,
)
from .ablation_table import as_csv, as_markdown, draw, make_rows, runs_as_csv
from .run_files import RunFiles
from .status import read_status

FAILURES, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class AblateOptions:
    """What the command line asks for.

    Attributes:
        configs: The ablations.
        tools: Folder of `train.py` and `test.py`.
        base: Checkpoint that every training begins from; None begins from nothing.
        base_config: Config to read the ablations over, in place of the one that each names.
        epochs: Of every training.
        seeds: Each ablation is run once under each.
        devices: GPUs or `cpu`; every GPU there is when left out.
        jobs: Runs at a time; one for each device when left out.
        work_dir: Where everything goes.
        overrides: `key=value` pairs for every config.
    """

    configs: Sequence[str]
    tools: Path
    base: Optional[str]
    base_config: Optional[str]
    epochs: int
    seeds: Sequence[int]
    devices: Optional[Sequence[str]]
    jobs: Optional[int]
    work_dir: Path
    overrides: Sequence[str] = ()


def ablate(options: AblateOptions, *, console: Optional[Console] = None) -> int:
    """Run what is missing, and write the table whenever a run is done.

    Returns:
        0; 1 where a run failed; 130 where a signal stopped it all.

    Raises:
        UserError: Something asked for is missing or wrong; no run was started by then.
    """
    console = console or Console()
    devices = list(options.devices or default_devices())
    _check(options, devices)
    jobs = plan(options)
    sizes = {ablation.name: size_of(ablation, options.work_dir)
             for ablation in dict.fromkeys(job.ablation for job in jobs)}
    runner = AblationRunner(
        tools=Tools(options.tools / 'train.py', options.tools / 'test.py'), base=options.base,
        devices=devices, jobs=options.jobs or len(devices))
    report = _Report(runner, jobs, options, sizes)
    stopped = False
    with _stopping(runner), Live(console=console, refresh_per_second=2, transient=True) as live:
        try:
            runner.run(jobs, each=lambda: report.update(live))
        except Stopped:
            stopped = True
    report.write()
    return report.finish(console, stopped=stopped)


def plan(options: AblateOptions) -> List[Job]:
    """Read all configs, and write each job's; the jobs in the order of the configs, seed by seed.

    Raises:
        ConfigError: See `ablate`.
    """
    from ..engine.configuration.config import apply_overrides
    ablations = read_ablations(options.configs, base_config=options.base_config)
    for ablation in ablations:
        apply_overrides(ablation.config, options.overrides)
        _check_data(ablation)
    jobs = [Job(ablation, seed, options.work_dir) for ablation in ablations
            for seed in options.seeds]
    for job in jobs:
        write_config(job, config_of(job.ablation, seed=job.seed, epochs=options.epochs))
        result = read_result(job)
        if result is not None and result.origin != origin_of(job.config, options.base):
            raise ConfigError(f'{job.result} is the result of another config or of another --base; '
                              'give another --work-dir, or move it away')
    return jobs


def _check(options: AblateOptions, devices: Sequence[str]) -> None:
    if options.epochs < 1 or (options.jobs is not None and options.jobs < 1):
        raise ConfigError(f'--epochs {options.epochs}, --jobs {options.jobs}: give numbers of at '
                          'least 1')
    if len(set(options.seeds)) != len(options.seeds):
        raise ConfigError(f'--seeds {" ".join(map(str, options.seeds))}: a seed is given twice')
    wrong = [device for device in devices if device != CPU and not device.strip().isdigit()]
    if wrong and options.devices:
        raise ConfigError(f'--devices {" ".join(wrong)}: give numbers of GPUs, or cpu')
    if options.base is not None:
        from ..checkpoints.storage import read_checkpoint
        read_checkpoint(options.base, mmap=True)


def _check_data(ablation: Ablation) -> None:
    """The data and classes of an ablation are there, before hours are spent on another one."""
    from ..engine.configuration.preflight import check_dataset, leaf_datasets
    for name in ('train_dataloader', 'test_dataloader'):
        loader = ablation.config.get(name)
        if not loader:
            raise ConfigError(f'{ablation.path}: the config has no {name}=dict(...)')
        for where, dataset in leaf_datasets(loader.dataset, f'{name}.dataset'):
            check_dataset(dataset, ablation.config.model, where=f'{ablation.path}: {where}',
                          training=name.startswith('train'))


def size_of(ablation: Ablation, root: Path) -> Tuple[int, float]:
    """(Parameters, GFLOPs of one prediction) of an ablation; kept in a file beside its runs."""
    file = root / ablation.name / 'complexity.json'
    try:
        known = json.loads(file.read_text())
        return int(known['parameters']), float(known['gflops'])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from ..engine.commands.complexity import measure
    found = measure(ablation.config)
    replace_bytes((json.dumps(dict(parameters=found.parameters, trained=found.trained,
                                   gflops=found.gflops, by_module=found.by_module), indent=2)
                   + '\n').encode(), file)
    return found.parameters, found.gflops


class _Report:
    """The table on disk, and the lines on the screen."""

    def __init__(self, runner: AblationRunner, jobs: Sequence[Job], options: AblateOptions,
                 sizes: Mapping[str, Tuple[int, float]]) -> None:
        self.runner, self.jobs, self.options, self.sizes = runner, jobs, options, sizes
        self._written: Dict[Job, str] = {}

    def update(self, live: Live) -> None:
        """Show what runs; write the table where something has ended."""
        live.update(self._screen())
        ended = {job: state for job, state in self.runner.states.items()
                 if state not in ('waiting', 'training', 'testing')}
        if ended != self._written:
            self._written = ended
            self.write()

    def write(self) -> None:
        """Write `table.md`, `.csv`, `.png` and `runs.csv`."""
        results: Dict[Job, Optional[Result]] = {job: read_result(job) for job in self.jobs}
        rows = make_rows(results, failed=self.runner.failed, sizes=self.sizes)
        root = self.options.work_dir
        replace_bytes(as_markdown(rows, notes=self._notes()).encode(), root / 'table.md')
        replace_bytes(as_csv(rows).encode(), root / 'table.csv')
        replace_bytes(runs_as_csv(results).encode(), root / 'runs.csv')
        draw(rows, root / 'table.png')

    def finish(self, console: Console, *, stopped: bool) -> int:
        """Say how it ended, and where the table is."""
        for job in self.runner.failed:
            console.print(f'{job.title} failed: {self.runner.reasons[job]}', markup=False,
                          highlight=False, soft_wrap=True)
        done = sum(state == DONE for state in self.runner.states.values())
        console.print(f'{done} of {len(self.jobs)} runs done; table: '
                      f'{self.options.work_dir / "table.md"}', markup=False, soft_wrap=True)
        if stopped:
            console.print('stopped; the same command goes on')
            return INTERRUPTED
        return FAILURES if self.runner.failed else 0

    def _notes(self) -> List[str]:
        from ..engine.commands.complexity import NOT_COUNTED
        base = self.options.base or 'nothing'
        return [
            f'Epochs: {self.options.epochs}, from {Path(base).name}; tested once, with '
            'the last weights. After ± stands the standard deviation over the seeds (n - 1). '
            'Differences are taken seed by seed; one that is not well above its own deviation '
            'shows nothing.',
            '',
            'GFLOPs: 10^9 multiplications and additions in the convolutions, matrix products and '
            f'attention of one prediction; without {NOT_COUNTED}. '
            's a step: median time of a training step without waiting for data; GB: most memory '
            'in training (of the GPU, or of the process where there is none).']

    def _screen(self) -> Table:
        done = sum(state == DONE for state in self.runner.states.values())
        table = Table(title=f'{done} of {len(self.jobs)} runs done', box=None)
        for column in ('run', 'state', 'epoch'):
            table.add_column(column)
        for job, state in self.runner.states.items():
            if state in ('training', 'testing', 'failed'):
                table.add_row(job.title, state, _epochs(job) if state == TRAINING else '')
        return table


def _epochs(job: Job) -> str:
    files = RunFiles(job.stem)
    if not files.is_run:
        return ''
    status = read_status(files)
    return f'{status.epoch} of {status.max_epochs}, iteration {status.iteration}'


class _stopping:
    """While it lasts, SIGINT and SIGTERM stop a runner."""

    def __init__(self, runner: AblationRunner) -> None:
        self._runner = runner
        self._previous: Dict[int, object] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        # not in the handler: it may have interrupted the one who holds the lock
        threading.Thread(target=self._runner.stop, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


