"""Pasting objects: what is pasted fits the scan, the boxes and the map, and ends when it should."""
import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from mmdet3d.registry import DATASETS
from mmdet3d.structures.points import LiDARPoints

from bevfusion_enhanced.datasets.map_masks import LAYERS, load_vector_map, map_file
from bevfusion_enhanced.datasets.object_database_writer import create_object_database
from bevfusion_enhanced.datasets.transforms.object_sample import BEVFusionObjectSample
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES, MAP_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.ops.rotated_boxes import bev_overlap, points_in_boxes_all

GROUPS = dict.fromkeys(DETECTION_CLASSES, 25)
SWEEPS = 2


@pytest.fixture(scope='module')
def objects(mini_nuscenes, tmp_path_factory) -> Path:
    """Objects of the other scene, which lies in another town."""
    out = tmp_path_factory.mktemp('objects')
    create_object_database(root_path=mini_nuscenes, out_dir=out, sweeps_num=SWEEPS,
                           info_file=mini_nuscenes / 'nuscenes_infos_val.pkl')
    return out / 'nuscenes_dbinfos_train.pkl'


def paster(objects: Path, **settings) -> BEVFusionObjectSample:
    return BEVFusionObjectSample(**{**dict(
        info_path=str(objects), classes=DETECTION_CLASSES, sample_groups=GROUPS, min_points=1),
        **settings})


def pipeline_of(root: Path, *middle: dict) -> list:
    return [dict(type='LoadPointsWithSweeps', sweeps_num=SWEEPS),
            dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True), *middle,
            dict(type='LoadBEVMapMasks', data_root=str(root), classes=MAP_CLASSES,
                 xbound=[-50, 50, 0.5], ybound=[-50, 50, 0.5])]


def dataset_of(root: Path, pipeline: list):
    return DATASETS.build(dict(
        type='NuScenesMultiTaskDataset', data_root=str(root), ann_file='nuscenes_infos_train.pkl',
        pipeline=pipeline, metainfo=dict(map_classes=MAP_CLASSES), modality=dict(use_lidar=True)))


@pytest.fixture(scope='module')
def sample(mini_nuscenes) -> dict:
    dataset = dataset_of(mini_nuscenes, pipeline_of(mini_nuscenes))
    return dataset.pipeline(dataset.get_data_info(2))


def pasted_of(sample: dict, transform: BEVFusionObjectSample, seed: int = 0) -> dict:
    np.random.seed(seed)
    return transform(copy.deepcopy(sample))


def test_boxes_are_free_and_hold_their_own_points_alone(sample, objects):
    after = pasted_of(sample, paster(objects))
    known = len(sample['gt_labels_3d'])
    boxes, scan = after['gt_bboxes_3d'].tensor, after['points'].tensor
    before = sample['points'].tensor
    new = boxes[known:]
    assert len(new) >= 10 and torch.equal(boxes[:known], sample['gt_bboxes_3d'].tensor)
    assert after['gt_labels_3d'].dtype == np.int64 and len(after['gt_labels_3d']) == len(boxes)
    np.testing.assert_array_equal(after['gt_labels_3d'][:known], sample['gt_labels_3d'])

    ground = boxes[:, [0, 1, 3, 4, 6]]
    overlap = bev_overlap(ground[known:], ground)
    overlap[torch.arange(len(new)), known + torch.arange(len(new))] = 0
    assert overlap.max() < 1e-9  # rounding

    stays = ~points_in_boxes_all(before[:, :3], new[:, :7]).any(dim=1)
    added = len(scan) - int(stays.sum())
    assert torch.equal(scan[added:], before[stays])
    infos = {tuple(np.round(info['box3d_lidar'][:3], 3)): info
             for infos in pickle.loads(objects.read_bytes()).values() for info in infos}
    chosen = [infos[tuple(np.round(box[:3].numpy(), 3))] for box in new]
    assert [info['name'] for info in chosen] == [
        DETECTION_CLASSES[label] for label in after['gt_labels_3d'][known:]]
    stored = [np.fromfile(objects.parent / info['path'], '<f4').reshape(-1, 5) for info in chosen]
    oldest = float(before[:, 4].max()) + 0.025
    expected = np.concatenate([points[points[:, 4] <= oldest] + np.pad(
        info['box3d_lidar'][:3], (0, 2)) for points, info in zip(stored, chosen, strict=True)])
    np.testing.assert_allclose(scan[:added], expected, atol=1e-5)


def test_classes_are_filled_up_and_not_beyond(sample, objects):
    before = np.bincount(sample['gt_labels_3d'], minlength=10)
    full = paster(objects, sample_groups={name: int(count) for name, count in zip(
        DETECTION_CLASSES, before, strict=True)})
    assert len(pasted_of(sample, full)['gt_labels_3d']) == before.sum()
    for tries in (1, 4):
        some = paster(objects, sample_groups={'car': int(before[0]) + 3, 'bus': 1}, tries=tries)
        counts = [np.bincount(pasted_of(sample, some, seed)['gt_labels_3d'], minlength=10) - before
                  for seed in range(5)]
        assert np.max(counts, axis=0)[0] == 3 or tries == 1
        assert (np.array(counts)[:, 0] <= 3).all() and (np.array(counts)[:, 3] <= 1).all()
        assert not np.delete(np.array(counts), [0, 3], axis=1).any()
    assert len(pasted_of(sample, paster(objects, rate=0.0))['gt_labels_3d']) == before.sum()


def test_the_draw_is_of_numpys_generator(sample, objects):
    boxes = [pasted_of(sample, paster(objects), seed)['gt_bboxes_3d'].tensor for seed in (1, 1, 2)]
    assert torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[0], boxes[2])


def test_a_scan_without_sweeps_gets_no_older_points(sample, objects):
    only_key = dict(sample, points=LiDARPoints(
        sample['points'].tensor[sample['points'].tensor[:, 4] == 0], points_dim=5))
    after = pasted_of(only_key, paster(objects, min_points=3))
    assert len(after['gt_labels_3d']) > len(sample['gt_labels_3d'])
    assert not after['points'].tensor[:, 4].any()
    new = after['gt_bboxes_3d'].tensor[len(sample['gt_labels_3d']):, :7]
    assert points_in_boxes_all(after['points'].tensor[:, :3], new).sum(dim=0).min() >= 3


def test_augmentations_move_what_was_pasted_and_the_map_stays(mini_nuscenes, objects):
    """The whole pipeline: the same masks with and without, boxes hold their points."""
    augment = dict(type='BEVFusionGlobalRotScaleTrans', rot_range=[0.4, 0.4],
                   scale_ratio_range=[1.1, 1.1])
    step = dict(type='BEVFusionObjectSample', info_path=str(objects), classes=DETECTION_CLASSES,
                sample_groups=GROUPS)
    plain = dataset_of(mini_nuscenes, pipeline_of(mini_nuscenes, augment))[2]
    np.random.seed(0)
    pasted = dataset_of(mini_nuscenes, pipeline_of(mini_nuscenes, step, augment))[2]
    np.testing.assert_array_equal(plain['lidar_aug_matrix'], pasted['lidar_aug_matrix'])
    np.testing.assert_array_equal(plain['gt_bev_masks'], pasted['gt_bev_masks'])
    new = pasted['gt_bboxes_3d'].tensor[len(plain['gt_labels_3d']):, :7].clone()
    assert len(new) >= 5
    new[:, 2] -= 0.01
    new[:, 3:6] += 0.02  # rounding at the sides
    assert points_in_boxes_all(pasted['points'].tensor[:, :3], new).sum(dim=0).min() >= 5


def test_only_on_keeps_objects_on_the_map(sample, objects, mini_nuscenes):
    vector_map = load_vector_map(map_file(mini_nuscenes, sample['location']))
    road = shapely.unary_union(vector_map.geometries[
        vector_map.layers == LAYERS.index('drivable_area')])
    lidar2global = sample['ego2global'] @ sample['lidar_points']['lidar2ego']

    def on_road(after) -> np.ndarray:
        boxes = after['gt_bboxes_3d'][len(sample['gt_labels_3d']):]
        corners = boxes.corners[:, [0, 3, 4, 7]].numpy() @ lidar2global[:3, :3].T
        corners = corners + lidar2global[:3, 3]
        return np.array([all(road.buffer(0.01).covers(shapely.Point(point[:2])) for point in box)
                         for box in corners])

    anywhere = on_road(pasted_of(sample, paster(objects)))
    bound = dict(only_on=['drivable_area'], map_root=str(mini_nuscenes))
    once = on_road(pasted_of(sample, paster(objects, **bound)))
    often = on_road(pasted_of(sample, paster(objects, **bound, tries=8)))
    assert not anywhere.all() and once.all() and often.all() and len(often) > len(once) > 0

    bound['only_on'] = dict(car=['drivable_area', 'carpark_area'])
    after = pasted_of(sample, paster(objects, **bound))
    others = after['gt_labels_3d'][len(sample['gt_labels_3d']):] != 0
    assert others.any() and not on_road(after)[others].all()


def test_pasting_ends(sample, objects):
    transform = paster(objects, stop_epoch=2)
    for epoch, pastes in ((None, True), (0, True), (1, True), (2, False), (5, False), (0, True)):
        if epoch is not None:
            transform.set_epoch(epoch)
        after = pasted_of(sample, transform)
        assert (len(after['gt_labels_3d']) > len(sample['gt_labels_3d'])) == pastes
        assert transform.pasting == pastes
    forever = paster(objects)
    forever.set_epoch(1000)
    assert forever.pasting


def test_boxes_without_velocity_and_frames_without_boxes(sample, objects):
    boxes = sample['gt_bboxes_3d']
    plain = dict(sample, gt_bboxes_3d=type(boxes)(boxes.tensor[:0, :7], box_dim=7),
                 gt_labels_3d=np.zeros(0, np.int64))
    after = pasted_of(plain, paster(objects))
    assert after['gt_bboxes_3d'].tensor.shape == (len(after['gt_labels_3d']), 7)
    assert len(after['gt_labels_3d']) > 5
    empty = dict(plain, points=LiDARPoints(torch.zeros(0, 5), points_dim=5))
    after = pasted_of(empty, paster(objects))
    inside = points_in_boxes_all(after['points'].tensor[:, :3], after['gt_bboxes_3d'].tensor)
    assert inside.any(dim=1).all() and len(inside)


@pytest.mark.parametrize('settings, message', [
    (dict(sample_groups=dict(cra=2)), r"sample_groups names \['cra'\]"),
    (dict(min_points=dict(cra=2)), r"min_points names \['cra'\]"),
    (dict(rate=1.5), 'rate 1.5'), (dict(tries=0), 'tries 0'), (dict(load_dim=4), 'load_dim 4'),
    (dict(only_on=['drivable_area']), 'only_on needs map_root'),
    (dict(only_on=['road'], map_root='.'), r"only_on: \['road'\] is no list"),
    (dict(only_on=['divider'], map_root='.'), r"only_on: \['divider'\] is no list"),
    (dict(only_on=dict(car='drivable_area'), map_root='.'), 'only_on: .drivable_area. is no list'),
    (dict(only_on=dict(cra=['walkway']), map_root='.'), r"only_on names \['cra'\]")])
def test_wrong_settings(objects, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        paster(objects, **settings)
    assert '\n' not in str(caught.value)


def test_what_is_not_there(objects, tmp_path):
    for settings, message in ((dict(info_path=str(tmp_path / 'no.pkl')), r'no\.pkl: No such file'),
                              (dict(data_root=str(tmp_path)), 'does not exist; set data_root'),
                              (dict(only_on=['walkway'], map_root=str(tmp_path)), 'no vector maps'),
                              (dict(min_points=10 ** 6), 'no object with enough points')):
        with pytest.raises(DataError, match=message):
            paster(objects, **settings)


def test_wrong_places(sample, objects):
    with pytest.raises(ConfigError, match='after an augmentation of the scene'):
        paster(objects)(dict(sample, lidar_aug_matrix=np.diag([1, -1, 1, 1])))
    with pytest.raises(ConfigError, match=r"finds no \['gt_labels_3d'\]; put it after"):
        paster(objects)({key: value for key, value in sample.items() if key != 'gt_labels_3d'})


def test_classes_of_another_order(objects, mini_nuscenes):
    step = dict(type='BEVFusionObjectSample', info_path=str(objects),
                classes=DETECTION_CLASSES[::-1], sample_groups=GROUPS)
    with pytest.raises(ConfigError, match=r'BEVFusionObjectSample\.classes is .* make them agree'):
        dataset_of(mini_nuscenes, pipeline_of(mini_nuscenes, step))
