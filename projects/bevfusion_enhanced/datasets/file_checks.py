"""Whether the files that info files name are on disk and whole."""
import os
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from bevfusion_enhanced.datasets.info_files import read_pickle
from bevfusion_enhanced.datasets.map_masks import load_vector_map, map_file
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.datasets.nuscenes_infos import read_splits
from bevfusion_enhanced.datasets.parallel import shared_map
from bevfusion_enhanced.datasets.scene_lookup import read_table, scenes_of_samples
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.progress import track

_FILES_PER_CALL = 512
_TAIL = 1024  # bytes in which an image must end; cameras may pad


class Problem(NamedTuple):
    """A file that is not as it should be; `size` in bytes is None where there is none."""
    path: str
    size: Optional[int]
    what: str

    def __str__(self) -> str:
        """One line."""
        size = 'missing' if self.size is None else f'{self.size} bytes'
        return f'{self.path}: {size}{", " if self.what else ""}{self.what}'


class Verified(NamedTuple):
    """Which info files were checked, how many other files, and what is wrong."""
    info_files: Tuple[str, ...]
    files: int
    problems: Tuple[Problem, ...]


class _File(NamedTuple):
    """A file to look at: what kind it is, and a number that its size depends on."""
    path: str
    kind: str
    number: int = 0


def verify_files(*, root_path: Union[str, Path], version: str,
                 out_dir: Optional[Union[str, Path]] = None, info_prefix: str = 'nuscenes',
                 splits_file: Optional[Union[str, Path]] = None, workers: int = 1) -> Verified:
    """Check what the info files of a version name: scans, sweeps, images, maps, the GT database.

    A scan must be a multiple of its records, an image must begin and end as its format asks, a map
    must be readable, an object's file must have the size of its points. Nothing is written.

    Args:
        root_path: Root of the dataset.
        version: Name of the folder of tables.
        out_dir: Where the info files lie; None is the root.
        info_prefix: Start of their names.
        splits_file: Splits in place of the version's own.
        workers: Number of processes.

    Raises:
        ConfigError: A number that is none, or a version without splits.
        DataError: A table of the version is broken.
    """
    if workers < 1:
        raise ConfigError(f'workers is {workers}; expected at least 1')
    root = Path(root_path)
    folder = root if out_dir is None else Path(out_dir)
    names = [f'{info_prefix}_infos_{split}.pkl' for split
             in read_splits(root, version, splits_file)]
    problems: List[Problem] = []
    files: Dict[str, _File] = {}
    for path in (folder / name for name in names):
        try:
            for file in _files_of_infos(root, path, version):
                files.setdefault(file.path, file)
        except DataError as error:
            problems.append(_broken(path, str(error)))
    for file in _masks(root, version):
        files.setdefault(file.path, file)
    for path in sorted(folder.glob(f'{info_prefix}_dbinfos_*.pkl')):
        try:
            for file in _files_of_database(folder, path):
                files.setdefault(file.path, file)
        except DataError as error:
            problems.append(_broken(path, str(error)))
    return Verified(tuple(names), len(files), (*problems, *_look_at(list(files.values()), workers)))


def _files_of_infos(root: Path, path: Path, version: str) -> Iterator[_File]:
    """What one info file names; a split without samples names nothing."""
    content = read_pickle(path, what='info file')
    if isinstance(content, dict) and content.get('data_list') == []:
        return
    dataset = NuScenesMultiTaskDataset(data_root=str(root), ann_file=str(path.absolute()),
                                       test_mode=True, load_eval_anns=False)
    if dataset.metainfo['version'] != version:
        raise DataError(f'info file {path} is of {dataset.metainfo["version"]}, not of {version}')
    locations = set()
    for index in range(len(dataset)):
        sample = dataset.get_data_info(index)
        locations.add(sample.get('location'))
        yield _File(sample['lidar_path'], 'scan', 4 * sample['num_pts_feats'])
        for sweep in sample['lidar_sweeps']:
            yield _File(sweep['lidar_points']['lidar_path'], 'scan', 4 * sample['num_pts_feats'])
        for view in sample['images'].values():
            yield _File(view['img_path'], 'image')
    if None in locations:
        scenes = scenes_of_samples(root, version)
        locations = {scene['location'] for scene in scenes.values()}
    for location in sorted(locations):
        yield _File(str(map_file(root, location)), 'map')


def _masks(root: Path, version: str) -> Iterator[_File]:
    """The pictures of the maps, without which the devkit opens no dataset."""
    for record in read_table(root, version, 'map'):
        yield _File(str(root / record['filename']), 'image')


def _files_of_database(folder: Path, path: Path) -> Iterator[_File]:
    content = read_pickle(path, what='GT database')
    try:
        for infos in content.values():
            for info in infos:
                yield _File(str(folder / info['path']), 'object', info['num_points_in_gt'])
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f'GT database {path} is of another form ({type(error).__name__} '
                        f'{error})') from None


def _look_at(files: Sequence[_File], workers: int) -> List[Problem]:
    parts = [files[start:start + _FILES_PER_CALL]
             for start in range(0, len(files), _FILES_PER_CALL)]
    with shared_map(None, workers) as in_parallel:
        found = list(track(in_parallel(_problems, parts), description='Files on disk',
                           total=len(parts)))
    return [problem for problems in found for problem in problems]


def _problems(_: None, files: Sequence[_File]) -> List[Problem]:
    return [problem for problem in map(_problem, files) if problem is not None]


def _problem(file: _File) -> Optional[Problem]:
    """What is wrong with a file, or None."""
    try:
        size = os.stat(file.path).st_size
        what = '' if size == 0 else _CHECKS[file.kind](file, size)
    except FileNotFoundError:
        return Problem(file.path, None, '')
    except OSError as error:
        return Problem(file.path, None, f'but unreadable: {error.strerror or error}')
    if size == 0:
        return Problem(file.path, 0, 'empty')
    return Problem(file.path, size, what) if what else None


def _check_scan(file: _File, size: int) -> str:
    rest = size % file.number
    return f'{rest} bytes more than whole records of {file.number}' if rest else ''


def _check_object(file: _File, size: int) -> str:
    # Files of MMDetection3D have as many columns; a record has at least x, y, z and intensity.
    record = size / file.number if file.number else 0
    whole = record % 4 == 0 and record >= 16
    return '' if whole else f'not the size of its {file.number} points'


def _check_image(file: _File, size: int) -> str:
    with open(file.path, 'rb') as stream:
        start = stream.read(8)
        stream.seek(max(0, size - _TAIL))
        end = stream.read()
    if start[:2] == b'\xff\xd8':
        return '' if b'\xff\xd9' in end else 'cut short: no end of a JPEG'
    if start == b'\x89PNG\r\n\x1a\n':
        return '' if b'IEND' in end else 'cut short: no end of a PNG'
    return 'neither a JPEG nor a PNG'


def _check_map(file: _File, size: int) -> str:
    try:
        load_vector_map(Path(file.path))
    except DataError as error:
        return str(error)
    return ''


_CHECKS = {'scan': _check_scan, 'object': _check_object, 'image': _check_image, 'map': _check_map}


def _broken(path: Path, message: str) -> Problem:
    if not path.is_file():
        return Problem(str(path), None, '')
    return Problem(str(path), path.stat().st_size, message)
