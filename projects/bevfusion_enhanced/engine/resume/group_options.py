"""Options of parameter groups when a run goes on: which of them the checkpoint decides.

An option is scheduled where a scheduler has put its `initial_` value beside it. Those belong to the
schedule; the others (weight decay, betas) to the config or the checkpoint, as the caller says.
"""
from typing import Any, Dict, List, Mapping, Sequence

Options = Dict[str, Any]

_PLACES = ('params', 'param_names')


def options_of(group: Mapping[str, Any]) -> Options:
    """A group without its parameters."""
    return {key: value for key, value in group.items() if key not in _PLACES}


def merge(own: Options, old: Options, *, same: bool, keep_schedule: bool, keep_options: bool,
          notes: List[str]) -> Options:
    """Options of a group of this run that goes on from one of the checkpoint.

    Args:
        own: As this run built them.
        old: As the checkpoint has them.
        same: Whether the two groups hold the same parameters. Otherwise those of this run rule, at
            the point that the old schedule had reached.
        keep_schedule: Go on with the old rates.
        keep_options: Go on with the old options that are not scheduled.
        notes: Takes what there is to say.
    """
    scheduled = _scheduled_keys(own) | _scheduled_keys(old)
    merged = dict(own)
    for key, value in old.items():
        if key in scheduled or (key in own and own[key] == value) or not same:
            continue
        if keep_options:
            merged[key] = value
        elif key in own:
            notes.append(f'{key}: {value} in the checkpoint, {own[key]} from now on')
    if keep_schedule and same:
        notes += [f'{key[len("initial_"):]}: the run goes on with the {old[key]:.4g} of the '
                  f'checkpoint, not the {own[key]:.4g} of this config; --fresh-schedule takes that'
                  for key in sorted(scheduled) if key.startswith('initial_')
                  and key in own and key in old and own[key] != old[key]]
        merged.update((key, old[key]) for key in scheduled if key in old)
    elif keep_schedule:
        merged.update(_at_the_point_of(old, own))
    return merged


def _scheduled_keys(options: Options) -> set:
    """Options that schedulers change, with what they remember beside them."""
    names = [key[len('initial_'):] for key in options if key.startswith('initial_')]
    keys = {f'{prefix}{name}' for name in names for prefix in ('', 'initial_', 'max_', 'min_')}
    return keys | ({'betas'} if 'momentum' in names else set())


def _at_the_point_of(old: Options, own: Options) -> Options:
    """Own initial values, multiplied by what the schedule had made of the old ones."""
    values = {}
    for key, initial in own.items():
        name = key[len('initial_'):]
        if key.startswith('initial_') and old.get(key) and name in old:
            values[name] = initial * (old[name] / old[key])
    return values


def grouped_alike(saved: Sequence[Sequence[str]], own: Sequence[Sequence[str]]) -> bool:
    """Whether the parameters that both sides have are grouped alike, whatever the order."""
    common = {name for part in saved for name in part} & {name for part in own for name in part}
    grouped = [{frozenset(part) & common for part in parts} - {frozenset()}
               for parts in (saved, own)]
    return grouped[0] == grouped[1]


def largest_share(part: Sequence[str], saved: Sequence[Sequence[str]],
                  options: Sequence[Options]) -> Options:
    """Options of the saved group that most of these parameters were in."""
    wanted = set(part)
    counts = [len(wanted & set(names)) for names in saved]
    return options[counts.index(max(counts))] if counts else {}


def overlaps(part: Sequence[str], saved: Sequence[Sequence[str]]) -> bool:
    """Whether any of these parameters was in a saved group."""
    wanted = set(part)
    return any(wanted & set(names) for names in saved)
