import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.models import Det3DDataPreprocessor
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from bevfusion_enhanced.datasets.info_files import read_info_file, write_info_file
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES, MAP_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError

REAL_INFOS = 'n015-2018-07-24-11-22-45+0800.pkl'
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]


def pipeline_of(root: Path, train: bool, with_map: bool = True, **images) -> list:
    images = {**dict(final_dim=(64, 176), resize_lim=(1.2, 1.2)), **images}
    augmentations = [
        dict(type='BEVFusionGlobalRotScaleTrans', rot_range=[-0.78, 0.78],
             scale_ratio_range=[0.9, 1.1], translation_std=0.5),
        dict(type='BEVFusionRandomFlip3D')] if train else []
    map_masks = [dict(type='LoadBEVMapMasks', data_root=str(root), classes=MAP_CLASSES,
                      xbound=[-50, 50, 0.5], ybound=[-50, 50, 0.5])] if with_map else []
    return [
        dict(type='LoadMultiViewImages'), dict(type='LoadPointsWithSweeps', sweeps_num=2),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        dict(type='ImageAug3D', is_train=train, **images), *augmentations, *map_masks,
        dict(type='PointsRangeFilter', point_cloud_range=RANGE),
        dict(type='ObjectRangeFilter', point_cloud_range=RANGE),
        dict(type='ObjectNameFilter', classes=DETECTION_CLASSES),
        dict(type='BEVFusionPointShuffle'),
        dict(type='PackBEVFusionInputs')]


def build(root: Path, split: str = 'train', **settings) -> NuScenesMultiTaskDataset:
    settings = {**dict(ann_file=f'nuscenes_infos_{split}.pkl', test_mode=split == 'val',
                       metainfo=dict(map_classes=MAP_CLASSES)), **settings}
    settings.setdefault('pipeline', pipeline_of(root, train=split == 'train'))
    return DATASETS.build(dict(type='NuScenesMultiTaskDataset', data_root=str(root), **settings))


def test_training_sample(mini_nuscenes):
    np.random.seed(0)
    packed = build(mini_nuscenes)[2]
    inputs, sample = packed['inputs'], packed['data_samples']
    assert inputs['img'].shape == (6, 3, 64, 176) and inputs['img'].dtype == torch.uint8
    assert inputs['points'].shape[1] == 5 and inputs['points'].dtype == torch.float32
    assert len(inputs['points'][:, 4].unique()) == 3  # key frame and two sweeps
    assert sample.gt_instances_3d.bboxes_3d.tensor.shape[1] == 9
    assert len(sample.gt_instances_3d.labels_3d) == len(sample.gt_instances_3d.bboxes_3d) > 0
    assert sample.gt_bev_map.masks.shape == (6, 200, 200)
    assert sample.gt_bev_map.masks.dtype == torch.uint8 and sample.gt_bev_map.masks[0].any()
    for name in ('cam2img', 'lidar2cam', 'cam2lidar', 'lidar2img', 'img_aug_matrix'):
        assert getattr(sample, name).shape == (6, 4, 4)
        assert getattr(sample, name).dtype == np.float32
    assert sample.lidar_aug_matrix.shape == (4, 4)
    assert not np.allclose(sample.lidar_aug_matrix, np.eye(4))
    assert sample.num_pts_feats == 5 and sample.token and sample.sample_idx == 2
    assert len(sample.img_path) == 6 and Path(sample.lidar_path).is_file()


def test_evaluation_sample_has_truth_and_no_augmentation(mini_nuscenes):
    dataset = build(mini_nuscenes, 'val')
    first, second = dataset[1], dataset[1]
    assert torch.equal(first['inputs']['img'], second['inputs']['img'])
    assert len(first['data_samples'].gt_instances_3d.labels_3d) > 0
    np.testing.assert_array_equal(first['data_samples'].lidar_aug_matrix, np.eye(4))


def test_evaluation_without_truth(mini_nuscenes):
    about_boxes = ('LoadAnnotations3D', 'ObjectRangeFilter', 'ObjectNameFilter')
    pipeline = [step for step in pipeline_of(mini_nuscenes, train=False, with_map=False)
                if step['type'] not in about_boxes]
    sample = build(mini_nuscenes, 'val', pipeline=pipeline, metainfo={})[0]['data_samples']
    assert 'gt_instances_3d' not in sample and 'gt_bev_map' not in sample


@pytest.mark.parametrize('modality, absent', [(dict(use_lidar=True), 'img'),
                                              (dict(use_camera=True), 'points')])
def test_one_modality(mini_nuscenes, modality, absent):
    skip = {'img': ('LoadMultiViewImages', 'ImageAug3D'),
            'points': ('LoadPointsWithSweeps', 'PointsRangeFilter',
                       'BEVFusionPointShuffle')}[absent]
    pipeline = [step for step in pipeline_of(mini_nuscenes, train=True) if step['type'] not in skip]
    packed = build(mini_nuscenes, modality=modality, pipeline=pipeline)[1]
    assert absent not in packed['inputs'] and len(packed['inputs']) == 1
    assert not np.allclose(packed['data_samples'].lidar_aug_matrix, np.eye(4))


def test_boxes_and_points_agree(mini_nuscenes):
    """Cars hold LiDAR points, before and after augmentation."""
    np.random.seed(3)
    for split in ('train', 'val'):
        packed = build(mini_nuscenes, split)[1]
        truth, points = packed['data_samples'].gt_instances_3d, packed['inputs']['points']
        key_points = points[points[:, 4] == 0, :3]
        cars = truth.bboxes_3d.tensor[truth.labels_3d == 0]
        cars = cars[cars[:, :2].norm(dim=1) < 25]
        assert len(cars)
        for x, y, z, length, width, height, yaw in cars[:, :7]:
            local = key_points - torch.stack([x, y, z])
            along = local[:, 0] * yaw.cos() + local[:, 1] * yaw.sin()
            across = local[:, 1] * yaw.cos() - local[:, 0] * yaw.sin()
            inside = ((along.abs() < length / 2 + 0.1) & (across.abs() < width / 2 + 0.1)
                      & (local[:, 2] > 0) & (local[:, 2] < height + 0.1))
            assert inside.any()


def test_workers_and_preprocessor_take_the_batch(mini_nuscenes):
    loader = DataLoader(build(mini_nuscenes), batch_size=2, num_workers=1,
                        collate_fn=pseudo_collate)
    batch = next(iter(loader))
    preprocessor = Det3DDataPreprocessor(mean=[123.675, 116.28, 103.53], std=[58.4, 57.1, 57.4],
                                         pad_size_divisor=16)
    processed = preprocessor(batch, training=True)
    assert processed['inputs']['imgs'].shape == (2, 6, 3, 64, 176)
    assert processed['inputs']['imgs'].dtype == torch.float32
    assert [points.shape[1] for points in processed['inputs']['points']] == [5, 5]


def test_labels_follow_the_class_list(mini_nuscenes):
    everything = build(mini_nuscenes, 'val', pipeline=[], metainfo={})
    some = build(mini_nuscenes, 'val', pipeline=[], metainfo=dict(classes=['pedestrian', 'car']))
    for index in range(len(everything)):
        all_truth = everything.get_data_info(index)['ann_info']
        truth = some.get_data_info(index)['ann_info']
        for label, name in enumerate(['pedestrian', 'car']):
            chosen = all_truth['gt_labels_3d'] == DETECTION_CLASSES.index(name)
            assert torch.equal(all_truth['gt_bboxes_3d'].tensor[chosen],
                               truth['gt_bboxes_3d'].tensor[truth['gt_labels_3d'] == label])
        assert set(truth['gt_labels_3d']) <= {0, 1}


def test_mmdetection3d_reads_our_infos_alike(mini_nuscenes):
    ours = build(mini_nuscenes, 'val', pipeline=[], metainfo={})
    theirs = NuScenesDataset(
        data_root=str(mini_nuscenes), ann_file='nuscenes_infos_val.pkl', test_mode=False,
        metainfo=dict(classes=list(DETECTION_CLASSES), version='v1.0-mini'), use_valid_flag=True,
        modality=dict(use_lidar=True, use_camera=True),
        data_prefix=dict(pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP',
                         CAM_FRONT='samples/CAM_FRONT'))
    for index in range(len(ours)):
        mine, other = ours.get_data_info(index), theirs.get_data_info(index)
        keep = other['ann_info']['gt_labels_3d'] >= 0
        assert torch.equal(mine['ann_info']['gt_bboxes_3d'].tensor,
                           other['ann_info']['gt_bboxes_3d'].tensor[keep])
        np.testing.assert_array_equal(mine['ann_info']['gt_labels_3d'],
                                      other['ann_info']['gt_labels_3d'][keep])
        assert mine['lidar_path'] == other['lidar_path']
        assert mine['images']['CAM_FRONT']['img_path'] == other['images']['CAM_FRONT']['img_path']
        assert [sweep['lidar_points']['lidar_path'] for sweep in mine['lidar_sweeps']] == [
            sweep['lidar_points']['lidar_path'] for sweep in other.get('lidar_sweeps', [])]


@pytest.fixture
def foreign(mini_nuscenes, tmp_path) -> Path:
    """A root whose info file is as MMDetection3D's script writes it, in a folder named samples."""
    root = tmp_path / 'my_samples'
    root.mkdir()
    for name in ('samples', 'sweeps', 'maps'):
        (root / name).symlink_to(mini_nuscenes / name)
    shutil.copytree(mini_nuscenes / 'v1.0-mini', root / 'v1.0-mini')
    content = read_info_file(mini_nuscenes / 'nuscenes_infos_val.pkl')
    for info in content['data_list']:
        for key in ('location', 'scene_token', 'scene_name', 'prev', 'next'):
            del info[key]
        for sweep in info.get('lidar_sweeps', []):
            sweep['lidar_points']['lidar_path'] = f"{root}/{sweep['lidar_points']['lidar_path']}"
    write_info_file(content, root / 'nuscenes_infos_val.pkl')
    return root


def test_infos_of_mmdetection3d_are_accepted(foreign, mini_nuscenes):
    theirs, ours = build(foreign, 'val')[2], build(mini_nuscenes, 'val')[2]
    assert torch.equal(theirs['data_samples'].gt_bev_map.masks,
                       ours['data_samples'].gt_bev_map.masks)
    assert len(theirs['inputs']['points']) == len(ours['inputs']['points'])


def test_locations_that_cannot_be_looked_up(foreign):
    (foreign / 'v1.0-mini' / 'log.json').unlink()
    with pytest.raises(DataError, match=r'no map locations.*log\.json.*create_data') as caught:
        build(foreign, 'val')
    assert '\n' not in str(caught.value)
    build(foreign, 'val', metainfo={}, pipeline=pipeline_of(foreign, False, with_map=False))


@pytest.mark.parametrize('serialize_data', [True, False])
def test_samples_are_not_shared_between_reads(mini_nuscenes, serialize_data):
    dataset = build(mini_nuscenes, serialize_data=serialize_data)
    before = dataset.get_data_info(0)['ann_info']['gt_bboxes_3d'].tensor.clone()
    dataset[0]
    after = dataset.get_data_info(0)
    assert torch.equal(after['ann_info']['gt_bboxes_3d'].tensor, before)
    assert 'img' not in after and 'points' not in after


def test_frames_without_boxes(mini_nuscenes, tmp_path):
    content = copy.deepcopy(read_info_file(mini_nuscenes / 'nuscenes_infos_train.pkl'))
    for info in content['data_list'][:3]:
        info['instances'] = []
    path = tmp_path / 'infos.pkl'
    write_info_file(content, path)
    kept = build(mini_nuscenes, ann_file=str(path))[0]['data_samples']
    assert kept.gt_instances_3d.bboxes_3d.tensor.shape == (0, 9) and kept.sample_idx == 0
    replaced = build(mini_nuscenes, ann_file=str(path), filter_empty_gt=True)[0]['data_samples']
    assert replaced.sample_idx == 3


@pytest.mark.parametrize('settings, error, message', [
    (dict(metainfo=dict(classes=['car', 'truk'])), ConfigError, r"metainfo\.classes: \['truk'\]"),
    (dict(metainfo=dict(map_classes=['road'])), ConfigError, r"metainfo\.map_classes: \['road'\]"),
    (dict(metainfo=dict(version='v1.0-trainval')), DataError, 'is of v1.0-mini'),
    (dict(modality=dict(use_cam=True)), ConfigError, 'modality is .*use_camera and use_lidar'),
    (dict(modality=dict(use_camera=False, use_lidar=False)), ConfigError, 'modality'),
    (dict(ann_file='none.pkl'), DataError, r'none\.pkl: No such file.*tools/create_data\.py'),
    (dict(data_prefix=dict(pts='here', img='there')), DataError, 'check data_root and data_prefix'),
])
def test_wrong_settings_stop_at_construction(mini_nuscenes, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        build(mini_nuscenes, **settings)
    assert '\n' not in str(caught.value)


def test_missing_root_and_maps(mini_nuscenes, tmp_path):
    with pytest.raises(DataError, match='is not a folder'):
        build(tmp_path / 'nowhere', pipeline=[])
    with pytest.raises(DataError, match='no vector maps: .*expansion does not exist'):
        build(tmp_path, ann_file=str(mini_nuscenes / 'nuscenes_infos_train.pkl'))


def test_infos_that_do_not_fit(mini_nuscenes, tmp_path):
    content = read_info_file(mini_nuscenes / 'nuscenes_infos_train.pkl')
    path = tmp_path / 'infos.pkl'
    for change, message in (
            (lambda infos: infos['data_list'].clear(), 'holds no samples'),
            (lambda infos: infos['metainfo']['categories'].pop('bus'), r"no category \['bus'\]"),
            (lambda infos: infos['data_list'][0].pop('images'), "a sample has no 'images'")):
        changed = copy.deepcopy(content)
        change(changed)
        write_info_file(changed, path)
        with pytest.raises(DataError, match=message):
            build(mini_nuscenes, ann_file=str(path))


@pytest.mark.needs_shared
def test_real_frame_equals_the_reference_pipeline(shared):
    left_out = ('BEVFusionPointShuffle', 'PointsRangeFilter', 'ObjectRangeFilter')
    dataset = NuScenesMultiTaskDataset(
        data_root=str(shared / 'nuscenes_sample'), ann_file=REAL_INFOS,
        data_prefix=dict(pts='', sweeps='', img=''),
        pipeline=[step for step in pipeline_of(shared, False, False, resize_lim=(0.12, 0.12))
                  if step['type'] not in left_out])
    packed = dataset[0]
    inputs, sample = packed['inputs'], packed['data_samples']
    golden = np.load(shared / 'parity' / 'real_frame_small.npz')
    for name in ('lidar2img', 'cam2img', 'cam2lidar', 'img_aug_matrix', 'lidar_aug_matrix'):
        np.testing.assert_allclose(getattr(sample, name), golden[name], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(inputs['points'].numpy(), golden['points'])
    np.testing.assert_allclose(sample.gt_instances_3d.bboxes_3d.tensor, golden['gt_boxes'],
                               rtol=1e-6)
    np.testing.assert_array_equal(sample.gt_instances_3d.labels_3d.numpy(), golden['gt_labels'])
    mean = np.array([123.675, 116.28, 103.53])[:, None, None]
    std = np.array([58.395, 57.12, 57.375])[:, None, None]
    # Another filter than the reference's, in the same place: grey levels of 255.
    assert np.abs(inputs['img'].numpy() - (golden['img'] * std + mean)).mean() < 1.5
