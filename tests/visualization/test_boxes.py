import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData
from sample_parts import lidar_boxes

from bevfusion_enhanced.visualization.boxes import boxes_from, predicted_boxes, true_boxes


def test_predictions_below_the_threshold_are_left_out(make_sample):
    sample = make_sample()
    np.testing.assert_array_equal(predicted_boxes(sample, score_threshold=0.3).labels, [0])
    assert len(predicted_boxes(sample, score_threshold=0.05).labels) == 2
    assert predicted_boxes(sample, score_threshold=0.95).corners.shape == (0, 8, 3)


def test_a_sample_without_predictions_or_truth():
    sample = Det3DDataSample()
    assert predicted_boxes(sample, score_threshold=0.).corners.shape == (0, 8, 3)
    assert true_boxes(sample).corners.shape == (0, 8, 3)
    sample.gt_instances_3d = InstanceData()
    sample.eval_ann_info = None
    assert true_boxes(sample).corners.shape == (0, 8, 3)


def test_truth_comes_from_either_place(make_sample):
    sample = make_sample()
    from_annotations = true_boxes(sample)
    other = Det3DDataSample()
    other.gt_instances_3d = InstanceData(bboxes_3d=sample.eval_ann_info['gt_bboxes_3d'],
                                         labels_3d=torch.tensor([0]))
    np.testing.assert_array_equal(true_boxes(other).corners, from_annotations.corners)
    np.testing.assert_array_equal(from_annotations.labels, [0])


def test_boxes_of_no_class_are_left_out():
    boxes = lidar_boxes((0., 1., 0., 1., 1., 1., 0.), (0., 2., 0., 1., 1., 1., 0.))
    drawn = boxes_from(boxes, np.array([-1, 3]))
    np.testing.assert_array_equal(drawn.labels, [3])
    np.testing.assert_allclose(drawn.corners[0].mean(0), [0., 2., 0.5])


def test_near_boxes_are_drawn_last():
    drawn = boxes_from(lidar_boxes((0., 5., 0., 1., 1., 1., 0.), (30., 0., 0., 1., 1., 1., 0.),
                                   (0., -9., 0., 1., 1., 1., 0.)), np.array([0, 1, 2]))
    np.testing.assert_array_equal(drawn.nearest_last().labels, [1, 2, 0])
