"""`record.md`: a run in words and numbers, rewritten at every epoch."""
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .diagnosis import Finding, together

NAME = 'record.md'
_EPOCHS_SHOWN = 12
_EVENTS_SHOWN = 20
_LISTED = 4
_METRICS = ('object/mAP', 'object/NDS', 'map/mean/iou@max')


@dataclass
class Record:
    """Everything that `record.md` tells.

    Attributes:
        info: what is trained: pairs for the section Training.
        changes: what differs from the run before, one line each.
        epoch: number of finished epochs.
        max_epochs: number of all epochs.
        iteration: number of finished iterations.
        history: measurements of every finished epoch, with `epoch` among them, the newest last.
        findings: of the newest epoch.
        events: what happened and when: dicts of `epoch`, `iter`, `event` and details.
        stopped: why the run was stopped; None while it goes on.
    """

    info: Mapping[str, str]
    changes: Sequence[str]
    epoch: int
    max_epochs: int
    iteration: int
    history: Sequence[Mapping[str, float]]
    findings: Sequence[Finding]
    events: Sequence[Mapping[str, Any]] = field(default_factory=list)
    stopped: Optional[str] = None


def write_record(record: Record, folder: Path) -> Path:
    """Write `record.md` into a run's folder: whole, or not at all."""
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(NAME + '.part')
    beside.write_text(render(record), encoding='utf-8')
    os.replace(beside, path)
    return path


def render(record: Record) -> str:
    """The record as Markdown."""
    newest = record.history[-1] if record.history else {}
    sections = [
        ('Training', _info(record)),
        ('Losses', _losses(newest)),
        ('Gradient stability', _gradients(newest)),
        ('Progress', _progress(record)),
        ('Warnings', _warnings(record)),
        ('Diagnosis', _diagnosis(record.findings)),
        ('What to try next', _to_try(record.findings)),
        ('Open questions for the next validation', _questions(record.findings, record.history)),
    ]
    return '# Training record\n\n' + '\n'.join(
        f'## {title}\n\n{body.rstrip()}\n' for title, body in sections)


def _info(record: Record) -> str:
    lines = [f'- {name}: {value}' for name, value in record.info.items()]
    lines.append(f'- epoch {record.epoch} of {record.max_epochs}, iteration {record.iteration}')
    if record.stopped:
        lines.append(f'- **stopped**: {record.stopped}')
    if record.changes:
        lines += ['', 'Changed since the run that the weights come from:', '',
                  *(f'- {change}' for change in record.changes)]
    return '\n'.join(lines)


def _losses(newest: Mapping[str, float]) -> str:
    terms = _grouped(newest, 'losses.term.', ('mean', 'first', 'last'))
    if not terms:
        return 'No epoch is finished yet.'
    total = {kind: newest.get(f'losses.total.{kind}') for kind in ('mean', 'first', 'last')}
    parts = [_table(['loss', 'mean', 'first', 'last'],
                    [[name, *(_number(row.get(k)) for k in ('mean', 'first', 'last'))]
                     for name, row in [('**total**', total), *terms.items()]])]
    tasks = _grouped(newest, 'losses.task.', ('mean', 'share', 'main', 'auxiliary',
                                              'auxiliary_ratio'))
    parts.append(_table(
        ['task', 'mean', 'share of all', 'main', 'auxiliary', 'auxiliary / main'],
        [[name, _number(row.get('mean')), _percent(row.get('share')), _number(row.get('main')),
          _number(row.get('auxiliary')), _number(row.get('auxiliary_ratio'))]
         for name, row in tasks.items()]))
    branches = [[*name[len('losses.task.'):].split('.auxiliary.'), _number(value)]
                for name, value in newest.items()
                if name.startswith('losses.task.') and '.auxiliary.' in name]
    if branches:
        parts.append(_table(['task', 'auxiliary branch', 'mean'], branches))
    layers = [[*name[len('losses.layer.'):].rsplit('.', 1), _number(value)]
              for name, value in newest.items() if name.startswith('losses.layer.')]
    if layers:
        parts.append(_table(['task', 'decoder layer', 'mean'], layers))
    return '\n\n'.join(parts)


def _gradients(newest: Mapping[str, float]) -> str:
    if 'gradients.total.median' not in newest:
        return 'No step was measured yet.'
    kinds = ('share', 'min', 'median', 'max', 'min_step', 'max_step', 'steps')
    modules = _grouped(newest, 'gradients.module.', kinds)
    total = {kind: newest.get(f'gradients.total.{kind}') for kind in kinds}
    rows = [[name, _percent(row.get('share')), *(_number(row.get(k)) for k in kinds[1:])]
            for name, row in [('**total**', total), *sorted(
                modules.items(), key=lambda item: -(item[1].get('share') or 0))]]
    parts = [_table(['module', 'share', 'min', 'median', 'max', 'step of min', 'step of max',
                     'steps'], rows)]
    parts.append('\n'.join([
        f'- over warn_norm: {_percent(newest.get("gradients.total.share_over_warn"))} of the steps',
        f'- clipping bit on {_percent(newest.get("gradients.clipped.share"))} of the steps, mean '
        f'factor {_number(newest.get("gradients.clipped.mean_factor"))}, strongest '
        f'{_number(newest.get("gradients.clipped.strongest_factor"))}',
        f'- skipped as not finite: {_number(newest.get("steps.nonfinite"))}; overflows of the loss '
        f'scaler: {_number(newest.get("steps.overflow"))}']))
    updates = _grouped(newest, 'updates.', ('mean', 'max'))
    updates = {name: row for name, row in updates.items()  # a group that is one module: once
               if name.replace('group.', 'module.', 1) == name
               or name.replace('group.', 'module.', 1) not in updates}
    if updates:
        parts.append('Size of a step over the size of the weights:\n\n' + _table(
            ['what', 'mean', 'max'], [[name.replace('.', ' ', 1), _number(row.get('mean')),
                                       _number(row.get('max'))] for name, row in updates.items()]))
    cosines = _grouped(newest, 'cosine.', ('mean', 'negative_share', 'looks'))
    if cosines:
        parts.append("Cosine of the tasks' gradients on the shared map:\n\n" + _table(
            ['tasks', 'mean', 'below zero', 'looks'],
            [[name, _number(row.get('mean')), _percent(row.get('negative_share')),
              _number(row.get('looks'))] for name, row in cosines.items()]))
    return '\n\n'.join(parts)


def _progress(record: Record) -> str:
    if not record.history:
        return 'No epoch is finished yet.'
    metrics = [m for m in _METRICS
               if any(f'validation.metric.{m}' in row for row in record.history)]
    rows = [[_number(row.get('epoch')), _number(row.get('losses.total.mean')),
             _number(row.get('gradients.total.median')), _number(row.get('steps.nonfinite')),
             *(_number(row.get(f'validation.metric.{m}')) for m in metrics)]
            for row in record.history[-_EPOCHS_SHOWN:]]
    parts = [_table(['epoch', 'loss', 'median gradient', 'skipped', *metrics], rows)]
    newest = record.history[-1]
    rates = _grouped(newest, 'learning_rate.', ('first', 'last', 'max'))
    parts.append(_table(['learning rate of', 'first', 'last', 'max'],
                        [[name, *(_number(row.get(k)) for k in ('first', 'last', 'max'))]
                         for name, row in rates.items()]))
    counts = _grouped(newest, 'classes.', ('truths', 'positives', 'predicted'))
    if counts:
        parts.append(_table(
            ['class in training', 'annotated', 'matched', 'predicted'],
            [[name, *(_number(row.get(k)) for k in ('truths', 'positives', 'predicted'))]
             for name, row in counts.items()]))
    valid = [[name[len('validation.'):].replace('.valid', ''), _number(value)]
             for name, value in newest.items()
             if name.startswith('validation.class.')
             or (name.startswith('validation.') and name.endswith('.valid'))]
    if valid:
        parts.append(_table(['valid predictions in validation', 'number'], valid))
    return '\n\n'.join(part for part in parts if part)


def _warnings(record: Record) -> str:
    lines = [f'- {_with_others(finding.message, others)}'
             for finding, others in together(record.findings)]
    for event in list(record.events)[-_EVENTS_SHOWN:]:
        details = '; '.join(f'{key}: {detail(key, value)}' for key, value in event.items()
                            if key not in ('epoch', 'iter', 'event') and value)
        lines.append(f'- epoch {event.get("epoch")}, iteration {event.get("iter")}: '
                     f'{event.get("event")}' + (f' ({details})' if details else ''))
    if len(record.events) > _EVENTS_SHOWN:
        lines.append(f'- {len(record.events) - _EVENTS_SHOWN} earlier events are in metrics.jsonl')
    return '\n'.join(lines) or 'None.'


def _diagnosis(findings: Sequence[Finding]) -> str:
    if not findings:
        return 'Nothing fired: as far as it is measured the training is healthy.'
    blocks = []
    for finding, others in together(findings):
        lines = [f'### {_with_others(finding.message, others)}', '',
                 'Possible causes, the likeliest first:', '']
        for number, explained in enumerate(finding.explanations, start=1):
            evidence = ', '.join(f'{name} = {_number(value)}'
                                 for name, value in explained.evidence.items())
            lines.append(f'{number}. {explained.cause}'
                         + (' **(measurements speak for it)**' if explained.likely else
                            ' (measurements speak against it)' if explained.refuted else '')
                         + (f' - {evidence}' if evidence else ''))
        blocks.append('\n'.join(lines))
    return '\n\n'.join(blocks)


def _to_try(findings: Sequence[Finding]) -> str:
    tried: Dict[str, str] = {}
    for finding, _ in together(findings):
        standing = [e for e in finding.explanations if not e.refuted]
        for explained in standing or finding.explanations:
            tried.setdefault(explained.change, finding.message)
    return '\n'.join(f'- {change} (since {why})' for change, why in tried.items()) or 'Go on.'


def _questions(findings: Sequence[Finding], history: Sequence[Mapping[str, float]]) -> str:
    questions: List[str] = [_with_others(finding.question, others)
                            for finding, others in together(findings) if finding.question]
    for name in _METRICS:
        key = f'validation.metric.{name}'
        values = [(row[key], row.get('epoch')) for row in history if key in row]
        if values:
            best, epoch = max(values, key=lambda pair: pair[0])
            questions.append(f'Is {name} above {_number(best)}, its best so far, of epoch '
                             f'{_number(epoch)}?')
    return '\n'.join(f'- {question}' for question in dict.fromkeys(questions)) or (
        '- How good are the metrics?')


def _with_others(text: str, others: Sequence[str]) -> str:
    return f'{text} The same of {", ".join(others)}.' if text.endswith('?') and others else (
        f'{text}; the same of {", ".join(others)}' if others else text)


def _grouped(values: Mapping[str, float], prefix: str,
             kinds: Sequence[str]) -> Dict[str, Dict[str, float]]:
    """{what: {kind: value}} of the measurements `<prefix><what>.<kind>`."""
    found: Dict[str, Dict[str, float]] = {}
    for name, value in values.items():
        what, _, kind = name[len(prefix):].rpartition('.')
        if name.startswith(prefix) and kind in kinds and what:
            found.setdefault(what, {})[kind] = value
    return found


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ''
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines)


def _number(value: Optional[float]) -> str:
    if value is None:
        return '-'
    value = float(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f'{value:.4g}'


def _percent(value: Optional[float]) -> str:
    return '-' if value is None else f'{value:.1%}'


def detail(key: str, value: Any) -> str:
    """A detail of an event as text: of lists the first few; samples are all named."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    shown = value if key == 'samples' else value[:_LISTED]
    more = f' and {len(value) - len(shown)} more' if len(shown) < len(value) else ''
    return f'{", ".join(map(str, shown))}{more}'
