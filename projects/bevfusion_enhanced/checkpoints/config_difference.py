"""Where two resolved configs differ, key by key, with lists of steps compared by their types."""
from collections import Counter
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence

from .geometry import plain


class _Absent:
    """A key that one side lacks."""

    def __repr__(self) -> str:
        return 'not set'


ABSENT = _Absent()


class Difference(NamedTuple):
    """A key and its value on each side; `ABSENT` where that side has no such key.

    A step of a list is named by its type, as in `train_pipeline[ImageAug3D].final_dim`, a second
    one of a type with `#2`. Where two such lists hold other steps, or hold them in another order,
    the values under the list's own key are the names of the steps.
    """

    key: str
    old: Any
    new: Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> List[Difference]:
    """Every difference of two resolved configs, in the order of the keys.

    A key set to None is as one that is not there, and a tuple as a list. Within `model`, two parts
    of different types are one difference: their arguments mean different things. Where one side
    wraps its dataset (`RepeatDataset`), the datasets inside are compared under the wrapper's key.
    """
    return list(_compare('', _config(old), _config(new)))


def _config(config: Mapping[str, Any]) -> Dict[str, Any]:
    config = plain(config.to_dict() if hasattr(config, 'to_dict') else config)
    model = config.get('model')
    if isinstance(model, dict):
        if (model.get('task_gca') or {}).get('mode') == 'none':  # as if there were none
            model = {key: value for key, value in model.items() if key != 'task_gca'}
        if 'data_preprocessor' in config and not model.get('data_preprocessor'):
            model = {**model, 'data_preprocessor': config['data_preprocessor']}
        config = {**config, 'model': model}
    return config


def _compare(key: str, old: Any, new: Any) -> Iterator[Difference]:
    if old == new or (_missing(old) and _missing(new)) or repr(old) == repr(new):  # nan, too
        return
    if isinstance(old, dict) and isinstance(new, dict):
        if key.startswith('model') and old.get('type') != new.get('type'):
            yield Difference(f'{key}.type', old.get('type', ABSENT), new.get('type', ABSENT))
            return
        if key.endswith('dataset') and _is_wrapper(old) != _is_wrapper(new):
            yield Difference(f'{key}.type', old.get('type', ABSENT), new.get('type', ABSENT))
            old, new = _innermost(old), _innermost(new)
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _compare(f'{key}.{name}' if key else name, old.get(name, ABSENT),
                                new.get(name, ABSENT))
    elif _is_steps(old) and _is_steps(new):
        ours, theirs = _by_name(old), _by_name(new)
        if list(ours) != list(theirs):
            yield Difference(key, list(ours), list(theirs))
        for name in ours:
            if name in theirs:
                yield from _compare(f'{key}[{name}]', ours[name], theirs[name])
    else:
        yield Difference(key, old, new)


def _missing(value: Any) -> bool:
    return value is None or value is ABSENT


def _is_wrapper(dataset: Mapping[str, Any]) -> bool:
    return isinstance(dataset.get('dataset'), dict)


def _innermost(dataset: Dict[str, Any]) -> Dict[str, Any]:
    """The dataset itself, out of RepeatDataset, CBGSDataset and the like."""
    return _innermost(dataset['dataset']) if _is_wrapper(dataset) else dataset


def _is_steps(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(step, dict) and 'type' in step for step in value)


def _by_name(steps: Sequence[Mapping[str, Any]]) -> Dict[str, Mapping[str, Any]]:
    """Steps under their types, without the scope before them."""
    seen: Counter = Counter()
    named: Dict[str, Mapping[str, Any]] = {}
    for step in steps:
        name = str(step['type']).rpartition('.')[2]
        seen[name] += 1
        named[name if seen[name] == 1 else f'{name}#{seen[name]}'] = step
    return named
