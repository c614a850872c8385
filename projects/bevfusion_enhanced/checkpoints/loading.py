"""From checkpoint files to a state dict that is complete for a model, and a report of it.

Nothing is copied but what has to be put together from two sides: the weights of the plan are views
of the files, which are mapped into memory, and of the model's own tensors.
"""
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import (
    Any,
    Collection,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch

from ..errors import CheckpointError, ConfigError
from .class_matching import (
    ClassMatch,
    heads_with_classes,
    match_classes,
    partly_fresh,
    rearrange,
)
from .explain import Change, explain_change
from .fingerprint import CLASS_LISTS, class_lists_of, trained_geometry
from .finite import refuse_not_finite
from .matching import Combined, LoadReport, combine, fill, match, module_of
from .naming import Translation, translate
from .state_dict import StateDict
from .storage import read_checkpoint
from .suggestions import suggest
from .task_decoders import spread_decoder

_ASSIGNED = re.compile(r'([A-Za-z_]\w*(?:\.\w+)*)=(.*)', re.DOTALL)
_NO_LISTS: Mapping[str, Sequence[str]] = MappingProxyType({})


@dataclass(frozen=True)
class LoadSource:
    """A checkpoint to take weights from.

    Attributes:
        path: The file.
        module: The only part of the model that it is for; None for whatever it holds.
    """

    path: str
    module: Optional[str] = None


Source = Union[LoadSource, Tuple[LoadSource, Mapping[str, Any]]]


class LoadPlan(NamedTuple):
    """What a load would do.

    Attributes:
        weights: A state dict with exactly the model's names and its `_metadata`; views where
            possible, so it is to be loaded and dropped, not edited.
        report: Where each tensor comes from.
    """

    weights: StateDict
    report: LoadReport


class _File(NamedTuple):
    """A checkpoint under our names, what it says of its classes, and what means other things."""

    translation: Translation
    class_lists: Mapping[str, Sequence[str]]
    meaning: Tuple[Change, ...]


def parse_sources(specs: Sequence[str]) -> Tuple[LoadSource, ...]:
    """Read `A.pth` and `encoders.camera=A.pth`, in order of preference.

    A name with `=` in it is a file's where it exists, or where a part of a path precedes the `=`.

    Raises:
        ConfigError: No file is named, or a module is given twice.
    """
    sources: List[LoadSource] = []
    for spec in specs:
        found = _ASSIGNED.fullmatch(spec)
        module, path = (found[1], found[2]) if found and not Path(spec).exists() else (None, spec)
        if not path.strip():
            raise ConfigError(f'--load-from {spec!r} names no file; give FILE or MODULE=FILE')
        for other in sources:
            if module is not None and other.module == module and other.path != path:
                raise ConfigError(f'--load-from gives {module} from {other.path} and from {path}; '
                                  'give it once')
        if LoadSource(path, module) not in sources:
            sources.append(LoadSource(path, module))
    return tuple(sources)


def plan_load(model: StateDict, sources: Sequence[Source], *, parameters: Collection[str],
              geometry: Mapping[str, Any], class_lists: Mapping[str, Sequence[str]],
              source_classes: Mapping[str, Sequence[str]] = _NO_LISTS) -> LoadPlan:
    """Decide for each tensor of a model which file it comes from. Neither side is changed.

    Each module comes whole from the source that is assigned to it, otherwise from the first that
    holds it under our names. Heads whose classes differ are put together by the classes' names.

    Args:
        model: The model's state dict.
        sources: In order of preference; with the checkpoint, where it has been read already.
        parameters: Names of the model's parameters.
        geometry: Of the model's config, as `geometry_of` returns it.
        class_lists: The model's classes, under `classes` and `map_classes`.
        source_classes: The checkpoints' classes, in place of what they say themselves.

    Raises:
        CheckpointError: A file cannot be read, holds no weights or none of the module that it is
            assigned to, or has NaN or Inf where its weights would be used.
        ConfigError: A source is assigned to a module that the model lacks.
    """
    _check_lists(source_classes)
    pairs = [item if isinstance(item, tuple) else (item, None) for item in sources]
    _check_modules([source for source, _ in pairs], model)
    files = _open(pairs, model, geometry)
    parts = [(source.path, _part(files[source.path], source))
             for source in _by_preference([source for source, _ in pairs])]
    combined = combine(parts)
    classes = _match_heads(model, combined, files, new=class_lists, told=source_classes)
    weights = rearrange(combined.weights, classes, initial=model)
    report = match(model, weights, parameters=parameters, sources=list(files),
                   module_sources=combined.module_sources, shadowed=combined.shadowed,
                   partly_fresh=partly_fresh(model, classes))
    refuse_not_finite(weights, report)
    return LoadPlan(fill(model, weights, report), replace(
        report, origins={path: _origin(file) for path, file in files.items()},
        notes=_notes(files) + _better_elsewhere(report, model, files),
        meaning=_meaning(report, files, model),
        classes=classes,
        suggestions=suggest([(record.key, record.shape) for record in report.missing],
                            [(record.key, record.shape) for record in report.unexpected])))


def _open(pairs: Sequence[Tuple[LoadSource, Optional[Mapping[str, Any]]]], model: StateDict,
          geometry: Mapping[str, Any]) -> Dict[str, _File]:
    """Each file once, under our names, in order."""
    files: Dict[str, _File] = OrderedDict()
    for source, checkpoint in pairs:
        if source.path in files:
            continue
        if checkpoint is None:
            checkpoint = read_checkpoint(source.path, mmap=True, verify=True)
        translation = translate(checkpoint, model=model, geometry=geometry, source=source.path)
        weights, note = spread_decoder(translation.weights, model)
        if note is not None:
            translation = replace(translation, weights=weights, notes=(*translation.notes, note))
        trained_for = trained_geometry(checkpoint, source=source.path)
        files[source.path] = _File(
            translation, class_lists_of(checkpoint.get('meta')),
            _changes_of_meaning(translation, trained_for, model, geometry))
    return files


def _changes_of_meaning(translation: Translation, trained_for: Mapping[str, Any],
                        model: StateDict, geometry: Mapping[str, Any]) -> Tuple[Change, ...]:
    """What differs in geometry alone, by the tensors that tell it and by the metadata."""
    changes = {change.key: change for change in translation.meaning}
    if trained_for and geometry:
        old, new = ({'architecture': '', 'geometry': known, 'tensors': _shapes(state)}
                    for known, state in ((trained_for, translation.weights), (geometry, model)))
        for change in explain_change(old, new):
            if change.kind == 'meaning':
                changes.setdefault(change.key, change)
    return tuple(changes.values())


def _shapes(state: StateDict) -> Dict[str, List[int]]:
    return {key: list(value.shape) for key, value in state.items() if torch.is_tensor(value)}


def _meaning(report: LoadReport, files: Mapping[str, _File],
             model: StateDict) -> Tuple[Change, ...]:
    """The changes that concern a module which its file gives."""
    modules = {module_of(key) for key in model}
    used = {module_of(record.key) for record in report.reused}
    found = []
    for path, file in files.items():
        given = [module for module in used if report.module_sources.get(module) == path]
        for change in file.meaning:
            parent = '.'.join(change.key.removeprefix('model.').split('.')[:2])
            if parent.startswith('data_preprocessor'):
                parent = 'encoders.camera'
            concerned = given if any(_is_in(module, parent) for module in modules) else None
            if concerned is None or any(_is_in(module, parent) for module in concerned):
                found.append(change)
    return tuple(found)


def _by_preference(sources: Sequence[LoadSource]) -> List[LoadSource]:
    """Assigned ones first, the narrowest of these before the others; else as given."""
    return sorted(sources, key=lambda source: -len((source.module or '').split('.'))
                  if source.module else 0)


def _part(file: _File, source: LoadSource) -> StateDict:
    """The weights of the module that the file is for."""
    weights = file.translation.weights
    if source.module is None:
        return weights
    part = OrderedDict((key, value) for key, value in weights.items()
                       if _is_in(module_of(key), source.module))
    if not part:
        held = ', '.join(sorted({module_of(key) for key in weights})) or 'nothing'
        raise CheckpointError(f'{source.path} holds nothing of {source.module}; it holds {held}')
    return part


def _check_modules(sources: Sequence[LoadSource], model: StateDict) -> None:
    modules = sorted({module_of(key) for key in model})
    for source in sources:
        if source.module and not any(_is_in(module, source.module) for module in modules):
            raise ConfigError(f'--load-from {source.module}={source.path}: the model has no module '
                              f'{source.module}; it has {", ".join(modules)}')


def _check_lists(source_classes: Mapping[str, Sequence[str]]) -> None:
    for name in source_classes:
        if name not in CLASS_LISTS:
            raise ConfigError(f'--source-classes {name}: no such list of classes; choose from '
                              f'{", ".join(CLASS_LISTS)}')


def _is_in(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f'{parent}.')


def _match_heads(model: StateDict, combined: Combined, files: Mapping[str, _File], *,
                 new: Mapping[str, Sequence[str]],
                 told: Mapping[str, Sequence[str]]) -> Tuple[ClassMatch, ...]:
    matches = []
    for head, class_list in heads_with_classes(model):
        path = combined.module_sources.get(head)
        if path is not None:
            old = told.get(class_list, files[path].class_lists.get(class_list))
            matches.append(match_classes(
                model, combined.weights, head=head, class_list=class_list,
                new=new.get(class_list), old=old, source=path, certain=class_list in told))
    return tuple(found for found in matches if found is not None)


def _origin(file: _File) -> str:
    origin = file.translation.origin
    return origin.note or origin.name


def _notes(files: Mapping[str, _File]) -> Tuple[str, ...]:
    several = len(files) > 1
    return tuple(f'{path}: {note}' if several else note
                 for path, file in files.items() for note in file.translation.notes)


def _better_elsewhere(report: LoadReport, model: StateDict,
                      files: Mapping[str, _File]) -> Tuple[str, ...]:
    """Modules that do not fit as taken, while a later source would fit whole."""
    lacking = {summary.module for summary in report.fresh_modules()}
    notes = []
    for module, path in report.shadowed:
        weights = files[path].translation.weights
        if module in lacking and all(
                key in weights and weights[key].shape == value.shape
                for key, value in model.items() if module_of(key) == module):
            notes.append(f'{module}: {report.module_sources[module]} fits in part, {path} whole; '
                         f'--load-from {module}={path} takes it from there')
            lacking.discard(module)
    return tuple(notes)
