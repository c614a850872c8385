"""Loading that comes before what other hooks do with a loaded checkpoint."""
from typing import Any, Callable, Dict

from mmengine.hooks import Hook
from mmengine.runner import Runner

Load = Callable[[Runner, Dict[str, Any]], None]


class LoadFirstHook(Hook):
    """Loads before hooks that copy the weights, such as EMAHook, while its owner saves after them.

    Args:
        load: Takes the runner and the checkpoint, whose entries it may replace.
    """

    priority = 'VERY_HIGH'

    def __init__(self, load: Load) -> None:
        self._load = load

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Pass it on."""
        self._load(runner, checkpoint)


def load_before_all_others(runner: Runner, load: Load) -> None:
    """Have `load` called first; calling this again does nothing."""
    if not loads_before_all_others(runner):
        put_in_front(runner, LoadFirstHook(load))


def loads_before_all_others(runner: Runner) -> bool:
    """Whether `load_before_all_others` was called for this runner."""
    return any(isinstance(hook, LoadFirstHook) for hook in runner.hooks)


def put_in_front(runner: Runner, hook: Hook) -> None:
    """Add a hook before all others, from within a stage: the runner is walking through its list."""
    runner._hooks = [hook, *runner._hooks]
