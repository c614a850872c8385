"""Scalars of a run in one file, over all its starts."""
from pathlib import Path
from typing import List

from mmdet3d.registry import VISBACKENDS
from mmengine.visualization import LocalVisBackend

VIS_DATA = 'vis_data'


def run_folder(save_dir: str) -> Path:
    """The run's folder, where MMEngine's visualizer gave `<run>/<time>/vis_data`."""
    folder = Path(save_dir)
    return folder.parent.parent if folder.name == VIS_DATA else folder


@VISBACKENDS.register_module()
class RunLocalVisBackend(LocalVisBackend):
    """MMEngine's LocalVisBackend, with `scalars.json` in the run's folder, a line for each step.

    A resumed run appends to it; entries after the checkpoint it resumed from are cut off first
    (`run_logs`). Pictures, the config and the scalars of one start stay in that start's folder.

    Args:
        save_dir: Folder of one start, given by the visualizer.
        img_save_dir: Folder of pictures in it.
        config_save_file: Name of the config in it.
        scalar_save_file: Name of the run's file.
    """

    def __init__(self, *, save_dir: str, img_save_dir: str = 'vis_image',
                 config_save_file: str = 'config.py',
                 scalar_save_file: str = 'scalars.json') -> None:
        super().__init__(save_dir=save_dir, img_save_dir=img_save_dir,
                         config_save_file=config_save_file, scalar_save_file=scalar_save_file)
        # absolute, so that the join with `save_dir` to come leaves it as it is
        self._scalar_save_file = str((run_folder(save_dir) / scalar_save_file).absolute())

    def flush_log(self) -> None:
        """Nothing to do: each line is in the file once it is logged."""

    def log_files(self) -> List[Path]:
        """The run's file, once it is there."""
        path = Path(self._scalar_save_file)
        return [path] if path.is_file() else []

    def resume_log(self, iteration: int) -> None:
        """Nothing to do: lines are appended to whatever is there."""
