"""How checkpoints reach the disk: whole or not at all."""
from typing import List, Optional, Union

from mmengine.hooks import CheckpointHook

from . import file_backend


class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, whose files are written beside, flushed to disk, then renamed.

    Args:
        interval: Save every so many epochs (iterations, where `by_epoch` is false).
        by_epoch: Whether `interval` counts epochs.
        save_optimizer: Save the optimizer's state; needed to resume.
        save_param_scheduler: Save the schedulers' state; needed to resume.
        out_dir: Where checkpoints go, in a folder named after the work dir; the work dir itself
            when left out.
        max_keep_ckpts: Delete the oldest checkpoints beyond this number; -1 keeps all.
        save_last: Save after the last epoch too, whatever the interval.
        save_best: Metrics of which the best checkpoint is kept.
        rule: 'greater' or 'less' for each of `save_best`.
        filename_tmpl: Name of a checkpoint file, with one `{}`.
        published_keys: Entries of the file that is published after training; none when left out.
        save_begin: Number of epochs or iterations before the first checkpoint.
        backend_args: MMEngine's choice of storage; the local disk when left out.
    """

    def __init__(self, *, interval: int = -1, by_epoch: bool = True, save_optimizer: bool = True,
                 save_param_scheduler: bool = True, out_dir: Optional[str] = None,
                 max_keep_ckpts: int = -1, save_last: bool = True,
                 save_best: Union[str, List[str], None] = None,
                 rule: Union[str, List[str], None] = None, filename_tmpl: Optional[str] = None,
                 published_keys: Union[str, List[str], None] = None, save_begin: int = 0,
                 backend_args: Optional[dict] = None) -> None:
        super().__init__(
            interval=interval, by_epoch=by_epoch, save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler, out_dir=out_dir,
            max_keep_ckpts=max_keep_ckpts, save_last=save_last, save_best=save_best, rule=rule,
            filename_tmpl=filename_tmpl, published_keys=published_keys, save_begin=save_begin,
            backend_args=backend_args or dict(backend=file_backend.NAME))
