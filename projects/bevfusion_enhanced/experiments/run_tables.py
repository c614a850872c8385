"""Runs as tables: on the terminal (rich), as CSV and as Markdown, all from the same rows."""
import csv
import io
from typing import Dict, List, Sequence

from rich.table import Table

from ..units import readable_size
from .runs import HEADLINES, Run

Row = Dict[str, str]

_RIGHT = ('epoch', *HEADLINES, 'size')


def run_row(run: Run) -> Row:
    """One run as text, by column."""
    status = run.status
    row = {'run': run.name, 'state': status.state,
           'epoch': f'{status.epoch}/{status.max_epochs}' if status.max_epochs else '-'}
    for name in HEADLINES:
        best = run.best.get(name)
        row[name] = f'{best.value:.4f} (e{best.epoch})' if best else '-'
    return {**row, 'size': readable_size(run.size), 'updated': status.updated[:16],
            'why': status.reason}


def run_record(run: Run) -> Row:
    """One run as plain numbers, by column, for programs to read; empty for what is not known."""
    status = run.status
    row = {'run': run.name, 'tag': run.tag, 'state': status.state, 'epoch': str(status.epoch),
           'max_epochs': str(status.max_epochs)}
    for name in HEADLINES:
        best = run.best.get(name)
        row[name] = repr(best.value) if best else ''
        row[f'{name}_epoch'] = str(best.epoch) if best else ''
    return {**row, 'bytes': str(run.size), 'updated': status.updated, 'why': status.reason}


def rich_table(rows: Sequence[Row], *, title: str = '') -> Table:
    """Rows of equal columns for the terminal; columns that are empty throughout are left out."""
    table = Table(title=title or None)
    columns = [name for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]
    for name in columns:
        table.add_column(name, justify='right' if name in _RIGHT else 'left', overflow='fold')
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    columns = list(rows[0]) if rows else []
    lines = ['| ' + ' | '.join(columns) + ' |',
             '|' + '|'.join(' ---: ' if name in _RIGHT else ' --- ' for name in columns) + '|']
    lines += ['| ' + ' | '.join(_cell(row[name]) for name in columns) + ' |' for row in rows]
    return '\n'.join(lines) + '\n'


def _cell(text: str) -> str:
    return text.replace('|', '\\|').replace('\n', ' ')


def side_by_side(names: Sequence[str], settings: Sequence[Dict[str, str]]) -> List[Row]:
    """One row for each setting on which runs differ, one column for each run."""
    keys = dict.fromkeys(key for values in settings for key in values)
    rows = []
    for key in keys:
        values = [of_run.get(key, '-') for of_run in settings]
        if len(set(values)) > 1:
            rows.append({'setting': key, **dict(zip(names, values, strict=True))})
    return rows
