"""Loading workers: on one thread each, and not ended by a signal to the whole group of processes.

PyTorch computes on one thread in a worker, but NumPy's BLAS starts as many as there are cores, and
they spin between products: a worker that loads scans took two cores for the work of one.

A terminal's Ctrl-C, Slurm and `timeout` signal every process of a group. The training finishes its
iteration first and needs its workers for that; they end when the training ends them, or is killed.
"""
import os
import signal
import threading
from functools import partial
from typing import Callable, Optional

from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader

_POLL_SECONDS = 0.5


def guard_workers(loader: DataLoader) -> None:
    """Keep the workers of a loader, not started yet, to a thread, and through signals to all."""
    inner = loader.worker_init_fn
    if not (isinstance(inner, partial) and inner.func is _start_worker):
        loader.worker_init_fn = partial(_start_worker, inner=inner)


def _start_worker(worker: int, *, inner: Optional[Callable[[int], None]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigtimedwait'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()
    threadpool_limits(1, user_api='blas')
    if inner is not None:
        inner(worker)


def _obey_parent(parent: int) -> None:
    """End this process at the SIGTERM of the training itself, or soon after its death."""
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, _POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
