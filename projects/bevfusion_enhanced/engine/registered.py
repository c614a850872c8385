"""Every hook, loop and backend that a config can name; importing this registers them."""
from .dataset_hook import DatasetHook
from .health_hook import HealthHook
from .interrupt_hook import InterruptHook
from .partial_load_hook import PartialLoadCheckpointHook
from .progress_hook import RichProgressHook
from .run_local_backend import RunLocalVisBackend
from .run_record_hook import RunRecordHook
from .run_tensorboard_backend import RunTensorboardVisBackend
from .step_cost_hook import StepCostHook
from .train_loop import ResumableTrainLoop
from .tta import MergeViewsHook

__all__ = ['DatasetHook', 'HealthHook', 'InterruptHook', 'MergeViewsHook',
           'PartialLoadCheckpointHook', 'ResumableTrainLoop', 'RichProgressHook',
           'RunLocalVisBackend', 'RunRecordHook', 'RunTensorboardVisBackend', 'StepCostHook']
