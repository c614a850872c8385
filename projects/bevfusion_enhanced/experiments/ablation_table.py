"""The table of an ablation, as Markdown, CSV and picture: every number with its spread."""
import csv
import io
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from ..checkpoints.durable import replace_bytes
from .ablation import Job, Result
from .runs import HEADLINES

_NOTHING = '-'


@dataclass(frozen=True)
class Spread:
    """Values of one figure under several seeds.

    Attributes:
        values: By seed; only those that are defined.
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> Optional[float]:
        """Their mean; None where there are none."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> Optional[float]:
        """Their standard deviation (n - 1); None below two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def text(self, digits: int, *, sign: bool = False) -> str:
        """`0.123 ± 0.004`, or what there is of it."""
        if self.mean is None:
            return _NOTHING
        mean = f'{self.mean:{"+" if sign else ""}.{digits}f}'
        return mean if self.deviation is None else f'{mean} ± {self.deviation:.{digits}f}'

    def less(self, other: 'Spread') -> 'Spread':
        """The differences under the seeds that both have."""
        return Spread({seed: value - other.values[seed] for seed, value in self.values.items()
                       if seed in other.values})


@dataclass(frozen=True)
class Row:
    """One ablation.

    Attributes:
        name: Of its config.
        question: What it asks.
        reference: Whether the others are compared with it.
        wanted: Number of seeds asked for.
        metrics: By headline (mAP, NDS, mIoU).
        step_seconds: Of a training step.
        peak_gb: Most memory in training.
        parameters: Learnable values; None where they were not counted.
        gflops: Of one prediction; None likewise.
        failed: Seeds under which it ended with an error.
    """

    name: str
    question: str
    reference: bool
    wanted: int
    metrics: Mapping[str, Spread]
    step_seconds: Spread
    peak_gb: Spread
    parameters: Optional[int]
    gflops: Optional[float]
    failed: Tuple[int, ...] = ()

    @property
    def done(self) -> int:
        """Seeds that are finished."""
        return max((len(spread.values) for spread in self.metrics.values()), default=0)


def make_rows(results: Mapping[Job, Optional[Result]], *, failed: Sequence[Job],
              sizes: Mapping[str, Tuple[int, float]]) -> List[Row]:
    """A row for each ablation, in the jobs' order.

    Args:
        results: What came out of every job; None where it is not done.
        failed: Jobs that ended with an error.
        sizes: (parameters, GFLOPs) by the ablations' names.
    """
    rows = []
    for name in dict.fromkeys(job.ablation.name for job in results):
        own = {job: result for job, result in results.items() if job.ablation.name == name}
        about = next(iter(own)).ablation
        parameters, gflops = sizes.get(name, (None, None))
        rows.append(Row(
            name=name, question=about.question, reference=about.reference, wanted=len(own),
            metrics={short: _spread(own, lambda r, key=key: r.metrics.get(key))
                     for short, key in HEADLINES.items()},
            step_seconds=_spread(own, lambda r: r.step_seconds),
            peak_gb=_spread(own, lambda r: r.peak_gb), parameters=parameters, gflops=gflops,
            failed=tuple(job.seed for job in failed if job.ablation.name == name)))
    return rows


def _spread(results: Mapping[Job, Optional[Result]], figure) -> Spread:
    values = {job.seed: figure(result) for job, result in results.items() if result is not None}
    return Spread({seed: float(value) for seed, value in values.items()
                   if value is not None and math.isfinite(value)})


def reference_of(rows: Sequence[Row]) -> Optional[Row]:
    """The row that the others are compared with."""
    return next((row for row in rows if row.reference), None)


def as_markdown(rows: Sequence[Row], *, notes: Sequence[str]) -> str:
    """The table, and below it what its numbers are."""
    reference = reference_of(rows)
    names = [name for name in HEADLINES if any(row.metrics[name].values for row in rows)]
    compared = names if reference is not None and len(rows) > 1 else []
    titles = ['ablation', 'what it changes', 'seeds', *names,
              *(f'{name} less reference' for name in compared),
              'parameters', 'GFLOPs', 's a step', 'GB']
    lines = ['| ' + ' | '.join(titles) + ' |',
             '| --- | --- |' + ' ---: |' * (len(titles) - 2)]
    for row in rows:
        cells = [f'**{row.name}**' if row is reference else row.name,
                 row.question or _NOTHING, _seeds(row)]
        cells += [row.metrics[name].text(3) for name in names]
        cells += [_NOTHING if row is reference else
                  row.metrics[name].less(reference.metrics[name]).text(3, sign=True)
                  for name in compared]
        cells += [_NOTHING if row.parameters is None else f'{row.parameters:,}',
                  _NOTHING if row.gflops is None else f'{row.gflops:.2f}',
                  row.step_seconds.text(3), row.peak_gb.text(2)]
        lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join([*lines, '', *notes, ''])


def _seeds(row: Row) -> str:
    text = str(row.done) if row.done == row.wanted else f'{row.done} of {row.wanted}'
    return f'{text}, failed: {", ".join(map(str, row.failed))}' if row.failed else text


def as_csv(rows: Sequence[Row]) -> str:
    """The same as numbers: each figure's mean and standard deviation in columns of their own."""
    reference = reference_of(rows)
    table = []
    for row in rows:
        line: Dict[str, object] = dict(ablation=row.name, question=row.question, seeds=row.done,
                                       reference=int(row.reference))
        for name in HEADLINES:
            line.update(_columns(name, row.metrics[name]))
            if reference is not None:
                line.update(_columns(f'{name} less reference',
                                     row.metrics[name].less(reference.metrics[name])))
        line.update({'parameters': row.parameters, 'GFLOPs': row.gflops})
        line.update(_columns('step seconds', row.step_seconds))
        line.update(_columns('peak GB', row.peak_gb))
        table.append(line)
    return _csv(table)


def _columns(name: str, spread: Spread) -> Dict[str, Optional[float]]:
    return {f'{name} mean': spread.mean, f'{name} std': spread.deviation}


def runs_as_csv(results: Mapping[Job, Optional[Result]]) -> str:
    """Every metric of every run that is done, a line each."""
    return _csv([dict(ablation=job.ablation.name, seed=job.seed,
                      step_seconds=result.step_seconds, peak_gb=result.peak_gb, **result.metrics)
                 for job, result in results.items() if result is not None])


def _csv(table: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(column for line in table for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def draw(rows: Sequence[Row], path: Path) -> Path:
    """A panel for each metric: every seed a point, the mean a line; the reference goes through."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    names = [name for name in HEADLINES if any(row.metrics[name].values for row in rows)]
    names = names or list(HEADLINES)[:1]
    reference = reference_of(rows)
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(3.0 + 3.2 * len(names), 1.2 + 0.32 * len(rows)), sharey=True,
        squeeze=False, constrained_layout=True)
    for axis, name in zip(axes[0], names, strict=True):
        for place, row in enumerate(rows):
            _draw_spread(axis, place, row.metrics[name], strong=row is reference)
        if reference is not None and reference.metrics[name].mean is not None:
            axis.axvline(reference.metrics[name].mean, color='0.5', linestyle='--', linewidth=1)
        axis.set_title(name)
        axis.grid(axis='x', alpha=0.3)
    axes[0][0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0][0].set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    figure.supxlabel('points: seeds; bar: mean and standard deviation; dashed: the reference',
                     fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    pyplot.close(figure)
    replace_bytes(buffer.getvalue(), path)
    return path


def _draw_spread(axis, place: int, spread: Spread, *, strong: bool) -> None:
    colour = '#b3261e' if strong else '#1f5aa6'
    if spread.mean is None:
        return
    axis.errorbar([spread.mean], [place], xerr=[spread.deviation or 0.0], color=colour, capsize=3,
                  linewidth=2, marker='|', markersize=12)
    axis.scatter(list(spread.values.values()), [place] * len(spread.values), color=colour, s=14,
                 alpha=0.6, zorder=3)
