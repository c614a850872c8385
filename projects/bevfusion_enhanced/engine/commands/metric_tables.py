"""Metrics of a test run as tables: one row a class, fractions of one.

Reads the names that the metrics report: `object/<class>/AP`, `object/mAP`, `object/NDS`,
`map/<class>/iou@<threshold>`, `map/mean/iou@max`, and of parts of the set (rings of distance,
night, ...) `<task>/<part>/<class>/<column>`.
"""
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence

from rich.console import Console
from rich.table import Table

_ERRORS = ('ATE', 'ASE', 'AOE', 'AVE', 'AAE')
_PLAIN_WIDTH = 120


def print_tables(metrics: Mapping[str, Any], console: Optional[Console] = None) -> None:
    """Print the tables of every task that was evaluated; other metrics follow as lines."""
    console = console or Console()
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    tables = [
        detection_table(metrics),
        parts_table(metrics, task='object', column='AP', caption='NDS',
                    title='3D detection by distance and scene: AP'),
        map_table(metrics),
        parts_table(metrics, task='map', column='iou@0.50',
                    title='BEV map segmentation by distance and scene: IoU at 0.5')]
    for table in tables:
        if table is not None:
            console.print(table)
    for name, value in metrics.items():
        if not name.startswith(('object/', 'map/')):
            console.print(f'{name}: {_cell(value)}', highlight=False)


def detection_table(metrics: Mapping[str, Any]) -> Optional[Table]:
    """AP and the five true-positive errors by class, mAP and NDS; None where there are none."""
    by_class = _by_class(metrics, 'object')
    if 'object/mAP' not in metrics and not by_class:
        return None
    table = _table('3D detection', ['class', 'AP', *_ERRORS],
                   caption=f'NDS {_cell(metrics.get("object/NDS"))}')
    for name, values in by_class.items():
        table.add_row(name, *(_cell(values.get(column)) for column in ('AP', *_ERRORS)))
    table.add_section()
    table.add_row('mean', *(_cell(metrics.get(f'object/m{column}')) for column in ('AP', *_ERRORS)))
    return table


def map_table(metrics: Mapping[str, Any]) -> Optional[Table]:
    """IoU by class at each threshold and at the best one; None where there is none."""
    by_class = _by_class(metrics, 'map')
    if not by_class:
        return None
    columns: List[str] = list(dict.fromkeys(
        column for values in by_class.values() for column in values))
    table = _table('BEV map segmentation: IoU',
                   ['class', *(column.replace('iou@', '') for column in columns)])
    mean = by_class.pop('mean', None)
    for name, values in by_class.items():
        table.add_row(name, *(_cell(values.get(column)) for column in columns))
    if mean is not None:
        table.add_section()
        table.add_row('mean', *(_cell(mean.get(column)) for column in columns))
    return table


def parts_table(metrics: Mapping[str, Any], *, task: str, column: str, title: str,
                caption: Optional[str] = None) -> Optional[Table]:
    """One figure by class (rows) and part of the set (columns); None where there are no parts.

    Args:
        metrics: All of them.
        task: Which to read, 'object' or 'map'.
        column: The figure, such as 'AP'.
        title: Of the table.
        caption: Another figure, of which the parts' means follow in a line below.
    """
    by_part = _by_part(metrics, task, column)
    if not by_part:
        return None
    below = {part: values['mean'] for part, values in _by_part(metrics, task, caption).items()
             if 'mean' in values}
    table = _table(title, ['class', *by_part], caption=f'{caption} ' + ', '.join(
        f'{part} {_cell(value)}' for part, value in below.items()) if below else None)
    classes = dict.fromkeys([*_by_class(metrics, task),
                             *(name for values in by_part.values() for name in values)])
    for name in [name for name in classes if name != 'mean']:
        table.add_row(name, *(_cell(values.get(name)) for values in by_part.values()))
    table.add_section()
    table.add_row('mean', *(_cell(values.get('mean')) for values in by_part.values()))
    return table


def _by_part(metrics: Mapping[str, Any], task: str,
             column: Optional[str]) -> Dict[str, Dict[str, Any]]:
    """{part: {class: value}} from names of the form `<task>/<part>/<class>/<column>`."""
    by_part: Dict[str, Dict[str, Any]] = {}
    for name, value in metrics.items():
        parts = name.split('/')
        if len(parts) == 4 and (parts[0], parts[3]) == (task, column):
            by_part.setdefault(parts[1], {})[parts[2]] = value
    return by_part


def _by_class(metrics: Mapping[str, Any], task: str) -> Dict[str, Dict[str, Any]]:
    """{class: {column: value}} from names of the form `<task>/<class>/<column>`."""
    rows: Dict[str, Dict[str, Any]] = {}
    for name, value in metrics.items():
        parts = name.split('/')
        if len(parts) == 3 and parts[0] == task:
            rows.setdefault(parts[1], {})[parts[2]] = value
    return rows


def _table(title: str, columns: Sequence[str], *, caption: Optional[str] = None) -> Table:
    table = Table(title=title, caption=caption, title_justify='left', caption_justify='left')
    for index, column in enumerate(columns):
        table.add_column(column, justify='left' if index == 0 else 'right', no_wrap=True)
    return table


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '-'
    return f'{value:.3f}' if isinstance(value, float) else str(value)
