"""The optimizer's state by parameter name, so that no moment ends up at another parameter.

torch numbers parameters by their place in the optimizer. The places change when a model registers
its modules in another order, freezes other parts, or is given other parameter groups; the names do
not. A checkpoint keeps torch's own format under `optimizer`, which every MMEngine reads, and the
names of those places under `optimizer_names`.
"""
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from ...checkpoints.state_dict import weights_of
from ...errors import CheckpointError
from .group_options import Options, grouped_alike, largest_share, merge, options_of, overlaps

NAMES = 'optimizer_names'



@dataclass(frozen=True)
class NamedState:
    """What an optimizer knows, without places.

    Attributes:
        kind: Class of the optimizer; empty where the checkpoint does not say.
        groups: (names of the parameters, options) of each parameter group.
        state: State of each parameter that has any, by name.
        extras: What MMEngine's wrapper adds: `base_param_settings`, `loss_scaler`.
    """

    kind: str
    groups: Tuple[Tuple[Tuple[str, ...], Options], ...]
    state: Dict[str, Dict[str, Any]]
    extras: Dict[str, Any] = field(default_factory=dict)


class Placed(NamedTuple):
    """A state in the format that a wrapper loads, and what there is to say about it."""

    state: Dict[str, Any]
    notes: Tuple[str, ...]


def wrappers_of(optim_wrapper: OptimWrapper) -> Dict[str, OptimWrapper]:
    """The wrappers of an `OptimWrapperDict` by name; a single one under the empty name."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        return dict(optim_wrapper.items())
    return {'': optim_wrapper}


def names_of(wrapper: OptimWrapper, model: nn.Module) -> List[List[str]]:
    """Names of the parameters of each group, in the optimizer's order.

    A parameter that the model does not hold is called by its place.
    """
    known = {parameter: name for name, parameter in model.named_parameters()}
    return [[known.get(parameter, f'<{g}.{p}>') for p, parameter in enumerate(group['params'])]
            for g, group in enumerate(wrapper.optimizer.param_groups)]


def describe(optim_wrapper: OptimWrapper, model: nn.Module) -> Dict[str, Any]:
    """What a checkpoint keeps under `optimizer_names`: kind and names of each optimizer."""
    return {key: {'kind': type(wrapper.optimizer).__name__, 'groups': names_of(wrapper, model)}
            for key, wrapper in wrappers_of(optim_wrapper).items()}


def named_state(saved: Mapping[str, Any], record: Mapping[str, Any], *, source: str) -> NamedState:
    """A saved state with the names of its places.

    Args:
        saved: A wrapper's state dict.
        record: Its part of `describe`.
        source: The file's name, for the error.

    Raises:
        CheckpointError: The names do not fit the state.
    """
    groups, names = saved['param_groups'], record['groups']
    if [len(group['params']) for group in groups] != [len(part) for part in names]:
        raise CheckpointError(f'checkpoint {source}: the names of its optimizer state do not fit '
                              'the state, so it was edited or damaged; use --load-from to take '
                              'its weights')
    state = {name: saved['state'][place] for group, part in zip(groups, names, strict=True)
             for place, name in zip(group['params'], part, strict=True) if place in saved['state']}
    return NamedState(
        kind=str(record.get('kind', '')), state=state,
        groups=tuple((tuple(part), options_of(group))
                     for group, part in zip(groups, names, strict=True)),
        extras={key: value for key, value in saved.items()
                if key not in ('state', 'param_groups')})


def adopt(checkpoint: Dict[str, Any], optim_wrapper: OptimWrapper, model: nn.Module, *,
          source: str, keep_schedule: bool = True, keep_options: bool = True) -> Tuple[str, ...]:
    """Put `checkpoint['optimizer']` into the places of this run, by name; see `place`.

    Args:
        checkpoint: Only its entry `optimizer` is replaced.
        optim_wrapper: That of this run, built; not changed.
        model: That of this run.
        source: The file's name, for errors.
        keep_schedule: See `place`.
        keep_options: See `place`.

    Returns:
        Notes for the log.

    Raises:
        CheckpointError: See `saved_states` and `place`.
    """
    states, notes = saved_states(checkpoint, optim_wrapper, model, source=source)
    placed = {key: place(states[key], wrapper, model, source=source, keep_schedule=keep_schedule,
                         keep_options=keep_options)
              for key, wrapper in wrappers_of(optim_wrapper).items()}
    single = not isinstance(optim_wrapper, OptimWrapperDict)
    checkpoint['optimizer'] = placed[''].state if single else {
        key: result.state for key, result in placed.items()}
    return (*notes, *(note for result in placed.values() for note in result.notes))


def saved_states(checkpoint: Mapping[str, Any], optim_wrapper: OptimWrapper, model: nn.Module, *,
                 source: str) -> Tuple[Dict[str, NamedState], Tuple[str, ...]]:
    """The state of each optimizer in a checkpoint, and notes on how the names were found.

    A checkpoint without names is MMEngine's. Its state is taken to lie in the order of its
    weights, or else by place, and only where counts and shapes bear that out.

    Args:
        checkpoint: As it was read.
        optim_wrapper: That of this run.
        model: That of this run.
        source: The file's name, for errors.

    Raises:
        CheckpointError: The optimizers differ in number, or the state cannot be assigned.
    """
    wrappers, record = wrappers_of(optim_wrapper), checkpoint.get(NAMES)
    saved = checkpoint['optimizer']
    saved = {'': saved} if 'param_groups' in saved else saved
    if set(saved) != set(wrappers):
        raise CheckpointError(
            f'checkpoint {source} holds the state of {_listed(saved)}, this run has '
            f'{_listed(wrappers)}; use --load-from to take its weights')
    if record is not None:
        return {key: named_state(saved[key], record[key], source=source) for key in saved}, ()
    states, notes = {}, []
    for key, state in saved.items():
        groups, how = _names_by_order(state, weights_of(checkpoint, source=source), wrappers[key],
                                      model, source=source)
        states[key] = named_state(state, {'groups': groups}, source=source)
        notes.append(f'optimizer state: {source} does not name it; assigned {how}: counts and '
                     'shapes agree')
    return states, tuple(notes)


def place(saved: NamedState, wrapper: OptimWrapper, model: nn.Module, *, source: str,
          keep_schedule: bool = True, keep_options: bool = True) -> Placed:
    """Put a saved state in the places that this run's optimizer has.

    Where the parameters are grouped as they were, each group goes on with its rate. Where they are
    grouped otherwise, the groups of this run rule, at the point that the schedule had reached.

    Args:
        saved: From `saved_states`.
        wrapper: The wrapper that is to load it; not changed.
        model: The model whose parameters it holds.
        source: The file's name, for the error.
        keep_schedule: Go on with the checkpoint's rates; otherwise those of this run are left.
        keep_options: Go on with the checkpoint's other options, such as the weight decay.

    Raises:
        CheckpointError: The state is that of another kind of optimizer.
    """
    _require_same_kind(saved, wrapper, source=source)
    own, own_names = wrapper.state_dict(), names_of(wrapper, model)
    aliases = _aliases(model)
    places = {name: index for group, part in zip(own['param_groups'], own_names, strict=True)
              for index, name in zip(group['params'], part, strict=True)}
    state = {places[aliases.get(name, name)]: value for name, value in saved.state.items()
             if aliases.get(name, name) in places}
    saved_names = [[aliases.get(name, name) for name in part] for part, _ in saved.groups]
    notes = _state_notes(saved_names, own_names)
    same = grouped_alike(saved_names, own_names)
    if not same:
        notes.append('parameter groups differ from those of the checkpoint: those of this run are '
                     'used, at the point that its schedule had reached')
    groups = []
    for group, part in zip(own['param_groups'], own_names, strict=True):
        old = largest_share(part, saved_names, [options for _, options in saved.groups])
        merged = merge(options_of(group), old, same=same and overlaps(part, saved_names),
                       keep_schedule=keep_schedule, keep_options=keep_options, notes=notes)
        groups.append({**merged, 'params': group['params']})
    result = {**own, 'state': state, 'param_groups': groups}
    _place_extras(result, saved, keep_schedule=keep_schedule, notes=notes)
    return Placed(result, tuple(dict.fromkeys(notes)))


def carry_over(sources: Sequence[Tuple[str, Mapping[str, Any]]], weights: Mapping[str, Any],
               optim_wrapper: OptimWrapper, model: nn.Module) -> Tuple[str, ...]:
    """Give reused parameters the moments that they had in the checkpoints they came from.

    A moment fits where the parameter was taken as it is: under its own name, with equal values.
    What was permuted, translated or matched by class starts without.

    Args:
        sources: (name, checkpoint) in order of preference.
        weights: The state dict that the model is given.
        optim_wrapper: Its optimizers receive the moments; their groups stay as they are.
        model: The model whose parameters they hold.

    Returns:
        Notes for the log.
    """
    moments: Dict[str, Tuple[str, Dict[str, Any]]] = {}
    notes = []
    for source, checkpoint in sources:
        if not checkpoint.get(NAMES) or 'optimizer' not in checkpoint:
            notes.append(f'optimizer state: none carried over from {source}, which '
                         f'{"does not name it" if "optimizer" in checkpoint else "holds none"}')
            continue
        saved = checkpoint['optimizer']
        saved = {'': saved} if 'param_groups' in saved else saved
        theirs = weights_of(checkpoint, source=source)
        for key, record in checkpoint[NAMES].items():
            named = named_state(saved[key], record, source=source)
            for name, value in named.state.items():
                if name not in moments and _taken_as_is(name, theirs, weights):
                    moments[name] = (named.kind, value)
    for wrapper in wrappers_of(optim_wrapper).values():
        own, kind = wrapper.optimizer.state_dict(), type(wrapper.optimizer).__name__
        names = [name for part in names_of(wrapper, model) for name in part]
        places = [index for group in own['param_groups'] for index in group['params']]
        own['state'] = {index: moments[name][1]
                        for index, name in zip(places, names, strict=True)
                        if name in moments and moments[name][0] == kind}
        wrapper.optimizer.load_state_dict(own)
        notes.append(f'optimizer state: carried over for {len(own["state"])} of {len(names)} '
                     f'parameters of {kind}')
    return tuple(notes)


def _names_by_order(saved: Mapping[str, Any], weights: Mapping[str, Any], wrapper: OptimWrapper,
                    model: nn.Module, *, source: str) -> Tuple[List[List[str]], str]:
    """Names for a state without any, and how they were found."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    sizes = [len(group['params']) for group in saved['param_groups']]
    own = names_of(wrapper, model)
    tried = (('in the order of its weights', [name for name in weights if name in shapes]),
             ('by place', [name for part in own for name in part]))
    for how, names in tried:
        if len(names) == sum(sizes) and _shapes_agree(saved, names, shapes):
            rest = iter(names)
            return [[next(rest) for _ in range(size)] for size in sizes], how
    raise CheckpointError(
        f'checkpoint {source} does not say which parameter each part of its optimizer state '
        f'({sum(sizes)} parameters) belongs to, and it does not fit this run by place; use '
        '--load-from to take its weights')


def _shapes_agree(saved: Mapping[str, Any], names: Sequence[str],
                  shapes: Mapping[str, Tuple[int, ...]]) -> bool:
    """Whether every moment has the shape of the parameter that it would be given to."""
    places = [place for group in saved['param_groups'] for place in group['params']]
    for place_, name in zip(places, names, strict=True):
        for value in saved['state'].get(place_, {}).values():
            moment = torch.is_tensor(value) and value.dim() > 0
            if moment and name in shapes and tuple(value.shape) != shapes[name]:
                return False
    return True


def _require_same_kind(saved: NamedState, wrapper: OptimWrapper, *, source: str) -> None:
    """The kind is compared by name or, where it has none, by the options that it has."""
    kind = type(wrapper.optimizer).__name__
    other = saved.kind != kind if saved.kind else False
    if not saved.kind and saved.groups:
        theirs = {key for key in saved.groups[0][1] if not key.startswith('initial_')}
        ours = set(wrapper.optimizer.defaults)
        other = bool(theirs - ours) and bool(ours - theirs)
    if other:
        raise CheckpointError(
            f'checkpoint {source} holds the state of {saved.kind or "another optimizer"}, this '
            f'run trains with {kind}; set optim_wrapper.optimizer.type as it was, or use '
            '--load-from to take its weights')


def _place_extras(result: Dict[str, Any], saved: NamedState, *, keep_schedule: bool,
                  notes: List[str]) -> None:
    """`base_param_settings` is MMEngine's group without parameters: the plain rate for the log."""
    if 'base_param_settings' in result:
        old = saved.extras.get('base_param_settings') or saved.groups[0][1]
        result['base_param_settings'] = {
            **merge(options_of(result['base_param_settings']), options_of(old), same=True,
                    keep_schedule=keep_schedule, keep_options=False, notes=[]),
            'params': result['base_param_settings']['params']}
    if 'loss_scaler' in result and 'loss_scaler' in saved.extras:
        result['loss_scaler'] = saved.extras['loss_scaler']
    elif 'loss_scaler' in result:
        notes.append('loss scale: none in the checkpoint, starts anew')


def _state_notes(saved: Sequence[Sequence[str]], own: Sequence[Sequence[str]]) -> List[str]:
    theirs = {name for part in saved for name in part}
    ours = {name for part in own for name in part}
    notes = []
    if ours - theirs:
        notes.append(f'optimizer state: {_few(ours - theirs)} had none in the checkpoint (frozen '
                     'there): starts anew')
    if theirs - ours:
        notes.append(f'optimizer state: {_few(theirs - ours)} is not trained in this run: left '
                     'out')
    return notes


def _aliases(model: nn.Module) -> Dict[str, str]:
    """The first name of each parameter by all the names that it has."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    return {name: first[parameter]
            for name, parameter in model.named_parameters(remove_duplicate=False)}


def _taken_as_is(name: str, checkpoint: Mapping[str, Any], weights: Mapping[str, Any]) -> bool:
    ours, theirs = weights.get(name), checkpoint.get(name)
    return (torch.is_tensor(ours) and torch.is_tensor(theirs) and ours.shape == theirs.shape
            and bool(torch.equal(ours.cpu(), theirs.cpu())))


def _few(names: Any) -> str:
    names = sorted(names)
    more = f' and {len(names) - 2} more' if len(names) > 2 else ''
    return ', '.join(names[:2]) + more


def _listed(names: Optional[Mapping[str, Any]]) -> str:
    names = [name or 'one optimizer' for name in names or ()]
    return f'the optimizers {", ".join(names)}' if names != ['one optimizer'] else 'one optimizer'
