"""What the training data must know of the run, and the run of its data."""
from typing import Any

from mmdet3d.registry import HOOKS
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ...datasets.pipeline_checks import transforms_of
from ...errors import ConfigError


@HOOKS.register_module()
class DatasetHook(Hook):
    """Tells transforms the epoch, and refuses to deal samples to more processes than there are.

    Each transform of the training pipeline with a method `set_epoch` is told the epoch (from 0)
    before it begins, in wrappers of datasets too. Loading workers start on an epoch after that, so
    what the transform keeps in shared memory is right in those that live on as well.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the loaders of training and validation."""
        require_sample_each(runner.train_dataloader, 'train_dataloader')
        if runner.val_loop is not None:
            require_sample_each(runner.val_dataloader, 'val_dataloader')

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the epoch."""
        for transform in transforms_of(runner.train_dataloader.dataset):
            if hasattr(transform, 'set_epoch'):
                transform.set_epoch(runner.epoch)

    def before_test(self, runner: Runner) -> None:
        """Check the loader of testing."""
        require_sample_each(runner.test_dataloader, 'test_dataloader')


def require_sample_each(loader: DataLoader, where: str) -> None:
    """Check that every process gets a sample of its own.

    Raises:
        ConfigError: There are more processes than samples.
    """
    dataset: Any = loader.dataset
    processes, samples = get_world_size(), len(dataset)
    if samples < processes:
        raise ConfigError(f'{where}: {samples} samples for {processes} processes; start at most '
                          f'{samples} processes, or use a larger split')
