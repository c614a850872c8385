"""What `tools/checkpoint.py` does, a function for each command."""
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...checkpoints.change_rules import KINDS
from ...checkpoints.explain import Change, class_lists_in, explain_change, safe_to_resume
from ...checkpoints.geometry import geometry_of
from ...errors import CheckpointError
from ...units import readable_size

_CONFIGS = ('.py', '.json', '.yaml', '.yml')
_WIDE = 1000  # where no terminal limits a line, none is broken
_LISTED = 20
_RECORD = 'default_hooks.run_record'
_OF_A_START = ('work_dir', 'launcher', 'load_from', 'resume', 'log_file', 'experiment_name',
               'default_hooks.checkpoint.out_dir')
_MEANS = {
    'structure': 'tensors differ: what fits is reused, the rest starts fresh',
    'meaning': 'the same tensors, which now mean something else',
    'training': 'settings of the training: safe to resume',
}


def inspect(path: str) -> int:
    """Print what is in a checkpoint.

    Raises:
        CheckpointError: It cannot be read; or, once all is printed, it holds NaN or Inf.
    """
    from ...checkpoints.inspection import inspect as look
    console = _console()
    found = look(path)
    _say(console, f'{found.path}: {readable_size(found.size)}')
    _say(console, f'origin: {found.origin.note}')
    wrappers = ' > '.join(found.origin.wrappers)
    _say(console, f'weights under: {wrappers}' if wrappers else 'weights: bare')
    for line in (*found.notes, *(f'{key}: {value}' for key, value in found.metadata.items())):
        _say(console, line)
    if found.entries:
        _say(console, f'beside them: {", ".join(found.entries)}')
    for state in found.optimizers:
        rates = ', '.join(f'{rate:.3g}' for rate in state.rates)
        _say(console, f'optimizer{f" {state.name}" if state.name else ""}: {state.kind}, '
             f'{state.parameters} parameters with a state in {state.groups} groups, rate {rates}')
    _say(console, 'training can go on from it: ' + (
        f'no, it holds no {" and no ".join(found.lacking)}' if found.lacking else 'yes'))
    rows = [(m.module, str(m.tensors), f'{m.parameters:,}', readable_size(m.bytes),
             ' '.join(m.dtypes), _count(m.nan), _count(m.inf)) for m in found.modules]
    rows.append(('all', str(sum(m.tensors for m in found.modules)),
                 f'{sum(m.parameters for m in found.modules):,}',
                 readable_size(sum(m.bytes for m in found.modules)),
                 ' '.join(dict.fromkeys(kind for m in found.modules for kind in m.dtypes)),
                 _count(sum(m.nan for m in found.modules)),
                 _count(sum(m.inf for m in found.modules))))
    _print_table(console, ('module', 'tensors', 'parameters', 'size', 'types', 'NaN', 'Inf'), rows)
    if found.not_finite:
        raise CheckpointError(f'{path} holds {found.not_finite:,} values that are NaN or Inf: the '
                              'training that wrote it had diverged; use an earlier checkpoint')
    return 0


def diff(first: str, second: str) -> int:
    """Print what differs between the weights of two checkpoints."""
    from ...checkpoints.inspection import diff as compare
    console = _console()
    found = compare(first, second)
    if found.equal:
        _say(console, f'{first} and {second} hold the same weights')
        return 0
    for title, names in (
            (f'only in {first}', found.only_first), (f'only in {second}', found.only_second),
            ('other shape', [f'{name} {a} -> {b}' for name, a, b in found.shapes]),
            ('other type', [f'{name} {a} -> {b}' for name, a, b in found.dtypes])):
        for name in names[:_LISTED]:
            _say(console, f'{title}: {name}')
        if len(names) > _LISTED:
            _say(console, f'{title}: and {len(names) - _LISTED} more')
    _print_table(console, ('module', 'tensors', 'changed', 'relative change', 'largest'), [
        (m.module, str(m.tensors), _count(m.changed), f'{m.relative:.3e}', f'{m.largest:.3e}')
        for m in found.modules])
    return 0


def check(sources: Sequence[str], config_path: str, *, overrides: Sequence[str] = (),
          source_classes: Sequence[str] = (), strict: bool = False) -> int:
    """Print what a training with these checkpoints would load; nothing is trained or written.

    Returns:
        1 where `strict` is asked for and something would be fresh, otherwise 0.

    Raises:
        CheckpointError: See `plan_load`; or nothing fits.
        ConfigError: The config cannot be read, or a source or a list of classes is given wrongly.
    """
    from ...checkpoints import report as load_report
    from ...checkpoints.loading import parse_sources, plan_load
    from ...checkpoints.matching import require_related
    from ...checkpoints.source_classes import parse_source_classes
    parsed = parse_sources(sources)
    lists = parse_source_classes(source_classes)
    config, model = _build_model(config_path, overrides)
    report = plan_load(
        model.state_dict(), parsed, parameters=dict(model.named_parameters()).keys(),
        geometry=geometry_of(config), class_lists=class_lists_in(config),
        source_classes=lists).report
    require_related(report)
    console = _console()
    for line in load_report.log_lines(report):
        _say(console, line)
    _say(console, load_report.table(report))
    fresh = sum(summary.fresh_parameters for summary in report.modules())
    if not report.fresh_modules():
        _say(console, 'every tensor of the model is found')
        return 0
    _say(console, f'{fresh:,} parameters would be fresh')
    return 1 if strict else 0


def convert(source: str, out: str, *, to: str, config_path: Optional[str] = None,
            overrides: Sequence[str] = (), force: bool = False) -> int:
    """Write a checkpoint's weights in the form of another code base.

    Raises:
        CheckpointError: It cannot be read or converted, or `out` exists; nothing was written.
        ConfigError: The config cannot be read.
    """
    from ...checkpoints.conversion import convert_checkpoint
    from ...checkpoints.storage import read_checkpoint
    _require_free(out, force=force)
    geometry = geometry_of(_read_config(config_path, overrides)) if config_path else {}
    converted = convert_checkpoint(read_checkpoint(source, mmap=True, verify=True), to=to,
                                   geometry=geometry, source=source)
    notes = list(converted.notes)
    if to == 'mmdet3d' and Path(out).suffix == '.safetensors':
        notes.append('a .safetensors file has no place for the versions of modules, without which '
                     'MMDetection3D permutes sparse weights as it loads them: write a .pth for it')
    _write(converted.checkpoint, out, notes)
    return 0


def average(sources: Sequence[str], out: str, *, force: bool = False) -> int:
    """Write the mean of several checkpoints of one model.

    Raises:
        CheckpointError: One cannot be read, they differ in names or shapes, or `out` exists.
    """
    from ...checkpoints.conversion import average_checkpoints
    from ...checkpoints.storage import read_checkpoint
    _require_free(out, force=force)
    checkpoints = [read_checkpoint(source, mmap=True, verify=True) for source in sources]
    averaged = average_checkpoints(checkpoints, sources=sources)
    _write(averaged.checkpoint, out, averaged.notes)
    return 0


def explain(first: str, second: str) -> int:
    """Print what differs between two configs or checkpoints, and whether one may be resumed.

    Raises:
        CheckpointError: A checkpoint cannot be read, or nothing can be compared.
        ConfigError: A config cannot be read.
    """
    console = _console()
    changes = _without_additions(explain_change(_side(first), _side(second)), first, second)
    for kind in KINDS:
        found = [change for change in changes if change.kind == kind]
        if found:
            _print_table(console, ('key', 'old', 'new', 'consequence'),
                         [_change_row(change) for change in found],
                         title=f'{kind} - {_MEANS[kind]}')
    if not changes:
        _say(console, 'nothing differs')
    elif safe_to_resume(changes):
        _say(console, 'safe to resume: only the training differs')
    else:
        _say(console, 'not to be resumed: --load-from takes every weight that fits, with a fresh '
             'optimizer and schedule')
    return 0


def prune(folder: str, *, keep: int = 1, yes: bool = False) -> int:
    """Show which checkpoints of a run could go, with their sizes; delete them once agreed to.

    Raises:
        CheckpointError: The folder does not exist, or a file cannot be deleted.
    """
    from ...checkpoints.folder import INSIDE
    from ...checkpoints.retention import plan_prune
    from ...checkpoints.retention import prune as delete
    from ...experiments.run_files import RunFiles
    from ...experiments.settings import template_of
    console = _console()
    place = Path(folder)
    run = RunFiles(place.parent if place.name == INSIDE else place)
    plan = plan_prune(folder, keep=keep, template=template_of(run))
    for reason in plan.skipped:
        _say(console, f'not usable: {reason}')
    rows = [(verb, str(item.path), readable_size(item.size), item.reason)
            for verb, items in (('keep', plan.keep), ('delete', plan.delete)) for item in items]
    if rows:
        _print_table(console, ('', 'file', 'size', 'why'), rows)
    if not plan.delete:
        _say(console, 'nothing to delete')
        return 0
    what = f'{len(plan.delete)} files, {readable_size(plan.bytes_freed)}'
    if not yes and not _agreed(f'delete {what}? [y/N] '):
        _say(console, f'nothing was deleted; --yes deletes {what}')
        return 0
    delete(plan)
    _say(console, f'deleted {what}')
    return 0


def _side(path: str) -> Mapping[str, Any]:
    """A config as it is, or a checkpoint's fingerprint with its tensors under our names."""
    if Path(path).suffix in _CONFIGS:
        return _read_config(path)
    from ...checkpoints.conversion import native_fingerprint
    from ...checkpoints.storage import read_checkpoint
    return native_fingerprint(read_checkpoint(path, mmap=True), source=path)


def _without_additions(changes: Sequence[Change], first: str, second: str) -> List[Change]:
    """Between a config file and a checkpoint: without what a training itself adds to its config.

    That is what no longer differs once the file is prepared as `tools/train.py` does it, and where
    the run lies and started from, of which a file says nothing.
    """
    sides = [_prepared(path) if Path(path).suffix in _CONFIGS else None for path in (first, second)]
    if (sides[0] is None) == (sides[1] is None):
        return list(changes)
    old, new = (_side(path) if side is None else side
                for path, side in zip((first, second), sides, strict=True))
    still = {change.key for change in explain_change(old, new)}
    said = [_value_in(side, key) for side in sides if side is not None for key in _OF_A_START]
    unsaid = {key for key, value in zip(_OF_A_START, said, strict=True) if not value}
    return [change for change in changes if change.key in still and change.key not in unsaid
            and not change.key.startswith(_RECORD)]


def _prepared(path: str) -> Mapping[str, Any]:
    from ..configuration import config as preparation
    config = preparation.load_config(path, import_modules=False)
    preparation.use_checkpoint_hook(config)
    preparation.use_exact_resume(config)
    preparation.use_monitoring(config)
    return config.to_dict()


def _value_in(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for name in key.split('.'):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _read_config(path: str, overrides: Sequence[str] = ()) -> Mapping[str, Any]:
    from ..configuration.config import load_config
    return load_config(path, overrides, import_modules=False).to_dict()


def _build_model(path: str, overrides: Sequence[str]) -> Tuple[Mapping[str, Any], Any]:
    """The config and its model, as a training builds it."""
    from ... import register
    register()
    from ..configuration.config import load_config
    from ..configuration.preflight import check_modalities_of_model
    config = load_config(path, overrides)
    if not isinstance(config.get('model'), Mapping):
        raise CheckpointError(f'config {path} has no model=dict(...), so nothing can be checked '
                              'against it')
    check_modalities_of_model(config['model'])
    from mmdet3d.registry import MODELS
    from mmengine.registry import init_default_scope
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    return config, MODELS.build(config.model)


def _require_free(out: str, *, force: bool) -> None:
    """Refuse to replace a file that is there.

    Raises:
        CheckpointError: It exists, and that is not forced, or it is a folder.
    """
    if Path(out).expanduser().is_dir():
        raise CheckpointError(f'{out} is a folder; name a file in it')
    if Path(out).expanduser().exists() and not force:
        raise CheckpointError(f'{out} exists; give another name, or --force to replace it')


def _write(checkpoint: Dict[str, Any], out: str, notes: Sequence[str]) -> None:
    from ...checkpoints.storage import write_checkpoint
    write_checkpoint(checkpoint, out)
    console = _console()
    for note in notes:
        _say(console, note)
    _say(console, f'written: {out} ({readable_size(Path(out).expanduser().stat().st_size)}, '
         f'{len(checkpoint["state_dict"])} tensors)')


def _change_row(change: Change) -> Tuple[str, ...]:
    return change.key, *change.shown(), change.consequence


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() == 'y'
    except EOFError:
        return False


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def _say(console: Console, line: str) -> None:
    console.print(Text(line))


def _print_table(console: Console, columns: Sequence[str], rows: List[Tuple[str, ...]], *,
                 title: str = '') -> None:
    """A table with the first column's names on the left and numbers on the right."""
    table = Table(title=title or None, title_justify='left', box=None, pad_edge=False)
    for index, name in enumerate(columns):
        cells = [row[index] for row in rows]
        numbers = index and all(cell[:1].isdigit() or cell in ('.', 'nan', 'inf')
                                for cell in cells)
        table.add_column(name, justify='right' if numbers else 'left', overflow='fold')
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table, soft_wrap=False)


def _count(number: int) -> str:
    return f'{number:,}' if number else '.'
