"""Which tensors of a run nobody writes to between two steps of its optimizer."""
from typing import Set

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from .optimizer_state import wrappers_of
from .sharding import is_sharded

_READ_NO_VALUES = ('mmengine.', 'bevfusion_enhanced.')  # their hooks add and swap entries


def unchanging_addresses(runner: Runner) -> Set[int]:
    """Addresses (`data_ptr`) of parameters, averaged parameters and the optimizer's tensors.

    Forward and backward change gradients and buffers (the statistics of norms), not these. The
    result is empty where parts lie on other processes, and where a hook of the user's might read
    the values of a checkpoint before they are copied.
    """
    if is_sharded(runner.model) or any(map(_may_read_values, runner.hooks)):
        return set()
    tensors = [*runner.model.parameters()]
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            tensors += hook.ema_model.parameters()
    for wrapper in wrappers_of(runner.optim_wrapper).values():
        for state in wrapper.optimizer.state.values():
            tensors += [value for value in state.values() if hasattr(value, 'data_ptr')]
    return {tensor.data_ptr() for tensor in tensors if tensor.numel()}


def _may_read_values(hook: Hook) -> bool:
    method = type(hook).before_save_checkpoint
    return not method.__module__.startswith(_READ_NO_VALUES)
