"""How many threads PyTorch uses on a CPU, for the length of a block and for its backward pass.

Many small products on few channels, such as a sparse convolution's, are slower on several threads
than on one: on two cores the toy LiDAR encoder takes 51 ms on one thread and 81 to 99 on two.
"""
from contextlib import contextmanager
from typing import Iterator

import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block on one thread, then go back to as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def use_threads_in_backward(tensor: Tensor, threads: int) -> None:
    """Switch to `threads` threads when the backward pass reaches `tensor`, from its later side.

    Args:
        tensor: what the steps before it, in backward order the ones after, have computed.
        threads: how many they may use.
    """
    if tensor.requires_grad:
        tensor.register_hook(lambda grad: torch.set_num_threads(threads))
