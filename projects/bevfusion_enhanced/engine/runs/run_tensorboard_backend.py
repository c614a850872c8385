"""TensorBoard's events of a run in one folder, over all its starts."""
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np
from mmdet3d.registry import VISBACKENDS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.visualization import TensorboardVisBackend

from .run_local_backend import run_folder

FOLDER = 'tensorboard'


@VISBACKENDS.register_module()
class RunTensorboardVisBackend(TensorboardVisBackend):
    """MMEngine's TensorboardVisBackend in `<run>/tensorboard`: each step once, none left out.

    A resumed run adds a file of events; events after the checkpoint it resumed from are cut off
    first (`run_logs`), and a TensorBoard that is looking on is told to forget them. Events that a
    full disk refuses are lost; training goes on, and a new file begins once there is space.

    Args:
        save_dir: Folder of one start, given by the visualizer.
    """

    def __init__(self, *, save_dir: str) -> None:
        super().__init__(save_dir=str(run_folder(save_dir) / FOLDER))
        self._config: Optional[Config] = None
        self._purge_step: Optional[int] = None
        self._told = False

    def add_config(self, config: Config) -> None:
        """Record the config with the first event, where that is the first of the run."""
        self._config = config

    def _init_env(self) -> None:
        """Open a file of events; not before there is one, because a resume decides where."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError('RunTensorboardVisBackend needs tensorboard; install it, or take the '
                              'backend out of visualizer.vis_backends') from error
        Path(self._save_dir).mkdir(parents=True, exist_ok=True)
        self._tensorboard = SummaryWriter(self._save_dir, purge_step=self._purge_step)
        if self._config is not None and self._purge_step is None:
            self._tensorboard.add_text('config', self._config.pretty_text)

    def add_scalar(self, name: str, value: Any, step: int = 0) -> None:
        """Record a number."""
        self._attempt(lambda: super(RunTensorboardVisBackend, self).add_scalar(name, value, step))

    def add_scalars(self, scalar_dict: Dict[str, Any], step: int = 0,
                    file_path: Optional[str] = None) -> None:
        """Record several numbers; `file_path` is for backends that write files of their own."""
        self._attempt(lambda: super(RunTensorboardVisBackend, self).add_scalars(scalar_dict, step))

    def add_image(self, name: str, image: np.ndarray, step: int = 0) -> None:
        """Record a picture, (H, W, 3) in RGB."""
        self._attempt(lambda: super(RunTensorboardVisBackend, self).add_image(name, image, step))

    def flush_log(self) -> None:
        """Write what waits in TensorBoard's queue."""
        if hasattr(self, '_tensorboard'):
            self._attempt(self._tensorboard.flush)

    def close(self) -> None:
        """Write what waits and end the file."""
        self._attempt(super().close)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do it; where the disk refuses, give the file up and say so, the first time."""
        try:
            action()
        except OSError as error:
            self.__dict__.pop('_tensorboard', None)
            self._env_initialized = False
            if not self._told:
                MMLogger.get_current_instance().error(
                    f'cannot write the events in {self._save_dir}: {error.strerror or error}; '
                    'those of this time are lost, training goes on')
            self._told = True

    def log_files(self) -> List[Path]:
        """Files of events in the run's folder."""
        return sorted(Path(self._save_dir).glob('*tfevents*'))

    def resume_log(self, iteration: int) -> None:
        """Go on after the events of `iteration`."""
        self._purge_step = iteration + 1
