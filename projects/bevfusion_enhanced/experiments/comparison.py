"""The figures of two models side by side, read from what `tools/test.py` wrote.

All figures are fractions of one, except the true-positive errors, which have their own units.
"""
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from rich.table import Table

from bevfusion_enhanced.errors import DataError

ERRORS = {'mATE': 'translation, m', 'mASE': 'scale, 1 - IoU', 'mAOE': 'orientation, rad',
          'mAVE': 'velocity, m/s', 'mAAE': 'attribute, 1 - accuracy'}
"""The five true-positive errors (lower is better) and what they measure."""

Summary = Dict[str, Any]
"""`mAP`, `NDS`, `mIoU`, the errors, and by class `AP` and `IoU`; an undefined figure is None."""

Figure = Optional[float]


def read_metrics(work_dir: Path) -> Dict[str, Figure]:
    """The newest `metrics.json` that `tools/test.py` wrote below `work_dir`.

    Raises:
        DataError: If there is none.
    """
    files = sorted(work_dir.glob('*/metrics.json'))
    if not files:
        raise DataError(f'{work_dir} holds no */metrics.json; tools/test.py should have written it')
    return json.loads(files[-1].read_text())


def summarise(metrics: Mapping[str, Figure]) -> Summary:
    """The figures of one model, fractions of one (errors in their own units).

    Args:
        metrics: As `tools/test.py` writes them: `object/mAP`, `object/<class>/AP`,
            `map/<class>/iou@max` and so on.

    Raises:
        DataError: If a figure is missing.
    """
    try:
        summary: Summary = {'mAP': metrics['object/mAP'], 'NDS': metrics['object/NDS'],
                            'mIoU': metrics['map/mean/iou@max']}
        summary.update({name: metrics[f'object/{name}'] for name in ERRORS})
    except KeyError as error:
        raise DataError(f'the metrics have no {error}; they have {sorted(metrics)}') from None
    summary['AP'] = _by_class(metrics, r'object/([^/]+)/AP')
    summary['IoU'] = _by_class(metrics, r'map/(?!mean/)([^/]+)/iou@max')
    return summary


def _by_class(metrics: Mapping[str, Figure], pattern: str) -> Dict[str, Figure]:
    matches = ((re.fullmatch(pattern, key), value) for key, value in metrics.items())
    return {match.group(1): value for match, value in matches if match}


def rows_of(before: Summary, after: Summary) -> Iterator[Optional[Tuple[str, Figure, Figure]]]:
    """The rows of the table (label, before, after); None stands for a line between groups."""
    for name in ('mAP', 'NDS', 'mIoU'):
        yield name, before[name], after[name]
    yield None
    for name, unit in ERRORS.items():
        yield f'{name} ({unit})', before[name], after[name]
    for group in ('AP', 'IoU'):
        yield None
        for name, value in before[group].items():
            yield f'{group} {name}', value, after[group].get(name)


def make_table(before: Summary, after: Summary) -> Table:
    """Phase 3 beside phase 4a."""
    table = Table(title='Held-out scenes, before and after task-specific GCA',
                  caption='IoU at the best threshold of 0.35..0.65; errors: lower is better')
    table.add_column('')
    for column in ('phase 3', 'phase 4a', 'change'):
        table.add_column(column, justify='right')
    for row in rows_of(before, after):
        if row is None:
            table.add_section()
        else:
            label, old, new = row
            change = None if old is None or new is None else new - old
            table.add_row(label, _text(old), _text(new), _text(change, sign='+'))
    return table


def _text(figure: Figure, *, sign: str = '') -> str:
    return '-' if figure is None else f'{figure:{sign}.4f}'
