"""What a config asks for and is not there is said when the dataset is built, in one line."""
import copy
import shutil
from pathlib import Path

import pytest
from mmdet3d.registry import DATASETS

from bevfusion_enhanced.datasets import pipeline_checks
from bevfusion_enhanced.datasets.info_files import read_info_file, write_info_file
from bevfusion_enhanced.datasets.vocabulary import MAP_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError


@pytest.fixture
def root(mini_nuscenes, tmp_path) -> Path:
    """A root whose maps and info files may be changed."""
    root = tmp_path / 'data'
    root.mkdir()
    for name in ('samples', 'sweeps', 'v1.0-mini'):
        (root / name).symlink_to(mini_nuscenes / name)
    shutil.copytree(mini_nuscenes / 'maps', root / 'maps')
    for name in ('infos.pkl', 'all.pkl'):
        shutil.copy(mini_nuscenes / 'nuscenes_infos_train.pkl', root / name)
    return root


def change(root: Path, edit) -> None:
    content = copy.deepcopy(read_info_file(root / 'infos.pkl'))
    edit(content['data_list'])
    write_info_file(content, root / 'infos.pkl')


def build(root: Path, *, sweeps_num: int = 2, map_classes=MAP_CLASSES, **settings):
    pipeline = [dict(type='LoadPointsWithSweeps', sweeps_num=sweeps_num),
                dict(type='LoadBEVMapMasks', data_root=str(root), classes=map_classes,
                     xbound=[-50, 50, 0.5], ybound=[-50, 50, 0.5])]
    return DATASETS.build({**dict(
        type='NuScenesMultiTaskDataset', data_root=str(root), ann_file='infos.pkl',
        pipeline=pipeline, metainfo=dict(map_classes=MAP_CLASSES), modality=dict(use_lidar=True)),
        **settings})


def without_sweeps(infos: list) -> None:
    for info in infos:
        info.pop('lidar_sweeps', None)


def elsewhere(infos: list) -> None:
    infos[-1]['location'] = 'moon-base'


def without_boxes(infos: list) -> None:
    for info in infos[:3]:
        info['instances'] = []


def last_box_is_a_cone(infos: list) -> None:
    without_boxes(infos)
    box = next(box for box in infos[3]['instances'] if box['num_lidar_pts'])
    infos[3]['instances'] = [{**box, 'bbox_label': 8, 'bbox_label_3d': 8}]


@pytest.mark.parametrize('edit, settings, error, message', [
    (without_sweeps, {}, DataError, 'asks for 2 sweeps, but info file .* lists none; set sweeps_'),
    (elsewhere, {}, DataError, "no vector map of location 'moon-base'"),
    (without_boxes, dict(filter_empty_gt=True, indices=3), DataError,
     'none of 3 samples has a valid box'),
    (last_box_is_a_cone, dict(filter_empty_gt=True, metainfo=dict(classes=['car', 'bus'])),
     DataError, r"none of 4 samples has a valid box of \['car', 'bus'\]"),
    (None, dict(indices=0), DataError, 'no sample of info file .* indices is 0'),
    (None, dict(indices=[]), DataError, r'no sample of info file .* indices is \[\]'),
    (None, dict(map_classes=MAP_CLASSES[::-1]), ConfigError,
     r'LoadBEVMapMasks\.classes is .*make them agree, in order too')])
def test_one_line_at_construction(root, edit, settings, error, message):
    if edit:
        change(root, edit)
    with pytest.raises(error, match=message) as caught:
        build(root, **settings)
    assert '\n' not in str(caught.value)


def first_of_its_scene(infos: list) -> None:
    del infos[1:]


def test_what_is_enough(root):
    change(root, first_of_its_scene)
    assert len(build(root)) == 1
    shutil.copy(root / 'all.pkl', root / 'infos.pkl')
    change(root, last_box_is_a_cone)
    assert len(build(root, filter_empty_gt=True)) == 4
    assert len(build(root, filter_empty_gt=True, indices=[3])) == 1
    change(root, without_sweeps)
    assert len(build(root, sweeps_num=0)) == 4


def test_a_sweep_that_is_not_on_disk(root, mini_nuscenes):
    (root / 'sweeps').unlink()
    with pytest.raises(DataError, match='sweep .*/LIDAR_TOP/.* does not exist; unpack the sw'):
        build(root)
    build(root, sweeps_num=0)


def test_fewer_sweeps_than_asked_for_are_told(root, monkeypatch):
    told = []
    monkeypatch.setattr(pipeline_checks, 'print_log', lambda message, **_: told.append(message))
    build(root)
    assert not told
    change(root, lambda infos: [info.update(lidar_sweeps=info.get('lidar_sweeps', [])[:1])
                                for info in infos])
    build(root)
    assert len(told) == 1 and 'asks for 2 sweeps, but no sample' in told[0]
