"""The GT database: what is cut out, how it is read, and that a run that was stopped goes on."""
import copy
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.datasets.transforms.dbsampler import DataBaseSampler

from bevfusion_enhanced.datasets import object_database_writer
from bevfusion_enhanced.datasets.box_points import points_in_boxes, points_near_boxes
from bevfusion_enhanced.datasets.info_files import read_info_file, read_pickle, write_info_file
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.datasets.object_database import read_object_database
from bevfusion_enhanced.datasets.object_database_writer import create_object_database
from bevfusion_enhanced.datasets.transforms.loading import LoadPointsWithSweeps
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.ops.rotated_boxes import points_in_boxes_all


def create(root: Path, out: Path, **settings):
    return create_object_database(**{**dict(
        root_path=root, info_file=root / 'nuscenes_infos_train.pkl', out_dir=out, sweeps_num=2),
        **settings})


@pytest.fixture(scope='module')
def database(mini_nuscenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('database')
    create(mini_nuscenes, out)
    return out


def both_splits(root: Path, path: Path) -> Path:
    """An info file of both scenes."""
    content = read_info_file(root / 'nuscenes_infos_train.pkl')
    content['data_list'] += read_info_file(root / 'nuscenes_infos_val.pkl')['data_list']
    write_info_file(content, path)
    return path


def files_of(folder: Path) -> dict:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def test_points_near_boxes_lose_none():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20000, 3, generator=generator) * torch.tensor([100, 100, 4.0])
    boxes = torch.rand(40, 7, generator=generator) * torch.tensor([90, 90, 1, 12, 4, 3, 6.0])
    boxes = torch.cat([boxes, torch.tensor([[-500.0, 900, 0, 3, 3, 3, 0]])])
    points[:2] = float('nan')
    point, box = points_in_boxes(points, boxes)
    expected = points_in_boxes_all(points, boxes).nonzero()
    assert len(expected) > 200 and torch.equal(torch.stack([point, box], 1), expected)
    assert len(points_near_boxes(points, boxes)) < 0.8 * len(points)
    for empty in (points_in_boxes(points[:0], boxes), points_in_boxes(points, boxes[:0])):
        assert len(empty[0]) == len(empty[1]) == 0


def test_every_object_has_the_points_of_its_box(mini_nuscenes, database):
    objects = read_pickle(database / 'nuscenes_dbinfos_train.pkl')
    dataset = NuScenesMultiTaskDataset(
        data_root=str(mini_nuscenes), ann_file='nuscenes_infos_train.pkl',
        modality=dict(use_lidar=True))
    load = LoadPointsWithSweeps(sweeps_num=2)
    count = 0
    for name, infos in objects.items():
        for info in infos:
            sample = dataset.get_data_info(info['image_idx'])
            box = sample['ann_info']['gt_bboxes_3d'].tensor[info['gt_idx']]
            assert DETECTION_CLASSES[sample['ann_info']['gt_labels_3d'][info['gt_idx']]] == name
            np.testing.assert_array_equal(info['box3d_lidar'], box)
            points = load(sample)['points'].tensor
            expected = points[points_in_boxes_all(points[:, :3], box[None, :7])[:, 0]].numpy()
            stored = np.fromfile(database / info['path'], '<f4').reshape(-1, 5)
            assert len(stored) == info['num_points_in_gt'] > 0
            np.testing.assert_allclose(stored[:, :3] + box[:3].numpy(), expected[:, :3], atol=1e-5)
            np.testing.assert_array_equal(stored[:, 3:], expected[:, 3:])
            count += 1
    assert count > 20
    groups = [info['group_id'] for infos in objects.values() for info in infos]
    assert sorted(groups) == list(range(count))


def test_ignored_categories_are_left_out(mini_nuscenes, tmp_path):
    """MMDetection3D's script stores them as the last class, which is barrier."""
    content = copy.deepcopy(read_info_file(mini_nuscenes / 'nuscenes_infos_train.pkl'))
    content['data_list'] = content['data_list'][:2]
    cars = 0
    for info in content['data_list']:
        for instance in info['instances']:
            if instance['bbox_label_3d'] == content['metainfo']['categories']['car']:
                instance['bbox_label'] = instance['bbox_label_3d'] = -1
                cars += 1
    write_info_file(content, tmp_path / 'infos.pkl')
    both = [create(mini_nuscenes, tmp_path / name, info_file=file).objects for name, file in (
        ('with', tmp_path / 'infos.pkl'), ('all', mini_nuscenes / 'nuscenes_infos_train.pkl'))]
    assert cars and 'car' in both[1] and 'car' not in both[0]
    assert both[0].get('barrier', 0) <= both[1]['barrier']


def test_mmdetection3d_pastes_from_it(database, monkeypatch):
    monkeypatch.setattr(np, 'long', np.int64, raising=False)  # its code is of NumPy before 1.24
    path = database / 'nuscenes_dbinfos_train.pkl'
    name = max(read_pickle(path).items(), key=lambda item: len(item[1]))[0]
    sampler = DataBaseSampler(
        info_path=str(path), data_root=str(database), rate=1.0, sample_groups={name: 3},
        prepare=dict(filter_by_min_points={name: 5}), classes=list(DETECTION_CLASSES),
        points_loader=dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5))
    pasted = sampler.sample_all(np.zeros((0, 9), np.float32), np.zeros(0, np.int64))
    boxes = torch.from_numpy(pasted['gt_bboxes_3d'])
    inside = points_in_boxes_all(pasted['points'].tensor[:, :3], boxes[:, :7])
    assert len(boxes) and inside.any(1).float().mean() > 0.99


def test_infos_of_mmdetection3d(mini_nuscenes, database, tmp_path):
    """Its infos do not say the scene, which is looked up."""
    content = copy.deepcopy(read_info_file(mini_nuscenes / 'nuscenes_infos_train.pkl'))
    for info in content['data_list']:
        for key in ('scene_name', 'scene_token', 'location', 'prev', 'next'):
            info.pop(key, None)
    write_info_file(content, tmp_path / 'infos.pkl')
    create(mini_nuscenes, tmp_path, info_file=tmp_path / 'infos.pkl')
    assert files_of(tmp_path / 'nuscenes_gt_database').keys() == files_of(
        database / 'nuscenes_gt_database').keys()


def test_a_second_run_and_other_settings(mini_nuscenes, tmp_path):
    assert create(mini_nuscenes, tmp_path).scenes_cut == 1
    before = files_of(tmp_path)
    assert create(mini_nuscenes, tmp_path, workers=2).scenes_cut == 0
    assert files_of(tmp_path) == before
    assert create(mini_nuscenes, tmp_path, sweeps_num=0).scenes_cut == 1
    sizes = [sum(len(content) for name, content in files.items() if name.endswith('.bin'))
             for files in (before, files_of(tmp_path))]
    assert sizes[1] < sizes[0]
    (tmp_path / 'nuscenes_gt_database' / 'scene-0061' / 'objects.pkl').write_bytes(b'cut')
    assert create(mini_nuscenes, tmp_path, sweeps_num=0).scenes_cut == 1


def test_a_killed_run_goes_on(mini_nuscenes, tmp_path):
    infos = both_splits(mini_nuscenes, tmp_path / 'infos.pkl')
    out = tmp_path / 'out'
    cut_sample = object_database_writer._cut_sample

    def slow_second_scene(cutter, index, *rest):
        objects = cut_sample(cutter, index, *rest)
        if index > 4:  # in the middle of the second scene
            time.sleep(60)
        return objects

    def stopped() -> None:
        object_database_writer._cut_sample = slow_second_scene
        create(mini_nuscenes, out, info_file=infos)

    process = multiprocessing.get_context('fork').Process(target=stopped)
    process.start()
    folder = out / 'nuscenes_gt_database'
    deadline = time.monotonic() + 60
    while not list(folder.glob('.*.tmp/001_*')) or not (folder / 'scene-0061').is_dir():
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (folder / 'scene-0103').exists()
    assert not (out / 'nuscenes_dbinfos_train.pkl').exists()

    assert create(mini_nuscenes, out, info_file=infos).scenes_cut == 1
    create(mini_nuscenes, tmp_path / 'whole', info_file=infos)
    assert files_of(out) == files_of(tmp_path / 'whole')


def test_reading(database, tmp_path):
    path = database / 'nuscenes_dbinfos_train.pkl'
    content = read_pickle(path)

    def read(file=path, folder=database, classes=DETECTION_CLASSES, **settings):
        return read_object_database(file, folder=folder, classes=classes,
                                    **{**dict(min_points={}), **settings})

    whole = read()
    np.testing.assert_array_equal(whole.counts, [len(content.get(name, ()))
                                                 for name in DETECTION_CLASSES])
    chosen = np.array([len(whole.boxes) - 1, 0])
    points, owner = whole.points(chosen)
    assert whole.labels(chosen).tolist() == [np.flatnonzero(whole.counts)[-1],
                                             np.flatnonzero(whole.counts)[0]]
    for place, index in enumerate(chosen):
        inside = points_in_boxes_all(torch.from_numpy(points[owner == place, :3]),
                                     torch.from_numpy(whole.boxes[index:index + 1, :7]))
        assert inside.float().mean() > 0.99
    assert len(whole.points(chosen[:0])[0]) == 0
    many = read(min_points=dict.fromkeys(DETECTION_CLASSES, 20))
    assert 0 < len(many.boxes) < len(whole.boxes)

    for settings, message in (
            (dict(file=tmp_path / 'none.pkl'), r'none\.pkl: No such file.*--gt-database'),
            (dict(folder=tmp_path), 'does not exist; set data_root'),
            (dict(min_points=dict.fromkeys(DETECTION_CLASSES, 10 ** 6)), 'no object with enough'),
            (dict(classes=['']), 'no object with enough points')):
        with pytest.raises(DataError, match=message) as caught:
            read(**settings)
        assert '\n' not in str(caught.value)


def test_a_spoilt_object_says_so(mini_nuscenes, tmp_path):
    create(mini_nuscenes, tmp_path)
    database = read_object_database(tmp_path / 'nuscenes_dbinfos_train.pkl', folder=tmp_path,
                                    classes=DETECTION_CLASSES, min_points={})
    path = tmp_path / os.fsdecode(database.paths[0])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match='bytes, not a multiple of 20'):
        database.points(np.array([0]))
    path.unlink()
    with pytest.raises(DataError, match='No such file'):
        database.points(np.array([0]))


def test_wrong_requests(mini_nuscenes, tmp_path):
    with pytest.raises(ConfigError, match='workers 0'):
        create(mini_nuscenes, tmp_path, workers=0)
    content = read_info_file(mini_nuscenes / 'nuscenes_infos_train.pkl')
    for info in content['data_list']:
        info['instances'] = []
    write_info_file(content, tmp_path / 'infos.pkl')
    with pytest.raises(DataError, match='no object of its 1 scenes'):
        create(mini_nuscenes, tmp_path, info_file=tmp_path / 'infos.pkl')


@pytest.mark.needs_shared
def test_a_real_frame_has_as_many_points_as_nuscenes_counted(shared, tmp_path):
    source = shared / 'nuscenes_sample'
    content = read_info_file(next(source.glob('*.pkl')))
    content['data_list'][0]['scene_name'] = 'scene-0061'
    write_info_file(content, tmp_path / 'infos.pkl')
    (tmp_path / 'samples').mkdir()
    (tmp_path / 'samples' / 'LIDAR_TOP').symlink_to(source)
    create(tmp_path, tmp_path, info_file=tmp_path / 'infos.pkl', sweeps_num=0)
    instances = [box for box in content['data_list'][0]['instances']
                 if box['bbox_label_3d'] >= 0 and box['bbox_3d_isvalid']]
    counted = np.array([box['num_lidar_pts'] for box in instances])
    cut = np.zeros(len(instances), dtype=int)
    for infos in read_pickle(tmp_path / 'nuscenes_dbinfos_train.pkl').values():
        for info in infos:
            cut[info['gt_idx']] = info['num_points_in_gt']
    assert counted.sum() > 100
    # nuScenes counted within the box itself, which is tilted against the LiDAR's vertical.
    assert (cut == counted).mean() > 0.8
    assert np.abs(cut - counted).sum() < 0.05 * counted.sum()
