"""Scalars of a run in one file, over all its starts."""
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from mmdet3d.registry import VISBACKENDS
from mmengine.fileio import dump
from mmengine.logging import MMLogger
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
    Lines that a full disk refuses wait in memory until there is space; training goes on.

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
        self._waiting: Dict[str, List[str]] = {}

    def _dump(self, value_dict: Dict[str, Any], file_path: str, file_format: str) -> None:
        """Append a line, after those that wait.

        MMDetection3D's analyze_logs.py takes no step and time from where a name with a slash comes
        before them, as in a validation's line. So in training's they come first, in others last.
        """
        training = 'loss' in value_dict
        value_dict = dict(sorted(value_dict.items(), key=lambda item: ('/' in item[0]) == training))
        told = bool(self._waiting)
        self._waiting.setdefault(file_path, []).append(
            dump(value_dict, file_format=file_format) + '\n')
        error = self._write_waiting()
        if error is not None and not told:
            MMLogger.get_current_instance().error(
                f'cannot write {file_path}: {error.strerror or error}; its lines wait until there '
                'is space, training goes on')

    def _write_waiting(self) -> Optional[OSError]:
        for path, lines in list(self._waiting.items()):
            try:
                _append(''.join(lines).encode(), path)
            except OSError as error:
                return error
            del self._waiting[path]
        return None

    def flush_log(self) -> None:
        """Write the lines that wait, if there is space by now."""
        self._write_waiting()

    def log_files(self) -> List[Path]:
        """The run's file, once it is there."""
        path = Path(self._scalar_save_file)
        return [path] if path.is_file() else []

    def resume_log(self, iteration: int) -> None:
        """Nothing to do: lines are appended to whatever is there."""


def _append(data: bytes, path: str) -> None:
    """Append all of `data` to a file, or nothing."""
    with open(path, 'ab', buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while data:
                data = data[file.write(data):]
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
