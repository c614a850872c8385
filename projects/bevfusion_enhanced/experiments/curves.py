"""Curves of several runs in one picture."""
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from .runs import HEADLINES, Run, read_lines

Series = Tuple[List[float], List[float]]


def draw_curves(runs: Sequence[Run], path: Path) -> Path:
    """Training loss by iteration, and each headline by epoch, a line for each run, as PNG."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    panels = ['loss', *HEADLINES]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6),
                                   constrained_layout=True)
    for run in runs:
        records = read_lines(run.files.metrics)
        for axis, name in zip(axes, panels, strict=True):
            x, y = loss_series(records) if name == 'loss' else metric_series(records, name)
            axis.plot(x, y, marker='' if name == 'loss' else 'o', markersize=3, linewidth=1.2,
                      label=run.name)
    for axis, name in zip(axes, panels, strict=True):
        axis.set_title(name)
        axis.set_xlabel('iteration' if name == 'loss' else 'epoch')
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def loss_series(records: Sequence[Dict[str, Any]]) -> Series:
    """(iterations, total loss) of the training records."""
    points = [(record['iter'], record['loss']) for record in records
              if record.get('kind') == 'train' and isinstance(record.get('loss'), (int, float))]
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def metric_series(records: Sequence[Dict[str, Any]], headline: str) -> Series:
    """(epochs, values) of a headline in the validation records."""
    metric = HEADLINES[headline]
    points = [(record['epoch'], record[metric]) for record in records
              if record.get('kind') == 'val' and isinstance(record.get(metric), (int, float))]
    return [float(x) for x, _ in points], [float(y) for _, y in points]
