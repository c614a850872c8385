"""The GT database of nuScenes: the points of each annotated object, to paste into other scenes.

On disk, as MMDetection3D's DataBaseSampler reads it: `<prefix>_dbinfos_<split>.pkl`, {class:
[info]}, where an info names a file of raw little-endian float32 records (x, y, z, intensity, time
lag), the points of one object with the bottom centre of its box as origin and the axes of the LiDAR
frame. The files lie in one folder a scene, `<prefix>_gt_database/<scene>/`, which appears when the
scene is done, so a run that was stopped goes on with the next scene.

Against MMDetection3D's script: objects of ignored categories and objects without a point are left
out (there the first are stored as barriers), no path is fixed, and sweeps are always the newest.
"""
import hashlib
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

from bevfusion_enhanced.datasets.box_points import points_in_boxes
from bevfusion_enhanced.datasets.info_files import read_info_file, read_pickle, write_pickle
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.datasets.parallel import shared_map
from bevfusion_enhanced.datasets.scene_lookup import scenes_of_samples
from bevfusion_enhanced.datasets.transforms.loading import LoadPointsWithSweeps
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.progress import track

RECORD_FORM = 1
"""To be counted up when files or infos change, so that scenes done by older code are done again."""
_SCENE_INFOS = 'objects.pkl'
_CONTENT = ('token', 'timestamp', 'lidar_points', 'lidar_sweeps', 'instances')


class WrittenDatabase(NamedTuple):
    """A written GT database: its info file, objects by class, and scenes cut in this run."""
    path: Path
    objects: Dict[str, int]
    scenes_cut: int


class _Scene(NamedTuple):
    """A scene to be cut: its name, the places of its samples in the info file, what it is made of.
    """
    name: str
    indices: Sequence[int]
    fingerprint: str


class _Cutter(NamedTuple):
    """What cutting a scene needs: samples, their points, and the folder of the database."""
    dataset: NuScenesMultiTaskDataset
    load_points: LoadPointsWithSweeps
    folder: Path


def create_object_database(*, root_path: Union[str, Path], info_file: Union[str, Path],
                           out_dir: Optional[Union[str, Path]] = None,
                           info_prefix: str = 'nuscenes', split: str = 'train',
                           sweeps_num: int = 9, workers: int = 1) -> WrittenDatabase:
    """Write the GT database of one info file.

    Args:
        root_path: Root of the dataset.
        info_file: Info file of a split with annotations, by this project or by MMDetection3D.
        out_dir: Where to write; None is the root. Paths in the database's info file start there.
        info_prefix: Start of the names.
        split: Name of the split, for the name of the file.
        sweeps_num: Sweeps that are added to each key frame: as many as training adds.
        workers: Number of processes.

    Raises:
        ConfigError: A number that is none.
        DataError: A file is missing or broken, or there is no object; finished scenes are kept.
    """
    if workers < 1 or sweeps_num < 0:
        raise ConfigError(f'workers {workers} must be at least 1, sweeps_num {sweeps_num} at least '
                          '0')
    root = Path(root_path)
    folder = root if out_dir is None else Path(out_dir)
    database = folder / f'{info_prefix}_gt_database'
    scenes = _scenes(root, Path(info_file), sweeps_num)
    left = [scene for scene in scenes if not _is_done(database, scene)]
    cutter = _Cutter(
        NuScenesMultiTaskDataset(data_root=str(root), ann_file=str(Path(info_file).absolute()),
                                 modality=dict(use_lidar=True), test_mode=True),
        LoadPointsWithSweeps(sweeps_num=sweeps_num), database)
    with shared_map(cutter, workers) as in_parallel:
        for _ in track(in_parallel(_cut_scene, left), description='Objects by scene',
                       total=len(left)):
            pass
    for rest in database.glob('.*.tmp'):
        shutil.rmtree(rest, ignore_errors=True)
    path = folder / f'{info_prefix}_dbinfos_{split}.pkl'
    objects = _merge(database, scenes)
    if not objects:
        raise DataError(f'info file {info_file}: no object of its {len(scenes)} scenes holds a '
                        'LiDAR point, so there is no GT database to write')
    write_pickle(objects, path)
    return WrittenDatabase(path, {name: len(infos) for name, infos in objects.items()}, len(left))


def _scenes(root: Path, info_file: Path, sweeps_num: int) -> List[_Scene]:
    """The scenes of an info file in its order."""
    content = read_info_file(info_file)
    infos = content['data_list']
    if not all('scene_name' in info for info in infos):
        names = scenes_of_samples(root, content['metainfo']['version'])
        infos = [{**info, 'scene_name': names[info['token']]['scene_name']} for info in infos]
    members = defaultdict(list)
    for index, info in enumerate(infos):
        members[info['scene_name']].append(index)
    return [_Scene(name, indices, _fingerprint([infos[index] for index in indices], sweeps_num))
            for name, indices in members.items()]


def _fingerprint(infos: Sequence[dict], sweeps_num: int) -> str:
    """What the objects of a scene depend on."""
    facts: List[Any] = [RECORD_FORM, sweeps_num]
    facts += [[info.get(key) for key in _CONTENT] for info in infos]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _is_done(database: Path, scene: _Scene) -> bool:
    try:
        kept = read_pickle(database / scene.name / _SCENE_INFOS)
    except DataError:  # none, or cut short by a power failure
        return False
    return kept['fingerprint'] == scene.fingerprint


def _cut_scene(cutter: _Cutter, scene: _Scene) -> None:
    """Write the folder of a scene aside and put it in place when it is whole."""
    target = cutter.folder / scene.name
    aside = cutter.folder / f'.{scene.name}.{os.getpid()}.tmp'
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    objects = [info for number, index in enumerate(scene.indices)
               for info in _cut_sample(cutter, index, aside, target, number)]
    write_pickle(dict(fingerprint=scene.fingerprint, objects=objects), aside / _SCENE_INFOS)
    if target.is_dir():  # of other settings
        shutil.rmtree(target)
    os.replace(aside, target)


def _cut_sample(cutter: _Cutter, index: int, aside: Path, target: Path, number: int) -> List[dict]:
    """Write the objects of the `number`-th key frame of a scene; their infos."""
    sample = cutter.dataset.get_data_info(index)
    truth = sample['ann_info']
    boxes = truth['gt_bboxes_3d'].tensor
    points = cutter.load_points(sample)['points'].tensor
    point, box = points_in_boxes(points, boxes)
    order = box.argsort(stable=True)
    clouds = points[point[order]].numpy().astype('<f4')
    clouds[:, :3] -= boxes[box[order], :3].numpy()
    counts = box.bincount(minlength=len(boxes)).tolist()

    infos, first = [], 0
    classes = cutter.dataset.metainfo['classes']
    for place, (label, count) in enumerate(zip(truth['gt_labels_3d'], counts, strict=True)):
        if not count:
            continue
        name = f'{number:03d}_{classes[label]}_{place}.bin'
        clouds[first:first + count].tofile(aside / name)
        first += count
        infos.append(dict(
            name=classes[label], path=f'{cutter.folder.name}/{target.name}/{name}',
            image_idx=sample['sample_idx'], gt_idx=place, box3d_lidar=boxes[place].numpy().copy(),
            num_points_in_gt=count, difficulty=0, token=sample['token']))
    return infos


def _merge(database: Path, scenes: Sequence[_Scene]) -> Dict[str, List[dict]]:
    """The infos of all objects by class, numbered."""
    merged: Dict[str, List[dict]] = defaultdict(list)
    group = 0
    for scene in scenes:
        for info in read_pickle(database / scene.name / _SCENE_INFOS)['objects']:
            merged[info['name']].append({**info, 'group_id': group})
            group += 1
    return {name: merged[name] for name in DETECTION_CLASSES if name in merged}
