"""Running the jobs of an ablation: in turn or several at a time, each on a device of its own.

Each job is two processes, `tools/train.py` and `tools/test.py`, as a person would start them, with
the same command whenever it is started: training goes on where it stopped, what is done is left.
"""
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from ..checkpoints.folder import find_newest
from ..errors import UserError
from .ablation import Job, Result, numbers, origin_of, read_result, write_result
from .run_files import RunFiles
from .settings import template_of
from .status import is_locked

CPU = 'cpu'
WAITING, TRAINING, TESTING, DONE, FAILED = 'waiting', 'training', 'testing', 'done', 'failed'
_POLL = 0.2  # seconds


class JobFailed(Exception):
    """A process of a job ended with an error; says which, and the last lines that it printed."""


class Stopped(Exception):
    """A signal stopped everything; what was under way is saved."""


@dataclass(frozen=True)
class Tools:
    """The command lines to call."""

    train: Path
    test: Path


class AblationRunner:
    """Runs jobs, and can be stopped.

    Args:
        tools: Scripts that train and test.
        base: Checkpoint that every training begins from; None for none.
        devices: Numbers of GPUs, or `CPU`; a job has one of them to itself.
        jobs: How many at a time; beyond the number of devices they are shared.
    """

    def __init__(self, *, tools: Tools, base: Optional[str], devices: Sequence[str],
                 jobs: int) -> None:
        self.tools, self.base, self.jobs = tools, base, jobs
        self.states: Dict[Job, str] = {}
        self.reasons: Dict[Job, str] = {}
        self._devices: queue.Queue[str] = queue.Queue()
        for index in range(jobs):
            self._devices.put(devices[index % len(devices)])
        self._children: List[subprocess.Popen] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, jobs: Sequence[Job], *, each: Callable[[], None]) -> None:
        """Run what is not done yet; those that test others' weights come last.

        Args:
            jobs: All of them.
            each: Called in this thread while they run, again and again, and once at the end.

        Raises:
            Stopped: `stop` was called.
        """
        self.states = {job: DONE if read_result(job) else WAITING for job in jobs}
        for trains in (True, False):
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(self._run, job) for job in jobs
                           if job.trains is trains and self.states[job] != DONE]
                while not all(future.done() for future in futures):
                    each()
                    time.sleep(_POLL)
            for future in futures:
                future.result()
        each()
        if self._stop.is_set():
            raise Stopped

    def stop(self) -> None:
        """Ask every training to save and end, and start no more."""
        self._stop.set()
        with self._lock:
            for child in self._children:
                child.send_signal(signal.SIGTERM)

    @property
    def failed(self) -> List[Job]:
        """Jobs that ended with an error."""
        return [job for job, state in self.states.items() if state == FAILED]

    def _run(self, job: Job) -> None:
        device = self._devices.get()
        try:
            if not self._stop.is_set():
                self._carry_out(job, device)
                self.states[job] = DONE
        except (JobFailed, UserError, OSError) as error:
            if not self._stop.is_set():
                self.states[job], self.reasons[job] = FAILED, str(error)
        finally:
            self._devices.put(device)

    def _carry_out(self, job: Job, device: str) -> None:
        if job.trains:
            self.states[job] = TRAINING
            self._wait_for_others(job)
            start = ['--load-from', self.base] if self.base else []
            self._call(job, device, [self.tools.train, job.config, '--work-dir', job.stem, *start])
        checkpoint = final_checkpoint(job)
        self.states[job] = TESTING
        folder = job.stem / 'test'
        began = time.time() - 1
        self._call(job, device, [self.tools.test, job.config, checkpoint, '--work-dir', folder])
        write_result(job, collect(job, folder=folder, since=began, base=self.base))

    def _wait_for_others(self, job: Job) -> None:
        """Wait for a training that an earlier command began before it was killed."""
        while is_locked(RunFiles(job.stem)) and not self._stop.is_set():
            time.sleep(_POLL)

    def _call(self, job: Job, device: str, command: Sequence) -> None:
        with open(job.log, 'ab') as log, self._lock:
            if self._stop.is_set():
                raise JobFailed('stopped')
            child = subprocess.Popen(
                [sys.executable, *map(str, command)], stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=environment(device, jobs=self.jobs),
                start_new_session=True)  # a terminal's Ctrl-C reaches it once, through `stop`
            self._children.append(child)
        code = child.wait()
        with self._lock:
            self._children.remove(child)
        if self._stop.is_set():
            raise JobFailed('stopped')
        if code:
            raise JobFailed(f'{Path(command[0]).name} ended with status {code}: '
                            f'{last_error(job.log)} (all of it: {job.log})')


def environment(device: str, *, jobs: int) -> Dict[str, str]:
    """The environment of a job's process: one device, and its share of the processor's cores."""
    own = dict(os.environ, CUDA_VISIBLE_DEVICES='' if device == CPU else device)
    if jobs > 1:
        own.setdefault('OMP_NUM_THREADS', str(max((os.cpu_count() or 1) // jobs, 1)))
    return own


def final_checkpoint(job: Job) -> Path:
    """The last checkpoint of the run whose weights a job tests.

    Raises:
        JobFailed: There is none.
    """
    files = RunFiles(job.trained_by())
    template = template_of(files)
    for folder in (files.checkpoints, files.folder):
        found = find_newest(folder, skipped=lambda reason: None, template=template)
        if found is not None:
            return found.path
    raise JobFailed(f'{files.folder} holds no whole checkpoint to test')


def collect(job: Job, *, folder: Path, since: float, base: Optional[str]) -> Result:
    """Read what a job's processes wrote.

    Args:
        job: Whose training and test are done.
        folder: Of the test.
        since: Time before which nothing counts, as of `time.time`.
        base: The checkpoint that training began from.

    Raises:
        JobFailed: The test wrote no metrics.
    """
    written = [path for path in folder.rglob('metrics.json') if path.stat().st_mtime >= since]
    if not written:
        raise JobFailed(f'the test wrote no metrics.json below {folder}')
    newest = max(written, key=lambda path: path.stat().st_mtime)
    cost = job.stem / 'cost.json'
    costs = json.loads(cost.read_text()) if job.trains and cost.is_file() else {}
    return Result(metrics=numbers(json.loads(newest.read_text())),
                  step_seconds=costs.get('step_seconds'), peak_gb=costs.get('peak_gb'),
                  origin=origin_of(job.config, base))


def last_error(log: Path) -> str:
    """The line of a log that says what went wrong: the last that begins with an error's name."""
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    errors = [line for line in lines[-40:]
              if line.startswith('error: ') or 'Error:' in line.split(' ')[0]]
    return (errors or lines or ['it printed nothing'])[-1][:400]


def default_devices() -> List[str]:
    """Every GPU that this process may use, or the CPU."""
    import torch
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible:
        return visible.split(',')
    count = torch.cuda.device_count()
    return [str(index) for index in range(count)] or [CPU]
