"""Schedulers of a resumed run: compared with the checkpoint's, fitted to groups, or started anew.

MMEngine pairs the run's schedulers with the saved ones one by one and drops what is left over on
either side. Here they agree in number and kind, or the run stops.
"""
import copy
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.runner import Runner

from ...errors import CheckpointError
from .optimizer_state import wrappers_of

_PROGRESS = {'base_values', 'min_values', 'last_step', '_global_step', '_last_value', 'verbose',
             'best', 'num_bad_epochs', 'cooldown_counter'}
_HINT = ('to keep weights, moments and epoch and start the schedule of this config from there, '
         'add --fresh-schedule (resume_schedule=False of the checkpoint hook)')


def schedulers_of(runner: Runner) -> Dict[str, List[_ParamScheduler]]:
    """The schedulers of each optimizer, under the names that `wrappers_of` uses."""
    schedulers = runner.param_schedulers
    if schedulers is None:
        return {key: [] for key in wrappers_of(runner.optim_wrapper)}
    return dict(schedulers) if isinstance(schedulers, dict) else {'': list(schedulers)}


def describe(runner: Runner) -> Dict[str, List[str]]:
    """Kinds of the schedulers of each optimizer, for the checkpoint's metadata."""
    return {key: [type(scheduler).__name__ for scheduler in part]
            for key, part in schedulers_of(runner).items()}


def require_same_schedule(runner: Runner, saved: Any, kinds: Mapping[str, Sequence[str]], *,
                          source: str) -> Tuple[str, ...]:
    """The checkpoint's schedulers are as many and of the same kinds as those of this run.

    Args:
        runner: With its schedulers built.
        saved: What the checkpoint holds under `param_schedulers`; None where it holds nothing.
        kinds: What `describe` recorded; empty for a checkpoint that is not ours, whose kinds are
            told by what their states hold.
        source: The file's name, for the error.

    Returns:
        Notes on what the config says otherwise, while the checkpoint's schedule goes on.

    Raises:
        CheckpointError: They differ.
    """
    states = dict(saved) if isinstance(saved, dict) else {'': list(saved or ())}
    notes: List[str] = []
    for key, schedulers in schedulers_of(runner).items():
        theirs = states.get(key, [])
        names = kinds.get(key) or [_guess(state) for state in theirs]
        if len(theirs) != len(schedulers):
            raise CheckpointError(
                f'checkpoint {source} was trained with {_count(names)}, this run has '
                f'{_count([type(s).__name__ for s in schedulers])}; {_HINT}')
        for number, (scheduler, state, name) in enumerate(
                zip(schedulers, theirs, names, strict=True), start=1):
            if not _same_kind(scheduler, state, name if key in kinds else ''):
                raise CheckpointError(
                    f'checkpoint {source}: scheduler {number} is {_title(name, state)}, that of '
                    f'this run {_title(type(scheduler).__name__, vars(scheduler))}; {_HINT}')
            notes += _differences(number, scheduler, state)
    return tuple(notes)


def fit_to_groups(states: Any, optimizer: Mapping[str, Any], runner: Runner) -> None:
    """Give saved schedulers one value for each parameter group that this run has, in place.

    Args:
        states: What the checkpoint holds under `param_schedulers`.
        optimizer: What the run's optimizers are about to load.
        runner: With its schedulers built.
    """
    by_optimizer = states if isinstance(states, dict) else {'': states}
    placed = {'': optimizer} if 'param_groups' in optimizer else optimizer
    for key, schedulers in schedulers_of(runner).items():
        groups = list(placed[key]['param_groups'])
        if placed[key].get('base_param_settings') is not None:
            groups.append(placed[key]['base_param_settings'])
        for state, scheduler in zip(by_optimizer[key], schedulers, strict=True):
            name = state['param_name']
            base_values = [group[f'initial_{name}'] for group in groups]
            if base_values != state['base_values']:
                state['base_values'] = base_values
                state['_last_value'] = [group[name] for group in groups]
            if len(base_values) != len(state.get('min_values', base_values)):
                state['min_values'] = list(scheduler.min_values)


def restart(runner: Runner, *, epoch: int, iteration: int) -> Tuple[str, ...]:
    """Build the schedulers anew, to count from the point at which the run goes on.

    A scheduler that ends with the run, because its config says so or does not say where, spans what
    is left of the run. Any other begins and ends so many epochs or iterations from that point on.

    Args:
        runner: Its schedulers are replaced, and the scheduled options of its optimizers are those
            of the first step. Schedulers given as objects cannot be built again and are kept.
        epoch: Epochs trained so far.
        iteration: Iterations trained so far.

    Returns:
        Notes on what each scheduler covers.
    """
    config = (runner.cfg or {}).get('param_scheduler')
    if runner.param_schedulers is None or not config:
        return ('schedule: none in this config; the rates are those that it sets',)
    total = {True: runner.max_epochs, False: runner.max_iters}
    left = {True: max(total[True] - epoch, 1), False: max(total[False] - iteration, 1)}
    for wrapper in wrappers_of(runner.optim_wrapper).values():
        forget(wrapper)
    runner.param_schedulers = runner.build_param_scheduler(_for_the_rest(config, total, left))
    notes = []
    for part in schedulers_of(runner).values():
        for scheduler in part:
            unit, passed = ('epoch', epoch) if scheduler.by_epoch else ('iteration', iteration)
            notes.append(
                f'schedule: {type(scheduler).__name__} starts anew, from {unit} '
                f'{passed + scheduler.begin + 1} to {passed + scheduler.end} of '
                f'{passed + left[scheduler.by_epoch]}')
    return tuple(notes)


def forget(wrapper: OptimWrapper) -> None:
    """Put every scheduled option of an optimizer back to what it was before any scheduler."""
    for group in wrapper.param_groups:
        for key in [key for key in group if key.startswith('initial_')]:
            group[key[len('initial_'):]] = group.pop(key)


def _for_the_rest(config: Any, total: Mapping[bool, int], left: Mapping[bool, int]) -> Any:
    """A copy of the schedulers' config in which those that end with the run span what is left.

    Args:
        config: One scheduler's, a list of them, or a dictionary of these by optimizer.
        total: Epochs (under True) and iterations (under False) of the run.
        left: The same of what is left.
    """
    if isinstance(config, Mapping) and 'type' not in config:
        return {key: _for_the_rest(part, total, left) for key, part in config.items()}
    if not isinstance(config, Mapping):
        return [_for_the_rest(part, total, left) for part in config]
    rest, by_epoch = copy.deepcopy(dict(config)), config.get('by_epoch', True)
    begin, end = rest.get('begin', 0), rest.get('end', total[by_epoch])
    if end == total[by_epoch]:
        rest['end'] = max(left[by_epoch], begin + 1)
        if rest.get('T_max') == end - begin:
            rest['T_max'] = rest['end'] - begin
    return rest


def _same_kind(scheduler: _ParamScheduler, state: Mapping[str, Any], name: str) -> bool:
    own = scheduler.state_dict()
    alike = name == type(scheduler).__name__ if name else set(own) == set(state)
    return alike and all(own[key] == state.get(key) for key in ('param_name', 'by_epoch'))


def _differences(number: int, scheduler: _ParamScheduler, state: Mapping[str, Any]) -> List[str]:
    own = scheduler.state_dict()
    return [f'scheduler {number} ({type(scheduler).__name__}): {key} is {own[key]} in this config; '
            f'the run goes on with the {state[key]} of the checkpoint (--fresh-schedule takes that '
            'of the config)'
            for key in sorted(set(own) & set(state) - _PROGRESS) if own[key] != state[key]]


def _guess(state: Mapping[str, Any]) -> str:
    own = sorted(set(state) - _PROGRESS - {'param_name', 'begin', 'end', 'by_epoch'})
    return f'one with {", ".join(own)}' if own else 'a plain one'


def _title(name: str, state: Mapping[str, Any]) -> str:
    return f'{name} of {state["param_name"]} by {"epoch" if state["by_epoch"] else "iteration"}'


def _count(names: Sequence[str]) -> str:
    if not names:
        return 'no schedulers'
    return f'{len(names)} scheduler{"s" if len(names) > 1 else ""} ({", ".join(names)})'
