"""The average of several checkpoints of one model."""
from collections import OrderedDict
from typing import Dict, Sequence

import torch

from ..errors import CheckpointError
from .finite import count_not_finite
from .matching import collapse, module_of
from .state_dict import StateDict


def average(states: Sequence[StateDict], *, sources: Sequence[str]) -> StateDict:
    """The mean of each tensor, norms' running statistics too; integers are the last one's.

    Sums are taken in float64, one tensor at a time; a result has its tensors' own type.

    Args:
        states: At least two, of the same names and shapes.
        sources: The files' names, for errors.

    Raises:
        CheckpointError: Their names or shapes differ, or one holds NaN or Inf.
    """
    if len(states) < 2:
        raise CheckpointError('an average needs at least two checkpoints')
    for state, source in zip(states[1:], sources[1:], strict=True):
        _require_alike(states[0], state, sources[0], source)
    for state, source in zip(states, sources, strict=True):
        require_finite(state, source=source)
    averaged: StateDict = OrderedDict()
    for name, value in states[-1].items():
        if value.is_floating_point() or value.is_complex():
            wide = torch.complex128 if value.is_complex() else torch.float64
            total = torch.zeros(value.shape, dtype=wide)
            for state in states:
                total += state[name].to(wide)
            averaged[name] = (total / len(states)).to(value.dtype)
        else:
            averaged[name] = value.clone()
    return averaged


def require_finite(state: StateDict, *, source: str) -> None:
    """Refuse weights with NaN or Inf.

    Raises:
        CheckpointError: Names the modules that hold such values.
    """
    broken: Dict[str, int] = OrderedDict()
    for name, value in state.items():
        count = count_not_finite(value)
        if count:
            broken[module_of(name)] = broken.get(module_of(name), 0) + count
    if broken:
        named = ', '.join(f'{count:,} in {module}' for module, count in list(broken.items())[:6])
        raise CheckpointError(f'{source} holds values that are NaN or Inf ({named}): the training '
                              'that wrote it had diverged; use an earlier checkpoint')


def _require_alike(first: StateDict, other: StateDict, source: str, other_source: str) -> None:
    gone = collapse([name for name in first if name not in other], present=list(other))
    new = collapse([name for name in other if name not in first], present=list(first))
    phrases = [f'only {source} has {name}' for name in gone]
    phrases += [f'only {other_source} has {name}' for name in new]
    phrases += [f'{name} is {tuple(first[name].shape)} and {tuple(other[name].shape)}'
                for name in first if name in other and first[name].shape != other[name].shape]
    if phrases:
        more = f'; and {len(phrases) - 4} more' if len(phrases) > 4 else ''
        raise CheckpointError(f'{source} and {other_source} cannot be averaged: '
                              f'{"; ".join(phrases[:4])}{more}; give checkpoints of one model')
