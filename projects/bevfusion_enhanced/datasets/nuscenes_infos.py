"""Info files of nuScenes: what training and evaluation need of its tables, one entry a key frame.

The form is MMDetection3D's v2, `{'metainfo': ..., 'data_list': [...]}`; `scene_reader.py` says what
an entry holds. Each scene that is done is kept beside the info files until all are, so a run that
was stopped goes on where it was.
"""
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.splits import create_splits_scenes

from bevfusion_enhanced.datasets.info_files import read_pickle, write_pickle
from bevfusion_enhanced.datasets.parallel import Mapper, shared_map
from bevfusion_enhanced.datasets.scene_reader import SceneReader
from bevfusion_enhanced.datasets.vocabulary import INFO_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.progress import track

OFFICIAL_SPLITS = {'v1.0-mini': {'train': 'mini_train', 'val': 'mini_val'},
                   'v1.0-trainval': {'train': 'train', 'val': 'val'},
                   'v1.0-test': {'test': 'test'}}
TABLES = ('category', 'attribute', 'visibility', 'instance', 'sensor', 'calibrated_sensor',
          'ego_pose', 'log', 'scene', 'sample', 'sample_data', 'sample_annotation', 'map')
MAX_SWEEPS = 10
ENTRY_FORM = 1
"""To be counted up when entries change, so that scenes done by older code are done again."""


class SplitInfos(NamedTuple):
    """A written info file: its path, and how many key frames and scenes it holds."""
    path: Path
    samples: int
    scenes: int


def create_infos(*, root_path: Union[str, Path], version: str,
                 out_dir: Optional[Union[str, Path]] = None, info_prefix: str = 'nuscenes',
                 max_sweeps: int = MAX_SWEEPS, workers: int = 1,
                 skip_incomplete_scenes: bool = False, keep_scenes: bool = False,
                 splits_file: Optional[Union[str, Path]] = None) -> Dict[str, SplitInfos]:
    """Write `<info_prefix>_infos_<split>.pkl` for each split of a version.

    Scenes of no split are left out; a split without scenes gives an info file without samples.

    Args:
        root_path: Root of the dataset.
        version: Name of the folder of tables. Versions other than nuScenes' own bring their splits
            in `splits.json` in that folder: {split: [scene names]}.
        out_dir: Where to write; None is the root.
        info_prefix: Start of the files' names.
        max_sweeps: LiDAR sweeps that an entry lists at most.
        workers: Number of processes.
        skip_incomplete_scenes: Leave out scenes with missing sensor files, as of a partial
            download.
        keep_scenes: Keep the finished scenes for another run, until `forget_scenes`.
        splits_file: Splits in place of the version's own, in the form of `splits.json`.

    Returns:
        What was written, by split.

    Raises:
        ConfigError: A version without splits, or a number that is none.
        DataError: A folder, table or sensor file is missing or broken; nothing is written then.
    """
    if workers < 1 or max_sweeps < 0:
        raise ConfigError(f'workers {workers} must be at least 1, max_sweeps {max_sweeps} at least '
                          '0')
    root = Path(root_path)
    database = open_database(root, version)
    splits = read_splits(root, version, splits_file)
    wanted = {name for names in splits.values() for name in names}
    scenes = [scene for scene in database.scene if scene['name'] in wanted]
    if not scenes:
        raise DataError(f'no scene of {root / version} is in its splits {list(splits)}; check '
                        '--version')

    folder = root if out_dir is None else Path(out_dir)
    kept = _kept_folder(folder, info_prefix)
    done = kept / _fingerprint(root / version, max_sweeps)
    with shared_map((SceneReader(database, max_sweeps), done), workers) as in_parallel:
        missing = _missing_files(scenes, in_parallel, skip_incomplete_scenes)
        scenes = [scene for scene in scenes if not missing[scene['name']]]
        infos = _read_scenes(scenes, in_parallel, done)
    metainfo = dict(categories=_categories(database), dataset='nuscenes', version=version,
                    info_version='1.1')
    written = {}
    for split, names in splits.items():
        name = f'{info_prefix}_infos_{split}.pkl'
        counts = _write_split(kept / name, metainfo, [infos[scene] for scene in infos
                                                      if scene in names])
        os.replace(kept / name, folder / name)
        written[split] = SplitInfos(folder / name, *counts)
    if not keep_scenes:
        forget_scenes(folder, info_prefix)
    return written


def forget_scenes(out_dir: Union[str, Path], info_prefix: str = 'nuscenes') -> None:
    """Remove the finished scenes that `create_infos` kept beside the info files."""
    shutil.rmtree(_kept_folder(Path(out_dir), info_prefix), ignore_errors=True)


def open_database(root: Path, version: str) -> NuScenes:
    """The devkit's database.

    Raises:
        DataError: A folder or table is missing or broken.
    """
    folder = root / version
    if not folder.is_dir():
        known = sorted(path.name for path in root.glob('v*') if path.is_dir())
        raise DataError(f'no tables: {folder} does not exist; ' + (
            f'versions in {root}: {known}' if root.is_dir() else f'{root} is no folder either'))
    absent = [name for name in TABLES if not (folder / f'{name}.json').is_file()]
    if absent:
        raise DataError(f'tables {absent} are missing in {folder}; unpack the metadata again')
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (AssertionError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'cannot read the tables in {folder}: {type(error).__name__} '
                        f'{" ".join(str(error).split())}') from None


def read_splits(root: Path, version: str,
                splits_file: Optional[Union[str, Path]] = None) -> Dict[str, Sequence[str]]:
    """Scene names by split: of a file, or the version's own.

    Raises:
        ConfigError: The file is not there, or the version has no official splits and no
            splits.json.
        DataError: The file is broken.
    """
    if splits_file is not None and not Path(splits_file).is_file():
        raise ConfigError(f'splits file {splits_file} does not exist; write one with '
                          'tools/make_disjoint_split.py')
    if version in OFFICIAL_SPLITS and splits_file is None:
        scenes = create_splits_scenes()
        return {split: scenes[name] for split, name in OFFICIAL_SPLITS[version].items()}
    path = Path(splits_file or root / version / 'splits.json')
    if not path.is_file():
        raise ConfigError(f'version {version!r} has no official splits (these have: '
                          f'{list(OFFICIAL_SPLITS)}); write yours to {path}: '
                          '{"train": [scene names], "val": [...]}')
    try:
        splits = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f'{path} is no JSON: {error}') from None
    if not (isinstance(splits, dict)
            and all(isinstance(names, list) for names in splits.values())):
        raise DataError(f'{path} must hold {{"train": [scene names], "val": [...]}}')
    return splits


def require_split(root: Union[str, Path], version: str, split: str,
                  splits_file: Optional[Union[str, Path]] = None) -> None:
    """Check that a version, or the splits file in place of its own, has a split of this name.

    Raises:
        ConfigError: It has not, or has no splits at all.
        DataError: The splits.json is broken.
    """
    splits = list(read_splits(Path(root), version, splits_file))
    if split not in splits:
        raise ConfigError(f'{version} has no split {split!r} with annotations, so there is no GT '
                          f'database to write; it has {splits}; leave --gt-database out')


def _categories(database: NuScenes) -> Dict[str, int]:
    """Class -> label; what is no detection class, under nuScenes' own name, -> -1."""
    ignored = {record['name']: -1 for record in database.category
               if category_to_detection_name(record['name']) is None}
    return {**{name: label for label, name in enumerate(INFO_CLASSES)}, **ignored}


def _missing_files(scenes: Sequence[dict], in_parallel: Mapper,
                   skip_incomplete: bool) -> Dict[str, List[str]]:
    """Missing files by scene name, checked before anything is computed."""
    missing = dict(zip((scene['name'] for scene in scenes),
                       track(in_parallel(_missing_of_scene, scenes), description='Files by scene',
                             total=len(scenes)), strict=True))
    lost = [path for paths in missing.values() for path in paths]
    complete = sum(not paths for paths in missing.values())
    if lost and not (skip_incomplete and complete):
        raise DataError(f'{len(lost)} sensor files of {len(scenes) - complete} of {len(scenes)} '
                        f'scenes are missing, the first is {lost[0]}; fetch them, or leave such '
                        'scenes out with --skip-incomplete-scenes')
    return missing


def _read_scenes(scenes: Sequence[dict], in_parallel: Mapper, done: Path) -> Dict[str, List[dict]]:
    """The entries by scene name; scenes in the folder `done` are not read again."""
    left = [scene for scene in scenes if not _done_file(done, scene).is_file()]
    for _ in track(in_parallel(_keep_scene, left), description='Key frames by scene',
                   total=len(left)):
        pass
    return {scene['name']: read_pickle(_done_file(done, scene)) for scene in scenes}


def _fingerprint(tables: Path, max_sweeps: int) -> str:
    """What the entries of a scene depend on, as the name of a folder."""
    states = [(name, (tables / f'{name}.json').stat()) for name in TABLES]
    facts = [ENTRY_FORM, max_sweeps, str(tables.resolve())]
    facts += [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _kept_folder(folder: Path, info_prefix: str) -> Path:
    return folder / f'.{info_prefix}_infos.partial'


def _done_file(done: Path, scene: dict) -> Path:
    return done / f'{scene["name"]}.pkl'


def _write_split(path: Path, metainfo: dict, scenes: Sequence[List[dict]]) -> Tuple[int, int]:
    infos = [{'sample_idx': index, **info}
             for index, info in enumerate(info for scene in scenes for info in scene)]
    write_pickle({'metainfo': metainfo, 'data_list': infos}, path)
    return len(infos), len(scenes)


def _keep_scene(shared: Tuple[SceneReader, Path], scene: dict) -> None:
    reader, done = shared
    write_pickle(reader.scene(scene), _done_file(done, scene))


def _missing_of_scene(shared: Tuple[SceneReader, Any], scene: dict) -> List[str]:
    return shared[0].missing_files(scene)
