"""What watching a training costs, measured part by part in a real training of a few steps."""
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import wraps
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..hooks.health_hook import HealthHook

_EVERY = 5  # in the benchmark all that is done now and then is done this often
_WARM_UP = 3
_STEP = 'step'


@dataclass(frozen=True)
class Cost:
    """Cost of one part of the watching.

    Attributes:
        part: what it is.
        seconds: median of one occurrence.
        every: iterations between two of them at the hook's default settings.
    """

    part: str
    seconds: float
    every: int

    @property
    def per_step(self) -> float:
        """Seconds, shared out over all steps."""
        return self.seconds / self.every


@dataclass(frozen=True)
class Benchmark:
    """Result: median `step` in seconds without the watching, and the costs of its parts."""

    step: float
    costs: Sequence[Cost]

    @property
    def share(self) -> float:
        """All costs over the step."""
        return sum(cost.per_step for cost in self.costs) / self.step

    def table(self) -> str:
        """For people, one line a part."""
        lines = [f'{"part":28s} {"once, ms":>10s} {"every":>6s} {"a step, ms":>11s} {"share":>8s}']
        for cost in self.costs:
            lines.append(f'{cost.part:28s} {1e3 * cost.seconds:10.3f} {cost.every:6d} '
                         f'{1e3 * cost.per_step:11.4f} {cost.per_step / self.step:8.3%}')
        total = sum(cost.per_step for cost in self.costs)
        lines.append(f'{"all":28s} {"":10s} {"":6s} {1e3 * total:11.4f} {self.share:8.3%}')
        return '\n'.join([*lines, f'a step without them: {1e3 * self.step:.1f} ms, median'])


class _Clock:
    """Seconds of calls by name; waits for the GPU before and after."""

    def __init__(self) -> None:
        self.times: Dict[str, List[float]] = defaultdict(list)

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, holder: Any, method: str, name: str,
               when: Optional[Callable[[], bool]] = None) -> None:
        """Time a method of an object, where `when` holds as it is called."""
        inner = getattr(holder, method)

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            counted = when is None or when()
            begin = self.now()
            result = inner(*args, **kwargs)
            if counted:
                self.times[name].append(self.now() - begin)
            return result

        setattr(holder, method, timed)

    def median(self, name: str) -> float:
        return float(np.median(self.times[name])) if self.times[name] else 0.0


class _Done(Exception):
    """Enough steps were timed."""


class _Timing(Hook):
    """Times whole steps, and the parts of a health hook; then ends the run."""

    priority = 'LOWEST'

    def __init__(self, health: HealthHook, iterations: int) -> None:
        self.clock, self._health, self._iterations = _Clock(), health, iterations
        self._begin = 0.0

    def before_train(self, runner: Runner) -> None:
        health, clock = self._health, self.clock
        watch = health._watch
        clock.around(watch, '_read', 'gradient norms')
        clock.around(health, 'before_train_iter', 'before')
        clock.around(health, 'after_train_iter', 'after with line',
                     when=lambda: (runner.iter + 1) % _EVERY == 0)
        clock.around(health, 'after_train_iter', 'after',
                     when=lambda: (runner.iter + 1) % _EVERY != 0)
        clock.around(watch, '_step_and_compare', 'compared step')
        watch._inner['step'] = self._timed(watch._inner['step'])
        probe = getattr(health._model, 'gradient_probe', None)
        if probe is not None:
            clock.around(probe, 'look', 'probe', when=lambda: probe.due)

    def _timed(self, inner: Callable) -> Callable:
        def timed(**kwargs: Any) -> None:
            begin = self.clock.now()
            inner(**kwargs)
            self.clock.times['plain step'].append(self.clock.now() - begin)
        return timed

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        self._begin = self.clock.now()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        if (runner.iter + 1) % _EVERY:  # a step with nothing but what every step has
            self.clock.times[_STEP].append(self.clock.now() - self._begin)
        if runner.iter + 1 == _WARM_UP:
            self.clock.times.clear()
        if runner.iter + 1 >= self._iterations:
            self.clock.around(self._health, 'after_train_epoch', 'epoch')
            self._health.after_train_epoch(runner)
            raise _Done


def benchmark(config: Config, *, iterations: int = 40) -> Benchmark:
    """Train for some steps in a folder of its own, which is deleted, and time the watching.

    Args:
        config: a whole config with its data in place; other hooks, such as that for checkpoints,
            are left out.
        iterations: steps, of which the first three are not counted.
    """
    defaults = HealthHook()
    intervals = (defaults._interval, defaults._update_interval, defaults._cosine_interval)
    health = HealthHook(interval=_EVERY, update_interval=_EVERY, cosine_interval=_EVERY)
    timing = _Timing(health, iterations)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(dict(config.to_dict()))
        config.merge_from_dict(dict(work_dir=folder, val_dataloader=None, val_cfg=None,
                                    val_evaluator=None, test_dataloader=None, test_cfg=None,
                                    test_evaluator=None))
        config.default_hooks.checkpoint = None
        config.custom_hooks = []
        runner = Runner.from_cfg(config)
        runner.register_hook(health)
        runner.register_hook(timing)
        length = len(runner.train_dataloader)
        try:
            runner.train()
        except _Done:
            pass
        finally:
            runner.visualizer.close()
    return _result(timing.clock, intervals, length)


def _result(clock: _Clock, intervals: Sequence[int], length: int) -> Benchmark:
    each, line, update, cosine = 1, *intervals
    plain = clock.median('after')
    costs = [
        Cost('gradient norms', clock.median('gradient norms'), each),
        Cost('losses, samples', clock.median('before') + plain, each),
        Cost('line, curves, copied buffers', max(clock.median('after with line') - plain, 0), line),
        Cost('update over weight',
             max(clock.median('compared step') - clock.median('plain step'), 0), update),
        Cost("cosine of tasks' gradients", clock.median('probe'), cosine),
        Cost('measuring an epoch, record', clock.median('epoch'), length)]
    own = clock.median('gradient norms') + plain
    return Benchmark(step=clock.median(_STEP) - own, costs=costs)
