"""How many threads an operator runs on must not show in its result."""
from typing import Callable, TypeVar

import pytest
import torch

Result = TypeVar('Result')


@pytest.fixture
def on_threads() -> Callable[[int, Callable[[], Result]], Result]:
    """Calls a function with PyTorch on so many threads, and goes back to as many as before."""

    def call(threads: int, function: Callable[[], Result]) -> Result:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return function()
        finally:
            torch.set_num_threads(before)

    return call
