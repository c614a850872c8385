"""Which tensors of a run nobody writes to between two steps of its optimizer, or has to wait."""
from typing import Any, Callable, List, Sequence, Set

from mmengine.hooks import EMAHook, Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner
from torch.optim import Optimizer

from ..parallel.sharding import is_sharded
from ..resume.optimizer_state import wrappers_of
from .load_first_hook import put_in_front

_KNOWN = ('mmengine.', 'mmdet.', 'mmdet3d.', 'bevfusion_enhanced.')
"""Packages whose hooks read no values of a checkpoint, and change weights in no stage below."""
_BEFORE_FORWARD = ('before_train_epoch', 'before_train_iter')
_SAVING = ('after_train_iter', 'after_train_epoch', 'after_val_epoch', 'after_val')


def unchanging_addresses(runner: Runner, *, saving: Hook) -> Set[int]:
    """Addresses (`data_ptr`) of trained parameters, averaged ones and the optimizer's tensors.

    Forward and backward change gradients and buffers (the statistics of norms), not these: they
    stay until the optimizer's next step or the next stage of `CopyBarrier`. What no gradient trains
    may be an average that a model updates in its forward.

    The result is empty where parts lie on other processes, where an optimizer steps without telling
    anybody, and where a hook of the user's might read the values of a checkpoint before they are
    copied, or change them.

    Args:
        runner: The run.
        saving: The hook that saves.
    """
    optimizers = [wrapper.optimizer for wrapper in wrappers_of(runner.optim_wrapper).values()]
    if (is_sharded(runner.model) or not all(map(tells_before_it_steps, optimizers))
            or any(_may_interfere(hook, later=later) for hook, later in _order(runner, saving))):
        return set()
    tensors: List[Any] = []
    for optimizer in optimizers:
        tensors += [parameter for group in optimizer.param_groups for parameter in group['params']
                    if parameter.requires_grad]
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if hasattr(value, 'data_ptr')]
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            tensors += hook.ema_model.parameters()
    return {tensor.data_ptr() for tensor in tensors if tensor.numel()}


def tells_before_it_steps(optimizer: Any) -> bool:
    """Whether hooks that are registered with an optimizer are called whatever steps it."""
    return (isinstance(optimizer, Optimizer) and 'step' not in vars(optimizer)
            and hasattr(optimizer, '_optimizer_step_pre_hooks')
            and getattr(type(optimizer).step, 'hooked', False))


class CopyBarrier(Hook):
    """Waits for a copy in the stages where hooks may change weights, before any of them does.

    Averages are updated after every iteration, also after those whose gradients are accumulated or
    dropped, and take the place of the trained weights in a validation.

    Args:
        wait: Returns once everything is copied.
    """

    priority = 'VERY_HIGH'

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None,
                         outputs: Any = None) -> None:
        """Wait."""
        self._wait()

    def after_train_epoch(self, runner: Runner) -> None:
        """Wait."""
        self._wait()

    def before_val(self, runner: Runner) -> None:
        """Wait."""
        self._wait()

    def before_test(self, runner: Runner) -> None:
        """Wait."""
        self._wait()


def put_barrier_in_front(runner: Runner, wait: Callable[[], None]) -> None:
    """Add a `CopyBarrier` before all hooks; calling this again does nothing."""
    if not any(isinstance(hook, CopyBarrier) for hook in runner.hooks):
        put_in_front(runner, CopyBarrier(wait))


def _order(runner: Runner, saving: Hook) -> Sequence[Any]:
    """(hook, whether its turn comes after that of `saving`) for each hook."""
    place = runner.hooks.index(saving)
    return [(hook, index > place) for index, hook in enumerate(runner.hooks)]


def _may_interfere(hook: Hook, *, later: bool) -> bool:
    stages = ('before_save_checkpoint', *_BEFORE_FORWARD, *(_SAVING if later else ()))
    return not all(getattr(type(hook), stage).__module__.startswith(_KNOWN) for stage in stages)
