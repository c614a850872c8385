"""From one decoder that all tasks share to a decoder for each task: each begins as its copy."""
from collections import OrderedDict
from typing import Any, Mapping, Optional, Tuple

from .state_dict import StateDict

_SHARED = 'decoder.'
_OWN = 'task_decoders.'


def spread_decoder(weights: StateDict, model: Mapping[str, Any]
                   ) -> Tuple[StateDict, Optional[str]]:
    """Give a checkpoint with one decoder under the names of a model with several.

    Args:
        weights: The checkpoint's, under our names; not edited.
        model: The model's state dict.

    Returns:
        The weights, the shared decoder once for each task (the same tensors, not copied), and a
        note for people; without one, the weights are as they came.
    """
    tasks = list(OrderedDict.fromkeys(
        key.split('.')[1] for key in model if key.startswith(_OWN)))
    shared = [key for key in weights if key.startswith(_SHARED)]
    settled = (any(key.startswith(_OWN) for key in weights)
               or any(key.startswith(_SHARED) for key in model))
    if settled or not tasks or not shared:
        return weights, None
    spread = OrderedDict((key, value) for key, value in weights.items() if key not in shared)
    for task in tasks:
        spread.update((f'{_OWN}{task}.{key[len(_SHARED):]}', weights[key]) for key in shared)
    metadata = getattr(weights, '_metadata', None)
    if metadata is not None:
        spread._metadata = metadata  # type: ignore[attr-defined]
    return spread, f'the decoder of all tasks is where those of {", ".join(tasks)} begin'
