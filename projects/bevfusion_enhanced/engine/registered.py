"""Every hook, loop and backend that a config can name; importing this registers them."""
from .checkpointing.partial_load_hook import PartialLoadCheckpointHook
from .configuration.tta import MergeViewsHook
from .hooks.dataset_hook import DatasetHook
from .hooks.health_hook import HealthHook
from .hooks.progress_hook import RichProgressHook
from .hooks.run_record_hook import RunRecordHook
from .hooks.step_cost_hook import StepCostHook
from .loop.bfloat16 import BFloat16OptimWrapper
from .loop.interrupt_hook import InterruptHook
from .loop.train_loop import ResumableTrainLoop
from .runs.run_local_backend import RunLocalVisBackend
from .runs.run_tensorboard_backend import RunTensorboardVisBackend

__all__ = ['BFloat16OptimWrapper', 'DatasetHook', 'HealthHook', 'InterruptHook', 'MergeViewsHook',
           'PartialLoadCheckpointHook', 'ResumableTrainLoop', 'RichProgressHook',
           'RunLocalVisBackend', 'RunRecordHook', 'RunTensorboardVisBackend', 'StepCostHook']
