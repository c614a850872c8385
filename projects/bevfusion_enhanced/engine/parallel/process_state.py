"""What each process of a training holds for itself: random states, open gradients, own buffers.

Weights, moments and schedules are the same in all processes; a checkpoint takes them from the
first. These are not.
"""
import hashlib
from typing import Any, Dict, Iterator, List, Tuple

import torch
from mmengine.dist import broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ... import random_state
from ...random_state import RandomState

ProcessState = Dict[str, Any]


def capture(runner: Runner, random: RandomState) -> ProcessState:
    """This process's own state; to be called in all processes at once.

    Args:
        runner: The training.
        random: States of the random generators to record.

    Returns:
        `random`; `gradients` by parameter name, where several iterations make one step and the
        last step is not the last iteration; `buffers` by name, where they differ from those of the
        first process (statistics of norms, which each process takes from its own samples).
    """
    return dict(random=random, gradients=_open_gradients(runner), buffers=_own_buffers(runner))


def apply(runner: Runner, state: ProcessState) -> Tuple[str, ...]:
    """Put back what `capture` returned.

    Returns:
        What could not be put back.
    """
    parameters = dict(model_of(runner).named_parameters())
    for name, gradient in state['gradients'].items():
        parameters[name].grad = gradient.to(parameters[name].device, copy=True)
    buffers = dict(_buffers(runner))
    for name, value in state['buffers'].items():
        buffers[name].copy_(value)
    return random_state.restore(state['random'])


def model_of(runner: Runner) -> nn.Module:
    """The model itself, out of a wrapper such as DistributedDataParallel."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _open_gradients(runner: Runner) -> Dict[str, Tensor]:
    """Gradients that wait for the rest of their step."""
    if all(wrapper.should_update() for wrapper in _wrappers(runner)):
        return {}
    return {name: _copy(parameter.grad) for name, parameter in model_of(runner).named_parameters()
            if parameter.grad is not None}


def _wrappers(runner: Runner) -> List[OptimWrapper]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return [wrapper[name] for name in wrapper.keys()]
    return [wrapper]


def _own_buffers(runner: Runner) -> Dict[str, Tensor]:
    if get_world_size() == 1:
        return {}
    buffers = {name: _copy(buffer) for name, buffer in _buffers(runner)}
    digests = {name: _digest(buffer) for name, buffer in buffers.items()}
    shared = [digests]
    broadcast_object_list(shared)
    if get_rank() == 0:
        return {}
    return {name: buffer for name, buffer in buffers.items()
            if digests[name] != shared[0].get(name)}


def _buffers(runner: Runner) -> Iterator[Tuple[str, Tensor]]:
    """Buffers of the model and of its moving averages."""
    yield from model_of(runner).named_buffers()
    for number, hook in enumerate(hook for hook in runner.hooks if isinstance(hook, EMAHook)):
        for name, buffer in hook.ema_model.named_buffers():
            yield f'ema{number}.{name}', buffer


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to('cpu', copy=True)


def _digest(tensor: Tensor) -> str:
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()
