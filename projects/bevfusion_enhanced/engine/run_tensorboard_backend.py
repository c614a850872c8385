"""TensorBoard's events of a run in one folder, over all its starts."""
from pathlib import Path
from typing import List, Optional

from mmdet3d.registry import VISBACKENDS
from mmengine.config import Config
from mmengine.visualization import TensorboardVisBackend

from .run_local_backend import run_folder

FOLDER = 'tensorboard'


@VISBACKENDS.register_module()
class RunTensorboardVisBackend(TensorboardVisBackend):
    """MMEngine's TensorboardVisBackend in `<run>/tensorboard`: each step once, none left out.

    A resumed run adds a file of events; events after the checkpoint it resumed from are cut off
    first (`run_logs`), and a TensorBoard that is looking on is told to forget them.

    Args:
        save_dir: Folder of one start, given by the visualizer.
    """

    def __init__(self, *, save_dir: str) -> None:
        super().__init__(save_dir=str(run_folder(save_dir) / FOLDER))
        self._config: Optional[Config] = None
        self._purge_step: Optional[int] = None

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

    def flush_log(self) -> None:
        """Write what waits in TensorBoard's queue."""
        if hasattr(self, '_tensorboard'):
            self._tensorboard.flush()

    def log_files(self) -> List[Path]:
        """Files of events in the run's folder."""
        return sorted(Path(self._save_dir).glob('*tfevents*'))

    def resume_log(self, iteration: int) -> None:
        """Go on after the events of `iteration`."""
        self._purge_step = iteration + 1
