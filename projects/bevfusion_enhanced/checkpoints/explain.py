"""What differs between two trainings, and whether one can go on with the weights of the other.

Three kinds of change: of structure (tensors differ), of meaning (the tensors are the same, but the
geometry, the classes or the computation around them is not), and of the training alone, which
weights and optimizer outlive. Configs alone are enough to tell; where both sides list their tensors
(fingerprints), those decide what is structure.
"""
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from ..errors import CheckpointError
from .change_rules import (
    KINDS,
    MEANING,
    STRUCTURE,
    TRAINING,
    UNKNOWN_OF_MODEL,
    kind_of,
    rule_for,
)
from .config_difference import ABSENT, Difference, differences
from .config_text import parse_config_text
from .geometry import config_keys, geometry_of, lookup, plain

CLASS_LISTS = ('classes', 'map_classes')
_VARIABLES = {'classes': 'class_names', 'map_classes': 'map_classes'}  # where metainfo is silent
_SHOWN = 72
_NAMED = 6


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Attributes:
        kind: 'structure', 'meaning' or 'training'.
        key: The config key, or the name of what differs where no config key says it.
        old: Its value before; `ABSENT` where it was not set.
        new: Its value now.
        consequence: What that means for the weights, in words.
    """

    kind: str
    key: str
    old: Any
    new: Any
    consequence: str

    def __str__(self) -> str:
        """One line: the key, both values, and the consequence."""
        old, new = self.shown()
        return f'{self.key}: {old} -> {new} ({self.consequence})'

    def shown(self) -> Tuple[str, str]:
        """Both values as text, cut where they are long."""
        return _shown(self.old), _shown(self.new)


def explain_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> Tuple[Change, ...]:
    """What differs between two configs or fingerprints, in any mix; structure first.

    Args:
        old: A resolved config (of MMEngine, or a plain dictionary), or a checkpoint's fingerprint
            (`fingerprint_of`).
        new: The same of what is asked for now.

    Returns:
        Nothing where nothing differs that a runner would read.

    Raises:
        CheckpointError: The two have nothing in common that could be compared.
    """
    before, after = _side(old), _side(new)
    tensors = _TensorChange.between(before.tensors, after.tensors)
    changes = [*_of_tensors(tensors), *_of_classes(before, after, tensors)]
    if before.config is not None and after.config is not None:
        changes += _of_configs(before.config, after.config, tensors, known=changes)
    elif before.geometry and after.geometry:
        changes += _of_geometry(before.geometry, after.geometry, tensors)
    elif tensors is None and not set(before.classes) & set(after.classes):
        raise CheckpointError('one of the two says nothing of how it was trained, so there is '
                              'nothing to compare: give configs, or checkpoints that carry one')
    changes += _of_info_files(before.info_files, after.info_files)
    return tuple(sorted(changes, key=lambda change: KINDS.index(change.kind)))


def safe_to_resume(changes: Iterable[Change]) -> bool:
    """Whether weights and optimizer keep their meaning: nothing but the training changed."""
    return all(change.kind == TRAINING for change in changes)


def class_lists_in(config: Mapping[str, Any]) -> Dict[str, List[str]]:
    """The class lists that a config trains on, under `classes` and `map_classes`.

    Args:
        config: The resolved config, of MMEngine or a plain dictionary.
    """
    return {name: names for name, (_, names) in _class_lists(config).items()}


class _Side(NamedTuple):
    """What is known of one of the two."""

    config: Optional[Mapping[str, Any]]
    tensors: Optional[Mapping[str, Any]]
    geometry: Mapping[str, Any]
    classes: Mapping[str, Tuple[str, List[str]]]
    info_files: Mapping[str, str]


def _side(given: Mapping[str, Any]) -> _Side:
    given = given.to_dict() if hasattr(given, 'to_dict') else given
    if not _is_fingerprint(given):
        return _Side(config=given, tensors=None, geometry=geometry_of(given),
                     classes=_class_lists(given), info_files={})
    text = given.get('config')
    try:
        config = parse_config_text(text) if text else None
    except CheckpointError:  # its geometry and classes are kept beside it
        config = None
    lists = {name: (name, list(given[name])) for name in CLASS_LISTS if given.get(name)}
    in_config = _class_lists(config or {})
    return _Side(
        config=config, tensors=given.get('tensors'),
        geometry=given.get('geometry') or geometry_of(config or {}),
        classes={name: (in_config.get(name, lists[name])[0], lists[name][1]) for name in lists}
        or in_config, info_files=given.get('info_files') or {})


def _is_fingerprint(given: Mapping[str, Any]) -> bool:
    return 'architecture' in given and 'model' not in given


def _class_lists(config: Mapping[str, Any]) -> Dict[str, Tuple[str, List[str]]]:
    """(key in the config, names) of each class list that the training data has."""
    where, dataset = 'train_dataloader.dataset', lookup(config, 'train_dataloader.dataset')
    while isinstance(lookup(dataset, 'dataset'), Mapping):
        where, dataset = f'{where}.dataset', dataset['dataset']
    found: Dict[str, Tuple[str, List[str]]] = {}
    for name, variable in _VARIABLES.items():
        for key in (f'{where}.metainfo.{name}', f'metainfo.{name}', variable):
            value = lookup(config, key)
            if isinstance(value, (list, tuple)):
                found[name] = key, [str(item) for item in value]
                break
    return found


class _TensorChange(NamedTuple):
    """Names of the tensors that differ between two fingerprints, and of all of them."""

    new: Tuple[str, ...]
    gone: Tuple[str, ...]
    reshaped: Tuple[Tuple[str, Any, Any], ...]
    counts: Tuple[int, int]
    names: Tuple[str, ...]

    @classmethod
    def between(cls, old: Optional[Mapping[str, Any]], new: Optional[Mapping[str, Any]]
                ) -> 'Optional[_TensorChange]':
        """The difference of two lists of tensors; None where one is not known."""
        if old is None or new is None:
            return None
        reshaped = tuple((name, tuple(old[name]), tuple(new[name])) for name in new
                         if name in old and list(old[name]) != list(new[name]))
        return cls(new=tuple(name for name in new if name not in old),
                   gone=tuple(name for name in old if name not in new), reshaped=reshaped,
                   counts=(len(old), len(new)), names=(*old, *(n for n in new if n not in old)))

    @property
    def differing(self) -> Tuple[str, ...]:
        """All names that are not the same on both sides."""
        return (*self.new, *self.gone, *(name for name, _, _ in self.reshaped))

    def reaches(self, key: str) -> bool:
        """Whether a tensor differs in the part of the model that a config key describes."""
        parts = key.split('.')[1:]  # without `model`
        for length in range(len(parts), 0, -1):
            prefix = '.'.join(parts[:length]) + '.'
            if any(name.startswith(prefix) for name in self.names):
                return any(name.startswith(prefix) for name in self.differing)
        return bool(self.differing)


def _of_tensors(tensors: Optional[_TensorChange]) -> List[Change]:
    """One change that names the tensors."""
    if tensors is None or not tensors.differing:
        return []
    phrases = name_tensors(tensors.new, tensors.gone, tensors.reshaped, names=tensors.names)
    return [Change(STRUCTURE, 'tensors', tensors.counts[0], tensors.counts[1],
                   '; '.join(phrases))]


def name_tensors(new: Iterable[str], gone: Iterable[str],
                 reshaped: Iterable[Tuple[str, Any, Any]], *, names: Iterable[str]) -> List[str]:
    """A phrase for each module or tensor that differs, six at most.

    Args:
        new: Names that only the model has.
        gone: Names that only the checkpoint has.
        reshaped: (name, the checkpoint's shape, the model's) of those that both have.
        names: All names, of both sides.
    """
    from .matching import collapse  # imports torch, which a comparison of configs does not need
    new, gone, names = list(new), list(gone), list(names)
    theirs, ours = set(names) - set(new), set(names) - set(gone)
    phrases = [f'new {name}' for name in collapse(new, present=theirs)]
    phrases += [f'gone {name}' for name in collapse(gone, present=ours)]
    phrases += [f'{name} {before} -> {after}' for name, before, after in reshaped]
    if len(phrases) > _NAMED:
        phrases = phrases[:_NAMED] + [f'and {len(phrases) - _NAMED} more']
    return phrases


def _of_classes(before: _Side, after: _Side, tensors: Optional[_TensorChange]) -> List[Change]:
    """Class lists that both sides have, and in which they differ."""
    changes = []
    for name, (_, old) in before.classes.items():
        key, new = after.classes.get(name, ('', old))
        if old != new:
            structural = len(old) != len(new) and (tensors is None or tensors.differing)
            changes.append(Change(STRUCTURE if structural else MEANING, key, old, new,
                                  _other_classes(old, new)))
    return changes


def _other_classes(old: List[str], new: List[str]) -> str:
    added = [name for name in new if name not in old]
    dropped = [name for name in old if name not in new]
    if added or dropped:
        parts = [f'{word} {", ".join(names)}' for word, names in
                 (('new:', added), ('gone:', dropped)) if names]
        return f'other classes, {"; ".join(parts)}: only what was learnt of the others is of use'
    index = next((i for i, pair in enumerate(zip(old, new)) if pair[0] != pair[1]), len(new) - 1)
    return f'the same classes in another order: label {index} was {old[index]}, is {new[index]}'


def _of_configs(old: Mapping[str, Any], new: Mapping[str, Any],
                tensors: Optional[_TensorChange], *, known: List[Change]) -> Iterator[Change]:
    """Differences of two configs under the rules, without repetitions of those already known."""
    lists = [(plain(change.old), plain(change.new)) for change in known]
    evaluated = set()
    for difference in differences(old, new):
        rule = rule_for(difference.key)
        if rule is None or (difference.old, difference.new) in lists:
            continue
        if difference.key.startswith(('val_', 'test_')):  # the two are mostly one and the same
            shared = f'{difference.key.partition("_")[2]} {difference.old!r} {difference.new!r}'
            if shared in evaluated:
                continue
            evaluated.add(shared)
        kind = _decide(kind_of(rule, difference.old, difference.new), difference.key, tensors)
        yield Change(kind, difference.key, difference.old, difference.new,
                     _consequence(rule.consequence, difference, kind))


def _decide(kind: str, key: str, tensors: Optional[_TensorChange]) -> str:
    """The kind by the tensors, where they are known: without a difference there it is meaning."""
    if kind == STRUCTURE and tensors is not None and not tensors.reaches(key):
        return MEANING
    return kind


def _consequence(text: str, difference: Difference, kind: str) -> str:
    if text != UNKNOWN_OF_MODEL.consequence:
        return f'{text}, and tensors change' if kind == STRUCTURE else text
    if kind == MEANING:
        return 'the same tensors, but what is computed with them may differ'
    if isinstance(difference.new, dict):
        return 'what is new starts fresh, the rest is reused'
    if isinstance(difference.old, dict):
        return 'its weights are no longer used'
    if difference.key.endswith('.type'):
        return 'another module; what does not fit starts fresh'
    return text


def _of_geometry(old: Mapping[str, Any], new: Mapping[str, Any],
                 tensors: Optional[_TensorChange]) -> Iterator[Change]:
    """The same for what is known of geometry where a config is missing."""
    for name in old:
        rule = rule_for(config_keys[name]) if name in config_keys and name != 'bev_grid' else None
        if rule is not None and name in new and plain(old[name]) != plain(new[name]):
            kind = _decide(kind_of(rule, old[name], new[name]), config_keys[name], tensors)
            difference = Difference(config_keys[name], old[name], new[name])
            yield Change(kind, *difference, _consequence(rule.consequence, difference, kind))


def _of_info_files(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for path in old:
        if path in new and old[path] != new[path]:
            yield Change(TRAINING, path, f'sha256 {old[path][:12]}', f'sha256 {new[path][:12]}',
                         'the info file was written anew: samples may be others, or in another '
                         'order')


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        kind = f'type={value["type"]!r}, ' if 'type' in value else ''
        names = ', '.join(name for name in value if name != 'type')
        text = f'dict({kind}{names})'
    else:
        text = str(value) if value is ABSENT else repr(value)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN - 4]} ...'
