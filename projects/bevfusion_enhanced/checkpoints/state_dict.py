"""The weights inside a checkpoint, whatever they were wrapped in."""
from collections import OrderedDict
from typing import Any, Dict, Mapping

import torch

from ..errors import CheckpointError

StateDict = Dict[str, torch.Tensor]

_ENTRIES = ('state_dict', 'model_state', 'model_state_dict', 'model')
_WRAPPERS = ('module.',)


def weights_of(checkpoint: Mapping[str, Any], *, source: str = 'checkpoint') -> StateDict:
    """The state dict of a checkpoint, under the names that a plain model uses.

    Args:
        checkpoint: What `read_checkpoint` returned: a bare state dict, or a dictionary with the
            weights under `state_dict` (MMEngine, MMCV), `model_state` (OpenPCDet) or `model`.
        source: The file's name, for the error.

    Raises:
        CheckpointError: There is no tensor in it.
    """
    state: Mapping[str, Any] = checkpoint
    for entry in _ENTRIES:
        if isinstance(checkpoint.get(entry), Mapping):
            state = checkpoint[entry]
            break
    if not any(torch.is_tensor(value) for value in state.values()):
        found = ', '.join(map(str, list(state)[:5])) or 'nothing'
        raise CheckpointError(f'{source} holds no weights (found: {found}); expected tensors or a '
                              '"state_dict" entry')
    return strip_wrapper(state)


def strip_wrapper(state: Mapping[str, Any]) -> StateDict:
    """Names without the `module.` that DistributedDataParallel puts before each of them."""
    names = list(state)
    for wrapper in _WRAPPERS:
        if names and all(name.startswith(wrapper) for name in names):
            names = [name[len(wrapper):] for name in names]
    return OrderedDict(zip(names, state.values(), strict=True))
