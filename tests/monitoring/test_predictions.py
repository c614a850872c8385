"""Predictions that are worth counting, by class."""
from types import SimpleNamespace

import torch
from mmengine.structures import InstanceData, PixelData

from bevfusion_enhanced.monitoring.predictions import PredictionMeter, add_counts, named


def sample(scores, labels, probs=None, broken=()):
    boxes = torch.ones(len(scores), 9)
    for index in broken:
        boxes[index, 3] = float('nan')
    found = SimpleNamespace(pred_instances_3d=InstanceData(
        scores_3d=torch.tensor(scores), labels_3d=torch.tensor(labels, dtype=torch.long),
        bboxes_3d=Boxes(boxes)))
    if probs is not None:
        found.pred_bev_map = PixelData(probs=probs)
    return found


class Boxes:
    """As much of a box structure as is read."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)


def meter():
    return PredictionMeter(classes={'object': ['car', 'bus', 'cone'], 'map': ['road', 'divider']},
                           score_threshold=0.2, map_threshold=0.5)


def test_boxes_and_cells_are_counted_by_class():
    counter = meter()
    probs = torch.zeros(2, 4, 4)
    probs[1, :2, 0] = 0.5
    counter.add([sample([0.9, 0.1, 0.3], [0, 0, 2], probs),
                 sample([0.2, 0.8, 0.7], [0, 1, 1], probs, broken=[2])])
    counts = counter.take()
    assert counts == {'object': [2, 1, 1], 'map': [0, 4]}
    measured = counter.measure(counts)
    assert measured['validation.object.valid'] == 4 and measured['validation.map.valid'] == 4
    assert measured['validation.class.object.cone'] == 1
    assert measured['validation.class.map.road'] == 0
    assert counter.take() == {}


def test_no_predictions_and_other_samples():
    counter = meter()
    counter.add([torch.zeros(3), SimpleNamespace(), sample([], [])])
    assert counter.take() == {'object': [0, 0, 0]}


def test_counts_of_processes_are_added():
    total = {}
    for part in ({'object': {'truths': [1, 2]}}, {}, {'object': {'truths': [3, 4]}, 'map': [5]}):
        add_counts(total, part)
    assert total == {'object': {'truths': [4, 6]}, 'map': [5]}
    assert named(['a', 'b'], 2) == ['a', 'b'] and named(['a'], 2) == ['0', '1']
