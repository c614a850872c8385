"""CBGS draws the same samples wherever it is built, and rare classes as often as common ones."""
import copy

import numpy as np
import pytest
from mmdet3d.datasets import CBGSDataset
from mmdet3d.registry import DATASETS

from bevfusion_enhanced.datasets.class_balance import SeededCBGSDataset
from bevfusion_enhanced.datasets.info_files import read_info_file, write_info_file
from bevfusion_enhanced.datasets.vocabulary import INFO_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError


@pytest.fixture(scope='module')
def rare(mini_nuscenes, tmp_path_factory) -> dict:
    """200 samples: pedestrians in all, a bus in every tenth, and no other class."""
    content = read_info_file(mini_nuscenes / 'nuscenes_infos_train.pkl')
    info = content['data_list'][0]
    box = next(instance for instance in info['instances'] if instance['num_lidar_pts'] > 0)
    boxes = {name: {**box, 'bbox_label': INFO_CLASSES.index(name), 'bbox_3d_isvalid': True,
                    'bbox_label_3d': INFO_CLASSES.index(name)} for name in ('pedestrian', 'bus')}
    content['data_list'] = [
        {**copy.copy(info), 'sample_idx': index, 'instances': [boxes['pedestrian']]
         + [boxes['bus']] * (index % 10 == 0)} for index in range(200)]
    path = tmp_path_factory.mktemp('rare') / 'infos.pkl'
    write_info_file(content, path)
    return dict(type='NuScenesMultiTaskDataset', data_root=str(mini_nuscenes), ann_file=str(path),
                pipeline=[], modality=dict(use_lidar=True))


def build(dataset: dict, **settings) -> SeededCBGSDataset:
    return DATASETS.build(dict(type='SeededCBGSDataset', dataset=dataset, **settings))


def test_shares_and_repeatability(rare):
    np.random.seed(0)
    balanced = build(rare)
    buses = np.array([index % 10 == 0 for index in balanced.sample_indices])
    assert len(balanced) == 220  # 200 with a pedestrian, 20 with a bus: 110 are drawn of each
    assert buses[:110].all() and 0 < buses[110:].mean() < 0.25
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    assert build(rare).sample_indices == balanced.sample_indices
    assert (np.random.get_state()[1] == state).all()
    assert build(rare, seed=1).sample_indices != balanced.sample_indices
    assert balanced[5]['sample_idx'] == balanced.sample_indices[5]
    assert isinstance(balanced, CBGSDataset) and balanced.get_cat_ids(0) == {3, 8}


def test_another_pipeline(rare):
    """What is given stays as it is."""
    before = copy.deepcopy(rare)
    step = dict(type='LoadPointsWithSweeps', sweeps_num=0)
    balanced = build(rare, pipeline=[step])
    assert 'points' in balanced[0] and 'points' not in build(rare)[0]
    assert rare == before
    with pytest.raises(ConfigError, match='pipeline is for a dataset that is still a config'):
        SeededCBGSDataset(DATASETS.build(rare), pipeline=[step])


def test_absent_classes(rare):
    with pytest.raises(ZeroDivisionError):
        CBGSDataset(copy.deepcopy(rare))
    with pytest.raises(DataError, match=r'none of the 200 samples has a valid box .*no samples'):
        build(dict(rare, metainfo=dict(classes=['truck', 'car'])))
