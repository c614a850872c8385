"""Heads whose classes differ from a checkpoint's: what belongs to a class is matched by its name.

A head holds its classes in two ways: along one axis of a tensor, or as one module for each class.
Both tables below are about the state dict's native names. K classes, in the order of the labels.
"""
import re
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .state_dict import StateDict

OBJECTS, MAPS = 'classes', 'map_classes'

# (name below the head, list of classes, axis of the classes)
_BY_AXIS = tuple((re.compile(pattern), classes, axis) for pattern, classes, axis in (
    (r'heatmap_head\.1\.(weight|bias)', OBJECTS, 0),
    (r'class_encoding\.weight', OBJECTS, 1),
    (r'prediction_heads\.\d+\.heatmap\.\d+\.(weight|bias)', OBJECTS, 0),
    (r'classifier\.6\.(weight|bias)', MAPS, 0),
    (r'aux_classifier\.(weight|bias)', MAPS, 0),
    (r'classifiers\.0\.3\.(weight|bias)', MAPS, 0),  # where one predicts all classes
))
# (module list below the head, list of classes)
_BY_MODULE = (('classifiers', MAPS),)
_LAST_LAYER = 'classifiers.0.3.weight'


class ClassMove(NamedTuple):
    """How the classes along an axis of a tensor move.

    Attributes:
        axis: Axis of the classes.
        pairs: (index in the model, index in the checkpoint) of each class that both have.
    """

    axis: int
    pairs: Tuple[Tuple[int, int], ...]

    def apply(self, value: Tensor, initial: Tensor) -> Tensor:
        """`initial`, the model's own, with the entries of the classes that `value` has, too."""
        here, there = (torch.tensor(indices, dtype=torch.long) for indices in zip(*self.pairs))
        moved = value.index_select(self.axis, there.to(value.device))
        return initial.detach().clone().index_copy_(
            self.axis, here.to(initial.device), moved.to(initial))


@dataclass(frozen=True)
class ClassMatch:
    """What became of the classes of one head.

    Attributes:
        head: The head's name, for example `heads.map`.
        source: The file that it comes from.
        class_list: `classes` or `map_classes`.
        kept: Classes that both have, in the model's order.
        fresh: Classes that only the model has.
        unused: Classes that only the checkpoint has.
        problem: Why nothing could be matched by name; empty where it was.
        renames: New names of the checkpoint's tensors of a single class.
        moves: How tensors of all classes are put together, by their name in the model.
    """

    head: str
    source: str
    class_list: str
    kept: Tuple[str, ...] = ()
    fresh: Tuple[str, ...] = ()
    unused: Tuple[str, ...] = ()
    problem: str = ''
    renames: Mapping[str, str] = field(default_factory=dict)
    moves: Mapping[str, ClassMove] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for the log."""
        if self.problem:
            return f'{self.head}: {self.problem}'
        order = '' if self.fresh or self.unused else ', in another order'
        parts = [f'{len(self.kept)} of {len(self.kept) + len(self.fresh)} classes by name{order}']
        parts += [f'fresh: {", ".join(self.fresh)}'] if self.fresh else []
        parts += [f'not used: {", ".join(self.unused)}'] if self.unused else []
        return f'{self.head}: {"; ".join(parts)}'


@dataclass(frozen=True)
class _Layout:
    """Where a state dict keeps the classes of one head.

    Attributes:
        axes: Axis of the classes, by name of the tensor.
        modules: (index of the class, rest of the name, name up to the index), by name.
        counts: Every number of classes that these imply; one, where all is well.
    """

    axes: Dict[str, int]
    modules: Dict[str, Tuple[int, str, str]]
    counts: Collection[int]

    @property
    def count(self) -> Optional[int]:
        return next(iter(self.counts)) if len(self.counts) == 1 else None


def heads_with_classes(state: StateDict) -> List[Tuple[str, str]]:
    """(head, class list) of each head in which a class has tensors or entries of its own."""
    heads = dict.fromkeys('.'.join(key.split('.')[:2]) for key in state
                          if key.startswith('heads.'))
    return [(head, classes) for head in heads for classes in (OBJECTS, MAPS)
            if _layout(state, head, classes).counts]


def match_classes(model: StateDict, weights: StateDict, *, head: str, class_list: str,
                  new: Optional[Sequence[str]], old: Optional[Sequence[str]],
                  source: str = 'checkpoint', certain: bool = False) -> Optional[ClassMatch]:
    """Compare the classes of one head with a checkpoint's. Nothing is changed.

    Args:
        model: The model's state dict.
        weights: The checkpoint's, in native names.
        head: For example `heads.map`.
        class_list: Which list the head's classes are, as `heads_with_classes` says.
        new: The model's classes; None where they are not known.
        old: The checkpoint's.
        source: The checkpoint's name, for the report.
        certain: A person said what `old` is, so that a wrong number is an error.

    Returns:
        None where there is nothing to do: the same classes in the same order, or no such head.

    Raises:
        CheckpointError: `certain`, but `old` cannot be the head's classes.
    """
    ours, theirs = _layout(model, head, class_list), _layout(weights, head, class_list)
    if bool(ours.modules) != bool(theirs.modules):  # one of a single class goes with either form
        ours, theirs = (_layout(state, head, class_list, one_is_joint=True)
                        for state in (model, weights))
    if ours.count is None or theirs.count is None:
        return None
    if certain and old is not None and not _fits(old, theirs.count):
        raise CheckpointError(
            f'--source-classes gives {len(old)} {class_list} ({", ".join(old)}), but {head} of '
            f'{source} has {theirs.count}; name each of them once, in the order of its labels')
    if old is not None and new is not None and _fits(old, theirs.count) and _fits(new, ours.count):
        if list(old) == list(new):
            return None
        return _by_name(model, weights, ours, theirs, ClassMatch(
            head, source, class_list, kept=tuple(name for name in new if name in old),
            fresh=tuple(name for name in new if name not in old),
            unused=tuple(name for name in old if name not in new)), list(new), list(old))
    if new is None and ours.count == theirs.count:
        return None
    return _unknown(ours, theirs, ClassMatch(head, source, class_list), old)


def rearrange(values: StateDict, matches: Sequence[ClassMatch], *,
              initial: Mapping[str, Tensor]) -> StateDict:
    """`values` with each class where the model has it; tensors of other names are not touched.

    Args:
        values: A checkpoint's weights, or anything else that has their names and shapes, such as
            an optimizer's moments.
        matches: From `match_classes`.
        initial: By the model's names, what the entries of new classes hold.
    """
    renames = {old: new for match in matches for old, new in match.renames.items()}
    result = OrderedDict((renames.get(key, key), value) for key, value in values.items())
    for match in matches:
        for key, move in match.moves.items():
            if key in result:
                result[key] = move.apply(result[key], initial[key])
    return result


def partly_fresh(model: StateDict, matches: Sequence[ClassMatch]) -> Dict[str, int]:
    """How many values of each moved tensor stay the model's own, where there are any."""
    counts = {}
    for match in matches:
        for key, move in match.moves.items():
            classes = model[key].shape[move.axis]
            counts[key] = model[key].numel() // classes * (classes - len(move.pairs))
    return {key: count for key, count in counts.items() if count}


def _by_name(model: StateDict, weights: StateDict, ours: _Layout, theirs: _Layout,
             match: ClassMatch, new: Sequence[str], old: Sequence[str]) -> ClassMatch:
    pairs = tuple((new.index(name), old.index(name)) for name in match.kept)
    renames, moves = {}, {}
    if ours.modules:  # otherwise one module for all classes, which is no class's own
        for key, (index, rest, prefix) in theirs.modules.items():
            name = old[index]
            place = str(new.index(name)) if name in new else f'({name})'
            renames[key] = f'{prefix}.{place}.{rest}'
    for key, axis in ours.axes.items():
        if key not in theirs.axes:
            continue
        if not pairs:  # of equal shape, perhaps, but of other classes
            module, _, last = key.rpartition('.')
            renames[key] = f'{module}.(other classes).{last}'
        elif _without(model[key].shape, axis) == _without(weights[key].shape, axis):
            moves[key] = ClassMove(axis, pairs)
    return replace(match, renames=renames, moves=moves)


def _unknown(ours: _Layout, theirs: _Layout, match: ClassMatch,
             old: Optional[Sequence[str]]) -> ClassMatch:
    """The classes cannot be compared by name: by position where the number agrees, else fresh."""
    says = f'{match.source} does not name its {match.class_list}'
    if old is not None and not _fits(old, theirs.count or 0):
        says = f'{match.source} names {len(old)} {match.class_list} for {theirs.count} outputs'
    elif old is not None:
        says = f'the {match.class_list} of this run are not known'
    hint = '--source-classes names them'
    if ours.count == theirs.count:
        return replace(match, problem=f'{says}: taken by position ({hint})')
    renames = {key: f'{prefix}.({index}).{rest}'
               for key, (index, rest, prefix) in theirs.modules.items() if ours.modules}
    problem = (f'{says}, and there are {theirs.count} in place of {ours.count}: left fresh '
               f'({hint})')
    return replace(match, problem=problem, renames=renames)


def _layout(state: StateDict, head: str, class_list: str, *,
            one_is_joint: bool = False) -> _Layout:
    axes: Dict[str, int] = {}
    modules: Dict[str, Tuple[int, str, str]] = {}
    prefix = f'{head}.'
    for key, value in state.items():
        if not key.startswith(prefix) or not torch.is_tensor(value):
            continue
        below = key.removeprefix(prefix)
        for pattern, classes, axis in _BY_AXIS:
            if (classes == class_list and value.dim() > axis
                    and pattern.fullmatch(below)):
                axes[key] = axis
        for name, classes in _BY_MODULE:
            found = re.fullmatch(rf'{name}\.(\d+)\.(.+)', below)
            if found and classes == class_list:
                modules[key] = int(found[1]), found[2], f'{head}.{name}'
    indices = {index for index, _, _ in modules.values()}
    last = state.get(f'{head}.{_LAST_LAYER}')
    if indices == {0} and last is not None and last.dim() and (one_is_joint or len(last) > 1):
        modules, indices = {}, set()  # one for all classes: they lie along an axis
    else:
        axes = {key: axis for key, axis in axes.items() if key not in modules}
    counts = {state[key].shape[axis] for key, axis in axes.items()}
    if indices:
        counts.add(max(indices) + 1)
    return _Layout(axes, modules, counts)


def _fits(names: Sequence[str], count: int) -> bool:
    return len(names) == count == len(set(names))


def _without(shape: Sequence[int], axis: int) -> Tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1:])
