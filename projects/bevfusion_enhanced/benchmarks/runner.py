"""Runs benchmarks one after the other and shows what they found; imports nothing heavy."""
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from bevfusion_enhanced.benchmarks.names import CHECKOUT, NEED_CHECKOUT
from bevfusion_enhanced.errors import ConfigError, UserError

COLUMNS = ('name', 'ours_ms', 'reference_ms', 'ratio', 'bound_ms', 'peak_mb')
ROOT = Path(__file__).parents[3]
_EXPLANATION = (
    'Written by `python tools/benchmark.py --write-docs`. `reference` is the published algorithm',
    'on the same input in the same process, called in turn with ours, after their outputs were',
    'found equal; `ratio` is its time over ours. `bound` is the larger of the operations over the',
    'rate of a float32 product of matrices and the bytes over that of a copy, both measured here.',
    '`peak` is by how much the operator raised the memory of its process, or the peak of',
    'the process for whole models.')


class BenchmarkError(UserError):
    """A benchmark could not be run, or ours and the reference differ."""


@dataclass
class Row:
    """One line of the result; times in milliseconds, `ratio` is the reference's over ours."""

    name: str
    ours_ms: float
    reference_ms: Optional[float]
    ratio: Optional[float]
    bound_ms: Optional[float]
    peak_mb: Optional[float]
    conditions: str = ''
    details: Dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> Dict[str, Any]:
        """The fields that are published, rounded to what is meaningful."""
        return {name: _rounded(getattr(self, name)) for name in COLUMNS}


@dataclass
class Report:
    """Rows, and the machine that they were measured on."""

    machine: Dict[str, float]
    threads: int
    rows: List[Row]

    def title(self) -> str:
        """The machine in one line."""
        return (f'{processor()}, {self.threads} of {os.cpu_count()} cores used; '
                f'{self.machine["operations_per_second"] / 1e9:.0f} gigaoperations a second in '
                f'float32, {self.machine["bf16_per_second"] / 1e9:.0f} in bfloat16, '
                f'{self.machine["bytes_per_second"] / 1e9:.1f} GB/s')


def check_names(names: Sequence[str], known: Sequence[str]) -> List[str]:
    """The chosen names in the catalogue's order; all, where none is chosen.

    Raises:
        ConfigError: A name is unknown.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f'--only {" ".join(unknown)}: unknown; --list shows the names')
    return [name for name in known if not names or name in names]


def without_checkout(names: Sequence[str], *, chosen: Sequence[str]) -> List[str]:
    """The names that can be measured with no checkout of MMDetection3D.

    Raises:
        ConfigError: One that needs it was chosen.
    """
    asked = [name for name in NEED_CHECKOUT if name in chosen]
    if asked:
        raise ConfigError(f'--only {" ".join(asked)}: needs --mmdetection3d DIR, a checkout of '
                          'MMDetection3D v1.4.0')
    return [name for name in names if name not in NEED_CHECKOUT]


def check_checkout(folder: Path) -> None:
    """Refuse a folder that is no checkout of MMDetection3D.

    Raises:
        ConfigError: It has no projects/BEVFusion.
    """
    if not (folder / 'projects/BEVFusion/bevfusion').is_dir():
        raise ConfigError(f'--mmdetection3d {folder}: has no projects/BEVFusion; give a checkout '
                          'of MMDetection3D v1.4.0')


def measure(names: Sequence[str], *, threads: int, checkout: Optional[Path] = None) -> Report:
    """Run benchmarks, each in a process of its own.

    Args:
        names: which.
        threads: of torch.
        checkout: of MMDetection3D, for those that need it.

    Raises:
        BenchmarkError: One of them failed; what it printed has been shown.
    """
    machine = _child('machine', threads)
    report = Report(machine=machine, threads=threads, rows=[])
    for name in names:
        print(f'{name} ...', file=sys.stderr, flush=True)
        report.rows.append(_row(name, _child(name, threads, checkout), machine))
    return report


def _child(name: str, threads: int, checkout: Optional[Path] = None) -> Dict[str, Any]:
    environment = {key: value for key, value in os.environ.items()
                   if key != 'BEVFUSION_ENHANCED_LAZY'}
    environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    if checkout is not None:
        environment[CHECKOUT] = str(checkout.resolve())
    done = subprocess.run(
        [sys.executable, '-m', 'bevfusion_enhanced.benchmarks.child', name, str(threads)],
        env=environment, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        reason = (f'it was ended by signal {-done.returncode}' if done.returncode < 0
                  else _last_line(done.stderr))
        raise BenchmarkError(f'benchmark {name} failed: {reason}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else 'it printed nothing'


def _row(name: str, found: Dict[str, Any], machine: Dict[str, float]) -> Row:
    ours, reference = found['ours_ms'], found['reference_ms']
    bounds = [found[part] / machine[rate] for part, rate in
              (('operations', 'operations_per_second'), ('traffic', 'bytes_per_second'))
              if found[part]]
    return Row(name=name, ours_ms=ours, reference_ms=reference,
               ratio=reference / ours if reference else None,
               bound_ms=1e3 * max(bounds) if bounds else None, peak_mb=found['peak_mb'],
               conditions=found['conditions'], details=found['details'])


def processor() -> str:
    """The name of this machine's processor."""
    try:
        with open('/proc/cpuinfo') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _rounded(value: Any) -> Any:
    return float(f'{value:.4g}') if isinstance(value, float) else value


def write_json(report: Report, path: Path) -> None:
    """Write the rows as a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row.as_json() for row in report.rows], indent=1) + '\n')


def show(report: Report) -> None:
    """Print the rows as a table, and what else was found."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=report.title())
    for column in COLUMNS:
        table.add_column(column, justify='left' if column == 'name' else 'right')
    for row in report.rows:
        table.add_row(*(_text(value) for value in row.as_json().values()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for row in report.rows:
        console.print(f'{row.name}: {row.conditions}', highlight=False, markup=False)
        for name, value in row.details.items():
            console.print(f'    {name}: {_detail(value)}', highlight=False, markup=False)


def _text(value: Any) -> str:
    return '' if value is None else f'{value:g}' if isinstance(value, float) else str(value)


def _detail(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ', '.join(f'{size:g}: {ms:g} ms' for size, ms in zip(value['sizes'], value['ms']))
        return (f'{value["size"]} {pairs}; exponent {value["exponent"]}, '
                f'{value["exponent_at_the_end"]} at the end')
    return str(value)


def write_markdown(report: Report, path: Path) -> None:
    """Write the tables and the machine for people."""
    lines = ['# Benchmarks', '', f'{report.title()}.', '',
             *_EXPLANATION, '',
             '| name | ours, ms | reference, ms | ratio | bound, ms | peak, MB |',
             '| --- | ---: | ---: | ---: | ---: | ---: |']
    lines += ['| ' + ' | '.join(_text(value) for value in row.as_json().values()) + ' |'
              for row in report.rows]
    lines += ['', '## What was measured', '']
    for row in report.rows:
        lines.append(f'- `{row.name}`: {row.conditions}.')
        lines += [f'  - {name}: {_detail(value)}' for name, value in row.details.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


def draw(report: Report, path: Path) -> None:
    """Draw ours, the reference and the bound as bars on a logarithmic axis."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = [row for row in report.rows if not row.name.startswith('scaling_')]
    growing = [(f'{row.name}: {name}', table) for row in report.rows
               for name, table in row.details.items() if isinstance(table, dict)]
    figure, axes = pyplot.subplots(1, 2 if growing and rows else 1, squeeze=False,
                                   figsize=(16 if growing and rows else 9, 0.45 * len(rows) + 3))
    panels = list(axes[0])
    if rows:
        _bars(panels.pop(0), rows)
    if growing:
        _curves(panels.pop(0), growing)
    figure.suptitle(report.title(), fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    for offset, (label, name) in enumerate((('reference', 'reference_ms'), ('ours', 'ours_ms'),
                                            ('bound', 'bound_ms'))):
        values = [getattr(row, name) or float('nan') for row in rows]
        axis.barh([i + 0.27 * (offset - 1) for i in range(len(rows))], values, 0.25, label=label)
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.invert_yaxis()
    axis.set_xscale('log')
    axis.set_xlabel('milliseconds')
    axis.legend()


def _curves(axis: Any, growing: Sequence[Any]) -> None:
    for label, table in growing:
        largest, slowest = table['sizes'][-1], table['ms'][-1]
        axis.plot([size / largest for size in table['sizes']],
                  [ms / slowest for ms in table['ms']], marker='o', markersize=3,
                  label=f'{label} ({table["exponent"]})')
    axis.plot([1e-4, 1], [1e-4, 1], color='grey', linestyle=':', label='linear')
    axis.set_xscale('log')
    axis.set_yscale('log')
    axis.set_xlabel('size over the largest')
    axis.set_ylabel('time over that of the largest')
    axis.legend(fontsize=7)
