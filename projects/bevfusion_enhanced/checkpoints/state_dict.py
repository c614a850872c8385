"""The weights inside a checkpoint, whatever they were wrapped in."""
from collections import OrderedDict
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch

from ..errors import CheckpointError

StateDict = Dict[str, torch.Tensor]

_ENTRIES = ('state_dict', 'model_state', 'model_state_dict', 'model')
_AVERAGED = ('state_dict_ema', 'model_ema')  # beside the raw weights, as timm writes them
_EMA = 'ema_state_dict'
_WRAPPERS = ('module.', '_orig_mod.', 'model.')
_COUNTERS = ('n_averaged', 'steps')  # how many states an averaged model has seen
_OUR_RECORD = 'bevfusion_enhanced'  # fingerprint.META_KEY; that module imports this one


class Unwrapped(NamedTuple):
    """The weights of a checkpoint, and where they were.

    Attributes:
        weights: Names as the model itself uses them.
        wrappers: What was taken off, outermost first: an entry such as `state_dict`, prefixes
            such as `module.`.
        notes: What a person should know about the choice, for example that these are averages.
    """

    weights: StateDict
    wrappers: Tuple[str, ...]
    notes: Tuple[str, ...]


def weights_of(checkpoint: Mapping[str, Any], *, source: str = 'checkpoint') -> StateDict:
    """The state dict of a checkpoint, under the names that a plain model uses.

    See `unwrap`, of which this is the weights alone.
    """
    return unwrap(checkpoint, source=source).weights


def unwrap(checkpoint: Mapping[str, Any], *, source: str = 'checkpoint') -> Unwrapped:
    """Take the weights out of a checkpoint. Nothing is copied, and the checkpoint not changed.

    Averaged weights are preferred to raw ones. MMEngine swaps the two on saving: its averages are
    under `state_dict`, the raw weights under `ema_state_dict`.

    Args:
        checkpoint: What `read_checkpoint` returned: a bare state dict, or a dictionary with the
            weights under `state_dict` (MMEngine, MMCV, Lightning), `model_state` (OpenPCDet),
            `model` (Swin Transformer) or an averaged model's entry.
        source: The file's name, for the error.

    Raises:
        CheckpointError: There is no tensor in it.
    """
    entry, state, notes = _choose_entry(checkpoint)
    if not _has_tensors(state):
        found = ', '.join(map(str, list(state)[:5])) or 'nothing'
        raise CheckpointError(f'{source} holds no weights (found: {found}); expected tensors or a '
                              '"state_dict" entry')
    state = {name: value for name, value in state.items() if isinstance(name, str)}
    names, prefixes = _without_prefixes(list(state))
    weights: StateDict = OrderedDict(zip(names, state.values(), strict=True))
    counters = [name for name in _COUNTERS if 'module.' in prefixes and name in state]
    for name in counters:
        del weights[name]
    if counters and not notes:
        notes = ['weights are those of an averaged model']
    wrappers = ([entry] if entry else []) + prefixes
    return Unwrapped(weights=weights, wrappers=tuple(wrappers), notes=tuple(notes))


def _choose_entry(checkpoint: Mapping[str, Any]
                  ) -> Tuple[Optional[str], Mapping[str, Any], List[str]]:
    """The entry with the weights (None: the checkpoint itself), its content, and notes on it."""
    raw = next((e for e in _ENTRIES if isinstance(checkpoint.get(e), Mapping)), None)
    for entry in _AVERAGED:
        if _has_tensors(checkpoint.get(entry)):
            unused = f'; the raw weights under {raw} are not used' if raw else ''
            return entry, checkpoint[entry], [f'averaged weights, from {entry}{unused}']
    averaged = _averaged_in_message_hub(checkpoint, raw)
    if averaged is not None:
        entry, state = averaged
        return entry, state, [f'averaged weights, from {entry}; the raw weights under {raw} are '
                              'not used']
    if raw is not None:
        note = [f'averaged weights, from {raw}, where MMEngine puts them; the raw weights under '
                f'{_EMA} are not used'] if _has_tensors(checkpoint.get(_EMA)) else []
        return raw, checkpoint[raw], note
    if _has_tensors(checkpoint.get(_EMA)):
        return _EMA, checkpoint[_EMA], [f'averaged weights, from {_EMA}']
    return None, checkpoint, []


def _averaged_in_message_hub(checkpoint: Mapping[str, Any], raw: Optional[str]
                             ) -> Optional[Tuple[str, Mapping[str, Any]]]:
    """An averaged copy of the weights among the values that a run keeps in its message hub."""
    hub, meta = checkpoint.get('message_hub'), checkpoint.get('meta')
    ours = isinstance(meta, Mapping) and _OUR_RECORD in meta  # nothing of ours writes one
    info = hub.get('runtime_info') if isinstance(hub, Mapping) else None
    if raw is None or ours or not isinstance(info, Mapping):
        return None
    expected = set(_without_prefixes(_strings(checkpoint[raw]))[0])
    for name, state in info.items():
        if _has_tensors(state):
            found = set(_without_prefixes(_strings(state))[0]) - set(_COUNTERS)
            if found == expected:
                return f'message_hub.runtime_info.{name}', state
    return None


def _without_prefixes(names: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Names without what wrappers put before each of them, and those prefixes.

    A prefix counts when more than half of the names carry it: Lightning saves the values of a
    metric beside the `model.` that it trains, and an averaged model its counter.
    """
    names, prefixes = list(names), []
    found: Optional[str] = ''
    while found is not None:
        found = next((p for p in _WRAPPERS
                      if sum(name.startswith(p) for name in names) * 2 > len(names)), None)
        if found is not None:
            shorter = [name.removeprefix(found) for name in names]
            if len(set(shorter)) < len(names):
                break
            names, prefixes = shorter, [*prefixes, found]
    return names, prefixes


def _strings(names: Iterable[Any]) -> List[str]:
    return [name for name in names if isinstance(name, str)]


def _has_tensors(state: Any) -> bool:
    return isinstance(state, Mapping) and any(
        isinstance(name, str) and torch.is_tensor(value) for name, value in state.items())
