"""A thread that writes while training goes on: one job at a time, no error lost."""
import atexit
import logging
import os
import sys
import threading
import weakref
from typing import Callable, Optional

Job = Callable[[], None]
_NICE = 19  # what the cores leave over, and a sixtieth of one that training wants too

_writers: 'weakref.WeakSet[BackgroundWriter]' = weakref.WeakSet()


class BackgroundWriter:
    """Runs jobs one after the other, each in a thread of its own.

    The interpreter does not exit before the last job is done; an error that nobody asked for is
    logged then. In a forked process (a worker of a data loader) there is nothing to wait for.
    """

    def __init__(self) -> None:
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[Exception] = None
        self._process = os.getpid()
        _writers.add(self)

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._is_here() and self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Start `job` once the one before is done; its error is kept for `take_error`.

        The job must own what it reads: the caller copies the state before.
        """
        self.wait()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, args=(job,), name='checkpoint-writer',
                                        daemon=False)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is shutting down, or allows no more threads
            self._thread = None
            self._run(job)

    def wait(self) -> None:
        """Return once no job is running."""
        if self._thread is not None and self._is_here():
            self._thread.join()
        self._thread = None

    def take_error(self) -> Optional[Exception]:
        """The error of a finished job, once; None while it runs and where it had none."""
        if self.busy:
            return None
        error, self._error = self._error, None
        return error

    def _run(self, job: Job) -> None:
        try:
            if threading.current_thread() is self._thread:
                _yield_to_training()
            job()
        except Exception as error:  # whatever it is, it belongs to whoever submitted the job
            self._error = error

    def _is_here(self) -> bool:
        return self._process == os.getpid()


def _yield_to_training() -> None:
    """Let this thread have what the cores leave over; on Linux a thread has a rank of its own."""
    if sys.platform == 'linux':
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        except OSError:
            pass  # slower training for the time of a write, nothing worse


def _log_what_is_left() -> None:
    for writer in list(_writers):
        if not writer._is_here():
            continue
        writer.wait()
        error = writer.take_error()
        if error is not None:
            logging.getLogger(__name__).error('%s', error)


atexit.register(_log_what_is_left)
