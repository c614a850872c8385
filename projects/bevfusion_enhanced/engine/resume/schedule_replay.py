"""The schedule of a longer (or shorter) run, brought to the point at which a run goes on."""
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from .optimizer_state import wrappers_of
from .schedule_state import forget, schedulers_of


def stretch(runner: Runner, *, epoch: int, iteration: int) -> Tuple[str, ...]:
    """Put schedulers and rates where they would be, had the run had its present length at first.

    MMEngine's schedulers compute each value from the one before, so that the way there is walked:
    once for each distinct set of options among the parameter groups, not for each group.

    Args:
        runner: Its schedulers are replaced, and the scheduled options of its optimizers set.
        epoch: Epochs trained so far.
        iteration: Iterations trained so far.

    Returns:
        Notes for the log.
    """
    config = (runner.cfg or {}).get('param_scheduler')
    if runner.param_schedulers is None or not config:
        return ('schedule: none in this config; the rates are those that it sets',)
    wrappers = wrappers_of(runner.optim_wrapper)
    for wrapper in wrappers.values():
        forget(wrapper)
    kinds = {key: _kinds(wrapper) for key, wrapper in wrappers.items()}
    runner.param_schedulers = runner.build_param_scheduler(config)
    for key, schedulers in schedulers_of(runner).items():
        part = config[key] if key else config
        stand_in = _stand_in(kinds[key])
        walked = runner._build_param_scheduler(part, stand_in)
        _walk(walked, _in_epochs(part), epoch=epoch, iteration=iteration,
              length=len(runner.train_dataloader))
        places = _places(kinds[key])
        for group, place in zip(wrappers[key].param_groups, places, strict=True):
            group.update({name: value for name, value in stand_in.param_groups[place].items()
                          if name != 'params'})
        for scheduler, ahead in zip(schedulers, walked, strict=True):
            state = ahead.state_dict()
            for name in ('base_values', 'min_values', '_last_value'):
                if name in state:
                    state[name] = [state[name][place] for place in places]
            scheduler.load_state_dict(state)
    return (f'schedule: that of a run of {runner.max_epochs} epochs, at epoch {epoch}',)


def _walk(schedulers: List[Any], in_epochs: Sequence[bool], *, epoch: int, iteration: int,
          length: int) -> None:
    """Step as `ParamSchedulerHook` does over so many iterations and epochs.

    What a config counts in epochs is walked for that many of the length that they have now: with
    another batch size, they had another number of iterations so far.
    """
    of_epochs = iteration if iteration // length == epoch else epoch * length
    for number in range(1, max(iteration, of_epochs) + 1):
        for scheduler, counts_epochs in zip(schedulers, in_epochs, strict=True):
            if not scheduler.by_epoch and number <= (of_epochs if counts_epochs else iteration):
                scheduler.step()
        if number % length == 0 and number <= epoch * length:
            for scheduler in schedulers:
                if scheduler.by_epoch:
                    scheduler.step()


def _in_epochs(config: Any) -> List[bool]:
    """Of each scheduler, whether its config counts epochs, converted to iterations or not."""
    parts = [config] if isinstance(config, Mapping) else config
    return [bool(part.get('by_epoch', True)) for part in parts]


def _kinds(wrapper: OptimWrapper) -> List[Dict[str, Any]]:
    """The options of each parameter group."""
    return [{name: value for name, value in group.items() if name != 'params'}
            for group in wrapper.param_groups]


def _stand_in(kinds: List[Dict[str, Any]]) -> OptimWrapper:
    """An optimizer of one number for each distinct set of options."""
    distinct: Mapping[str, Dict[str, Any]] = {repr(kind): kind for kind in kinds}
    groups = [dict(kind, params=[torch.nn.Parameter(torch.zeros(1))])
              for kind in distinct.values()]
    return _Unstepped(torch.optim.SGD(groups, lr=0.0))


def _places(kinds: List[Dict[str, Any]]) -> List[int]:
    """For each parameter group, its place in `_stand_in`."""
    order = {text: place for place, text in enumerate(dict.fromkeys(map(repr, kinds)))}
    return [order[repr(kind)] for kind in kinds]


class _Unstepped(OptimWrapper):
    """Never trains; schedulers that count its steps are told that one was made."""

    @property
    def _global_step(self) -> int:
        return 0

    @_global_step.setter
    def _global_step(self, value: int) -> None:
        pass
