"""Which precision is computed in: geometry in full, whatever a model around it runs in."""
import functools
from typing import Callable, TypeVar

import torch

F = TypeVar('F', bound=Callable)


def full_precision(function: F) -> F:
    """Let a function on tensors ignore autocast on every kind of device.

    Autocast would multiply matrices in half precision, which moves a projected point by pixels.
    """
    @functools.wraps(function)
    def run(*args, **kwargs):
        with torch.autocast('cpu', enabled=False), torch.autocast('cuda', enabled=False):
            return function(*args, **kwargs)
    return run


def computed_dtype(x: torch.Tensor) -> torch.dtype:
    """What a layer computes in from `x` on a CPU: autocast's precision where there is one."""
    return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
