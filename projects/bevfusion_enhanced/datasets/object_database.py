"""The GT database as training reads it: boxes in arrays, points on disk.

An object is a box in the LiDAR frame in which it was annotated (x, y, z of the bottom centre, dx,
dy, dz, yaw, vx, vy; metres, radians, metres a second) and a file of its points relative to the
bottom centre. `object_database_writer.py` describes the files.

Shapes: D objects of the database, K chosen objects, P their points.
"""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence, Tuple

import numpy as np

from bevfusion_enhanced.datasets.info_files import read_pickle
from bevfusion_enhanced.errors import DataError

RECREATE = 'create it with tools/create_data.py --root-path DATASET_ROOT --gt-database'


@dataclass(frozen=True)
class ObjectDatabase:
    """Objects of some classes, grouped by class.

    Attributes:
        folder: Where their paths start.
        boxes: (D, 9) float32.
        paths: (D,) bytes; one array, since a million strings would be copied into every worker.
        first: (classes + 1,) int64; the objects of class c are first[c] to first[c + 1].
        load_dim: Columns of the files.
    """
    folder: Path
    boxes: np.ndarray
    paths: np.ndarray
    first: np.ndarray
    load_dim: int

    @property
    def counts(self) -> np.ndarray:
        """Objects by class."""
        return np.diff(self.first)

    def labels(self, chosen: np.ndarray) -> np.ndarray:
        """The class (K,) int64 of each object."""
        return np.searchsorted(self.first, chosen, side='right') - 1

    def points(self, chosen: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Read the points of some objects, in the LiDAR frame.

        Args:
            chosen: (K,) indices of objects.

        Returns:
            (P, load_dim) float32, and (P,) int64: which of the K objects each point is of.

        Raises:
            DataError: A file is missing or cut short.
        """
        clouds = [self._read(path) for path in self.paths[chosen]]
        owner = np.repeat(np.arange(len(chosen)), [len(cloud) for cloud in clouds])
        points = np.concatenate([np.zeros((0, self.load_dim), np.float32), *clouds])
        points[:, :3] += self.boxes[chosen[owner], :3]
        return points, owner

    def _read(self, path: bytes) -> np.ndarray:
        file = self.folder / os.fsdecode(path)
        try:
            values = np.fromfile(file, dtype=np.uint8)
        except OSError as error:
            raise DataError(f'GT database: {file}: {error.strerror or error}; {RECREATE}') from None
        if values.size == 0 or values.size % (4 * self.load_dim):
            raise DataError(f'GT database: {file} has {values.size} bytes, not a multiple of '
                            f'{4 * self.load_dim}; {RECREATE}')
        return values.view('<f4').reshape(-1, self.load_dim)


def read_object_database(info_file: Path, *, folder: Path, classes: Sequence[str],
                         min_points: Mapping[str, int], load_dim: int = 5) -> ObjectDatabase:
    """Read the info file of a GT database, of this project or of MMDetection3D.

    Args:
        info_file: `<prefix>_dbinfos_<split>.pkl`.
        folder: Where the paths in it start.
        classes: Names by label; '' stands for a class whose objects are not wanted.
        min_points: By class, how many points an object must have.
        load_dim: Columns of the files of points.

    Raises:
        DataError: The file is missing or of another form, or holds no such object, or the file of
            an object is not where it says.
    """
    content = read_pickle(info_file, what='GT database', recreate=RECREATE)
    if not isinstance(content, dict) or not all(isinstance(infos, list)
                                                for infos in content.values()):
        raise DataError(f'GT database {info_file} is not of the form {{class: [object]}}; '
                        f'{RECREATE}')
    try:
        kept = [[info for info in content.get(name, ())
                 if info['num_points_in_gt'] >= max(1, min_points.get(name, 1))]
                for name in classes]
        flat = [info for infos in kept for info in infos]
        if not flat:
            raise DataError(f'GT database {info_file} has no object with enough points of '
                            f'{[name for name in classes if name]}; it has '
                            f'{ {name: len(infos) for name, infos in content.items()} }')
        boxes = np.stack([np.asarray(info['box3d_lidar'], np.float32) for info in flat])
        paths = np.array([os.fsencode(info['path']) for info in flat], dtype=np.bytes_)
    except (KeyError, TypeError) as error:
        raise DataError(f'GT database {info_file}: an object has no {error}; {RECREATE}') from None
    if boxes.shape[1] == 7:
        boxes = np.pad(boxes, ((0, 0), (0, 2)))
    first = np.concatenate([[0], np.cumsum([len(infos) for infos in kept])]).astype(np.int64)
    database = ObjectDatabase(folder, np.nan_to_num(boxes), paths, first, load_dim)
    lost = folder / os.fsdecode(paths[0])
    if not lost.is_file():
        raise DataError(f'GT database {info_file}: {lost} does not exist; set data_root to the '
                        f'folder that its paths start from, or {RECREATE}')
    return database
