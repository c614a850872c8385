"""Hooks and runner glue: what connects `checkpoints/` and the command lines to MMEngine."""
from .health_hook import HealthHook
from .interrupt_hook import InterruptHook
from .partial_load_hook import PartialLoadCheckpointHook
from .progress_hook import RichProgressHook
from .run_local_backend import RunLocalVisBackend
from .run_tensorboard_backend import RunTensorboardVisBackend
from .train_loop import ResumableTrainLoop

__all__ = ['HealthHook', 'InterruptHook', 'PartialLoadCheckpointHook', 'ResumableTrainLoop',
           'RichProgressHook', 'RunLocalVisBackend', 'RunTensorboardVisBackend']
