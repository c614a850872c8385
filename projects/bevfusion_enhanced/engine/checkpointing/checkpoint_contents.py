"""What MMEngine's runner puts into a checkpoint, without its way of writing it."""
import time
from collections import OrderedDict
from typing import Any, Dict

import mmengine
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.utils import get_git_hash

from ..parallel.sharding import is_sharded, whole


def describe_run(runner: Runner) -> Dict[str, Any]:
    """Metadata that stays the same for a whole run; takes a while (config and git)."""
    description = dict(
        cfg=runner.cfg.pretty_text, seed=runner.seed, experiment_name=runner.experiment_name,
        mmengine_version=mmengine.__version__ + get_git_hash())
    metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
    if metainfo is not None:
        description['dataset_meta'] = metainfo
    return description


def weights_and_meta(runner: Runner, meta: Dict[str, Any]) -> Dict[str, Any]:
    """`meta`, `state_dict` and `message_hub`; the tensors are those that training goes on with.

    Args:
        runner: The run.
        meta: `describe_run`'s, with `epoch` and `iter`; the time is added.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return dict(
        meta=dict(meta, time=time.strftime('%Y%m%d_%H%M%S', time.localtime())),
        state_dict=model.state_dict(), message_hub=runner.message_hub.state_dict())


def optimizer_and_schedule(runner: Runner, *, optimizer: bool, schedule: bool) -> Dict[str, Any]:
    """`optimizer` and `param_schedulers`, as far as they are asked for and there."""
    entries: Dict[str, Any] = {}
    if optimizer:
        state = runner.optim_wrapper.state_dict()
        entries['optimizer'] = whole(state) if is_sharded(runner.model) else state
    schedulers = runner.param_schedulers
    if schedule and isinstance(schedulers, dict):
        entries['param_schedulers'] = {
            name: [scheduler.state_dict() for scheduler in items]
            for name, items in schedulers.items()}
    elif schedule and schedulers is not None:
        entries['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
    return entries


def shallow_copy(checkpoint: Dict[str, Any]) -> Dict[str, Any]:
    """A checkpoint whose hooks may add and swap entries without touching those of the original."""
    copied = dict(checkpoint, meta=dict(checkpoint['meta']))
    weights = OrderedDict(checkpoint['state_dict'])
    vars(weights).update(vars(checkpoint['state_dict']))
    copied['state_dict'] = weights
    return copied


def flush_logs(runner: Runner) -> None:
    """Have everything logged so far on disk, so that no log is behind the checkpoint."""
    for backend in runner.visualizer._vis_backends.values():
        flush = getattr(backend, 'flush_log', None)
        writer = getattr(backend, '_tensorboard', None)  # MMEngine's own backend
        if flush is None and writer is not None:
            flush = writer.flush
        if flush is not None:
            try:
                flush()
            except OSError as error:
                runner.logger.error(f'cannot write the log of {type(backend).__name__}: {error}')

