"""Timing, memory, and what a measurement is."""
import ctypes
import math
import os
import resource
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch.utils.flop_counter import FlopCounterMode

MB = 1e6


@dataclass
class Measurement:
    """What one benchmark found.

    Attributes:
        ours_ms: median time of one call of ours.
        reference_ms: of the reference algorithm, in the same process and on the same input.
        operations: multiplications and additions that cannot be left out.
        traffic: bytes that must be read or written at least.
        peak_mb: growth of the process's memory while ours runs; None for that of the process.
        details: further figures, by name.
        conditions: on what input, in a few words.
    """

    ours_ms: float
    conditions: str
    reference_ms: Optional[float] = None
    operations: Optional[float] = None
    traffic: Optional[float] = None
    peak_mb: Optional[float] = None
    details: Dict[str, Any] = field(default_factory=dict)

    def bound_ms(self, machine: 'Machine') -> Optional[float]:
        """The time that the arithmetic and the traffic need at the machine's rates."""
        if self.operations is None and self.traffic is None:
            return None
        arithmetic = (self.operations or 0) / machine.operations_per_second
        movement = (self.traffic or 0) / machine.bytes_per_second
        return 1e3 * max(arithmetic, movement)


class Machine(NamedTuple):
    """Rates of this machine at a number of threads.

    Attributes:
        operations_per_second: of a large float32 product of matrices.
        bytes_per_second: read and written by a copy that no cache holds.
        bf16_per_second: operations of a large bfloat16 product.
    """

    operations_per_second: float
    bytes_per_second: float
    bf16_per_second: float


def measure_machine(*, repeats: int = 9) -> Machine:
    """Measure the rates with as many threads as torch has now; the best of several runs."""
    rows, inner = 4096, 1024
    a, b = torch.randn(rows, inner), torch.randn(inner, inner)
    half = a.bfloat16(), b.bfloat16()
    source = torch.ones(64 * 2 ** 20)                                       # 256 MiB
    target = torch.empty_like(source)
    operations = 2 * rows * inner * inner
    moved = 2 * source.numel() * source.element_size()
    return Machine(
        operations_per_second=operations / min(times_of(lambda: a @ b, repeats=repeats)),
        bytes_per_second=moved / min(times_of(lambda: target.copy_(source), repeats=repeats)),
        bf16_per_second=operations / min(times_of(lambda: half[0] @ half[1], repeats=repeats)))


def times_of(call: Callable[[], Any], *, repeats: int, warm_up: int = 1) -> List[float]:
    """Seconds of each of `repeats` calls, after `warm_up` that are not counted."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def milliseconds(call: Callable[[], Any], *, repeats: int = 7, warm_up: int = 1) -> float:
    """Median time of a call."""
    return 1e3 * statistics.median(times_of(call, repeats=repeats, warm_up=warm_up))


def side_by_side(ours: Callable[[], Any], reference: Callable[[], Any], *, repeats: int = 7,
                 ) -> Tuple[float, float]:
    """Median milliseconds of both, called in turn, so that a busy machine slows both alike."""
    mine, theirs = [], []
    for call in (ours, reference):
        call()
    for _ in range(repeats):
        mine += times_of(ours, repeats=1, warm_up=0)
        theirs += times_of(reference, repeats=1, warm_up=0)
    return 1e3 * statistics.median(mine), 1e3 * statistics.median(theirs)


def operations_of(call: Callable[[], Any]) -> float:
    """Multiplications and additions in the products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def process_peak_mb() -> float:
    """Largest resident memory of this process so far, as the system counts it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == 'darwin' else 1024) / MB


def resident_mb(process: str = 'self') -> float:
    """Resident memory of a process now (Linux)."""
    with open(f'/proc/{process}/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / MB


def peak_growth_mb(call: Callable[[], Any]) -> float:
    """By how much one call raises the resident memory at its peak (Linux).

    The peak is set back to what is resident before the call, after freed memory has been returned.
    """
    call()
    _return_freed_memory()
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
    except OSError:  # only the peak since the process began is known
        before = process_peak_mb()
        call()
        return process_peak_mb() - before
    before = resident_mb()
    call()
    return _of_status_mb('VmHWM') - before


def private_growth_mb(call: Callable[[], Any]) -> float:
    """The same for memory that no file backs: pages mapped from a file are the system's (Linux).

    Looked at every millisecond, for the system keeps no peak of it.
    """
    call()
    _return_freed_memory()
    before = _of_status_mb('RssAnon')
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(_of_status_mb('RssAnon'))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(seen) - before


def _of_status_mb(entry: str) -> float:
    with open('/proc/self/status') as file:
        for line in file:
            if line.startswith(f'{entry}:'):
                return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f'/proc/self/status has no {entry}')


def _return_freed_memory() -> None:
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    except (OSError, AttributeError):
        pass


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The power of the size by which the time grows: the slope of their logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in times]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread


def scaling(name: str, sizes: Sequence[float], call: Callable[[Any], Callable[[], Any]], *,
            repeats: int = 5) -> Dict[str, Any]:
    """Time a call at several sizes.

    Args:
        name: what the size is.
        sizes: ascending.
        call: makes the call to time, for a size.
        repeats: calls at each size; the least time counts.

    Returns:
        The sizes, the milliseconds, and the exponent over all sizes and over the last two.
    """
    times = [1e3 * min(times_of(call(size), repeats=repeats)) for size in sizes]
    return {'size': name, 'sizes': list(sizes), 'ms': [round(t, 3) for t in times],
            'exponent': round(exponent(sizes, times), 2),
            'exponent_at_the_end': round(exponent(sizes[-2:], times[-2:]), 2)}


def check_equal(ours: Any, reference: Any, *, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    """Refuse to time two things that do not compute the same.

    Raises:
        AssertionError: they differ.
    """
    torch.testing.assert_close(ours, reference, rtol=rtol, atol=atol)
