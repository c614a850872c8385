"""Work on many items in several processes that share what they read."""
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, List

from bevfusion_enhanced.errors import DataError

Mapper = Callable[[Callable[[Any, Any], Any], Iterable], Iterator]

_SHARED: List[Any] = []
"""What the workers of this process share; forked processes inherit it instead of a copy by pipe."""


@contextmanager
def shared_map(shared: Any, workers: int) -> Iterator[Mapper]:
    """A `map(function, items)` that calls `function(shared, item)` and keeps the order.

    Args:
        shared: What every call needs, such as the tables of a dataset; read only.
        workers: Number of processes; 1, or a system that cannot fork, works in this one.

    Raises:
        DataError: A worker was killed, as happens when memory runs out (raised while iterating).
    """
    if workers == 1 or sys.platform != 'linux':
        yield lambda function, items: (function(shared, item) for item in items)
        return
    _SHARED.append(shared)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('fork'),
                               initializer=_end_with_parent, initargs=(os.getpid(),))
    try:
        yield lambda function, items: _in_order(pool, function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        _SHARED.pop()


def _in_order(pool: ProcessPoolExecutor, function: Callable, items: Iterable) -> Iterator:
    try:
        yield from pool.map(_Call(function), items)
    except BrokenProcessPool:
        raise DataError('a worker process was killed, most likely for lack of memory; run it again '
                        'with fewer --workers') from None


class _Call:
    """A function with what the process shares as its first argument."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, item: Any) -> Any:
        return self.function(_SHARED[-1], item)


def _end_with_parent(parent: int) -> None:
    """Let a worker end when its parent was killed, which closes no pipe that workers hold too."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
