"""A `LoadReport` for people: lines for the log, an aligned table, and the two files of a run."""
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from .matching import LoadReport, ModuleSummary, collapse
from .storage import PathLike, write_bytes

_COLUMNS = ('module', 'reused', 'missing', 'unexpected', 'mismatched', 'parameters reused', 'share')


def log_lines(report: LoadReport) -> List[str]:
    """What a log says about a load, in wording that people search for."""
    lines = [f'load checkpoint from {source}' for source in report.sources]
    present = [record.key for record in report.reused]
    fresh = collapse([record.key for record in report.missing],
                     present=present + [record.key for record in report.mismatched])
    lines += [f'not found in checkpoint: {name}' for name in fresh]
    lines += [f'shape differs: {record.key}: checkpoint {_shape(record.checkpoint_shape)}, '
              f'model {_shape(record.shape)}, fresh' for record in report.mismatched]
    in_model = present + list(report.fresh)
    unexpected = collapse([record.key for record in report.unexpected], present=in_model)
    lines += [f'not in the model, not used: {name}' for name in unexpected]
    lines += [f'{module}: taken from {report.module_sources[module]}, not from {source}'
              for module, source in report.shadowed]
    return lines + [_fresh_line(summary) for summary in report.fresh_modules()]


def table(report: LoadReport) -> str:
    """The report by module as plain aligned text: tensors of each kind, parameters reused."""
    rows = [_row(summary) for summary in report.modules()] + [_total(report)]
    columns = list(_COLUMNS)
    if len(report.sources) > 1:
        columns.append('source')
        rows = [row + (report.module_sources.get(row[0], ''),) for row in rows]
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [_align(columns, widths), '-' * (sum(widths) + 2 * len(widths) - 2)]
    return '\n'.join(lines + [_align(row, widths) for row in rows])


def as_dict(report: LoadReport) -> Dict[str, Any]:
    """The report as plain data, for `load_report.json`."""
    return {
        'sources': list(report.sources),
        'modules': {
            summary.module: {
                **{kind: {'tensors': pair[0], 'parameters': pair[1]} for kind, pair in (
                    ('reused', summary.reused), ('missing', summary.missing),
                    ('unexpected', summary.unexpected), ('mismatched', summary.mismatched))},
                'source': summary.source,
            } for summary in report.modules()
        },
        'missing': [record.key for record in report.missing],
        'unexpected': [record.key for record in report.unexpected],
        'mismatched': [{'key': record.key, 'checkpoint': list(record.checkpoint_shape),
                        'model': list(record.shape)} for record in report.mismatched],
        'shadowed': [{'module': module, 'source': source} for module, source in report.shadowed],
        'fresh_modules': [s.module for s in report.fresh_modules()],
    }


def as_markdown(report: LoadReport) -> str:
    """The report as Markdown, for `load_report.md`."""
    lines = ['# Load report', '', *(f'- from `{source}`' for source in report.sources), '',
             '| ' + ' | '.join(_COLUMNS) + ' |', '| --- ' + '| ---: ' * (len(_COLUMNS) - 1) + '|']
    rows = [_row(summary) for summary in report.modules()] + [_total(report)]
    lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([*lines, '', *(f'- {line}' for line in log_lines(report)), ''])


def save(report: LoadReport, folder: PathLike) -> Tuple[Path, Path]:
    """Write `load_report.json` and `load_report.md` into `folder`; returns their paths."""
    paths = Path(folder) / 'load_report.json', Path(folder) / 'load_report.md'
    write_bytes((json.dumps(as_dict(report), indent=2) + '\n').encode(), paths[0])
    write_bytes(as_markdown(report).encode(), paths[1])
    return paths


def _row(summary: ModuleSummary) -> Tuple[str, ...]:
    """One line of the table; a module that the model lacks has no share."""
    share = summary.reused[1] / summary.parameters if summary.parameters else None
    if share is None and summary.in_model:
        share = float(not summary.missing[0] and not summary.mismatched[0])
    return (summary.module, *(str(pair[0]) if pair[0] else '.' for pair in (
        summary.reused, summary.missing, summary.unexpected, summary.mismatched)),
        f'{summary.reused[1]:,} of {summary.parameters:,}', '' if share is None else f'{share:.1%}')


def _total(report: LoadReport) -> Tuple[str, ...]:
    summaries = report.modules()

    def total(kind: str) -> Tuple[int, int]:
        pairs = [getattr(summary, kind) for summary in summaries]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    return _row(ModuleSummary('all', total('reused'), total('missing'), total('unexpected'),
                              total('mismatched'), None))


def _fresh_line(summary: ModuleSummary) -> str:
    if summary.fresh_parameters == summary.parameters and not summary.reused[0]:
        return f'{summary.module}: {summary.parameters:,} parameters, fresh'
    return (f'{summary.module}: {summary.fresh_parameters:,} of {summary.parameters:,} parameters '
            'fresh')


def _align(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return '  '.join([row[0].ljust(widths[0]), *numbers]).rstrip()


def _shape(shape: Sequence[int]) -> str:
    return '(' + ', '.join(map(str, shape)) + ')'
