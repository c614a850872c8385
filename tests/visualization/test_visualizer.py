"""The visualizer that MMDetection3D's scripts call: files, what is left out, nothing augmented."""
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sample_parts import CLASSES, MAP_CLASSES, lidar_boxes
from torch.testing import assert_close

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.visualization.visualizer import (
    BEVFusionVisualizer,
    boxes_before,
    chosen,
    without_augmentation,
)


@pytest.fixture
def visualizer():
    visualizer = BEVFusionVisualizer(name='test', vis_backends=[dict(type='LocalVisBackend')])
    visualizer.dataset_meta = dict(classes=CLASSES, map_classes=MAP_CLASSES)
    return visualizer


@pytest.mark.parametrize('name, form', [('a.jpg', 'JPEG'), ('a.png', 'PNG')])
def test_a_file_of_the_kind_that_its_name_says(visualizer, make_sample, tmp_path, name, form):
    visualizer.add_datasample('x', {}, data_sample=make_sample(), out_file=tmp_path / name,
                              vis_task='lidar_det', o3d_save_path='unused.png')
    with Image.open(tmp_path / name) as picture:
        assert picture.format == form


def test_there_are_no_windows(visualizer, make_sample):
    with pytest.raises(ConfigError, match='--not-show --output-dir'):
        visualizer.add_datasample('x', {}, data_sample=make_sample(), show=True)


def test_truth_or_predictions_can_be_left_out_of_a_copy(make_sample):
    sample = make_sample()
    fields = set(sample.keys())
    assert set(chosen(sample, truth=True, predictions=True).keys()) == fields
    assert set(chosen(sample, truth=False, predictions=True).keys()) == {
        'pred_instances_3d', 'pred_bev_map'}
    assert not {'pred_instances_3d', 'pred_bev_map'} & set(
        chosen(sample, truth=True, predictions=False).keys())
    assert set(sample.keys()) == fields


def test_boxes_are_brought_back_to_where_the_sensors_saw_them():
    before = lidar_boxes((3., 10., -1., 4., 2., 1.5, 0.4), (-8., -9., 0., 1., 1.2, 2., -2.9))
    after = before.clone()
    matrix = np.eye(4)
    for turn in (lambda b: b.rotate(0.3), lambda b: b.flip('horizontal'), lambda b: b.scale(1.1),
                 lambda b: b.translate(torch.tensor([0.5, -2., 0.1]))):
        turn(after)
    cos, sin = math.cos(0.3), math.sin(0.3)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix = np.diag([1., -1., 1., 1.]) @ matrix  # MMDetection3D's horizontal mirrors y
    matrix = np.diag([1.1, 1.1, 1.1, 1.]) @ matrix
    matrix[:3, 3] += [0.5, -2., 0.1]
    assert_close(boxes_before(after, matrix).corners.mean(1), before.corners.mean(1))
    back = boxes_before(after, matrix).tensor
    assert_close(back[:, :6], before.tensor[:, :6], rtol=1e-4, atol=1e-4)
    assert_close((back[:, 6] - before.tensor[:, 6]).cos(), torch.ones(2))
    assert not torch.allclose(after.tensor, before.tensor)


def test_an_augmented_map_is_left_out_and_the_sample_is_not_edited(make_sample):
    sample = make_sample()
    matrix = np.diag([-1., 1., 1., 1.])
    sample.set_metainfo(dict(lidar_aug_matrix=matrix))
    kept = without_augmentation(sample, matrix)
    assert 'gt_bev_map' not in kept and 'gt_bev_map' in sample
    assert np.array_equal(kept.metainfo['lidar_aug_matrix'], np.eye(4))
    assert np.array_equal(sample.metainfo['lidar_aug_matrix'], matrix)
