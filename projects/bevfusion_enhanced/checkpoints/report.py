"""A `LoadReport` for people: lines for the log, an aligned table, and the two files of a run."""
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from .matching import LoadReport, ModuleSummary, collapse
from .storage import PathLike, write_bytes

_HINTS = 10
_COLUMNS = ('module', 'reused', 'missing', 'unexpected', 'mismatched', 'parameters reused', 'share')


def log_lines(report: LoadReport) -> List[str]:
    """What a log says about a load, in wording that people search for."""
    lines = [f'load checkpoint from {source}' for source in report.sources]
    lines += [f'origin of {source}: {origin}' for source, origin in report.origins.items()]
    lines += list(report.notes) + [f'differs in meaning: {change}' for change in report.meaning]
    if len(report.sources) > 1:
        lines += [f'from {source}: {", ".join(modules)}'
                  for source, modules in _modules_by_source(report).items()]
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
    lines += [str(match) for match in report.classes]
    lines += [f'not applied, closest of equal shape: {hint.missing} <- {hint.unexpected}'
              for hint in report.suggestions[:_HINTS]]
    if len(report.suggestions) > _HINTS:
        lines.append(f'and {len(report.suggestions) - _HINTS} more such pairs, all in '
                     'load_report.json')
    return lines + [_fresh_line(summary) for summary in report.fresh_modules()]


def table(report: LoadReport) -> str:
    """The report by module as plain aligned text: tensors of each kind, parameters reused."""
    columns, rows = _cells(report)
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [_align(columns, widths), '-' * (sum(widths) + 2 * len(widths) - 2)]
    return '\n'.join(lines + [_align(row, widths) for row in rows])


def as_dict(report: LoadReport) -> Dict[str, Any]:
    """The report as plain data, for `load_report.json`."""
    return {
        'sources': list(report.sources),
        'origins': dict(report.origins),
        'notes': list(report.notes),
        'meaning': [_plain(change) for change in report.meaning],
        'modules': {
            summary.module: {
                **{kind: {'tensors': pair[0], 'parameters': pair[1]} for kind, pair in (
                    ('reused', summary.reused), ('missing', summary.missing),
                    ('unexpected', summary.unexpected), ('mismatched', summary.mismatched))},
                'fresh_parameters': summary.fresh_parameters,
                'source': summary.source,
            } for summary in report.modules()
        },
        'missing': [record.key for record in report.missing],
        'unexpected': [record.key for record in report.unexpected],
        'mismatched': [{'key': record.key, 'checkpoint': list(record.checkpoint_shape),
                        'model': list(record.shape)} for record in report.mismatched],
        'shadowed': [{'module': module, 'source': source} for module, source in report.shadowed],
        'partly_fresh': [{'key': record.key, 'parameters': record.fresh}
                         for record in report.reused if record.fresh],
        'classes': [{'head': found.head, 'source': found.source, 'kept': list(found.kept),
                     'fresh': list(found.fresh), 'unused': list(found.unused),
                     'says': str(found)} for found in report.classes],
        'suggestions': [hint._asdict() for hint in report.suggestions],
        'fresh_modules': [s.module for s in report.fresh_modules()],
    }


def as_markdown(report: LoadReport) -> str:
    """The report as Markdown, for `load_report.md`."""
    columns, rows = _cells(report)
    lines = ['# Load report', '', *(f'- from `{source}`' for source in report.sources), '',
             '| ' + ' | '.join(columns) + ' |', '| --- ' + '| ---: ' * (len(columns) - 1) + '|']
    lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([*lines, '', *(f'- {line}' for line in log_lines(report)), ''])


def save(report: LoadReport, folder: PathLike) -> Tuple[Path, Path]:
    """Write `load_report.json` and `load_report.md` into `folder`; returns their paths."""
    paths = Path(folder) / 'load_report.json', Path(folder) / 'load_report.md'
    write_bytes((json.dumps(as_dict(report), indent=2) + '\n').encode(), paths[0])
    write_bytes(as_markdown(report).encode(), paths[1])
    return paths


def _cells(report: LoadReport) -> Tuple[List[str], List[Tuple[str, ...]]]:
    """Heads of the columns and rows of the table; sources where there are several."""
    rows = [_row(summary) for summary in report.modules()] + [_total(report)]
    if len(report.sources) < 2:
        return list(_COLUMNS), rows
    return [*_COLUMNS, 'source'], [
        row + (report.module_sources.get(row[0], ''),) for row in rows]


def _modules_by_source(report: LoadReport) -> Dict[str, List[str]]:
    """Modules of the model by the file that they came from."""
    modules: Dict[str, List[str]] = {source: [] for source in report.sources}
    for summary in report.modules():
        if summary.source is not None and summary.reused[0]:
            modules[summary.source].append(summary.module)
    return {source: names or ['nothing'] for source, names in modules.items()}


def _plain(change: Any) -> Any:
    return asdict(change) if is_dataclass(change) else str(change)


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
                              total('mismatched'), None,
                              sum(summary.partly_fresh for summary in summaries)))


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
