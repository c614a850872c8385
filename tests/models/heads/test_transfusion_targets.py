"""Heatmap targets against a drawing loop, Gaussians by their properties, targets of proposals."""
import numpy as np
import pytest
import torch
from mmdet3d.models.utils import draw_heatmap_gaussian
from mmdet3d.models.utils import gaussian_radius as radius_of_one

from bevfusion_enhanced.models.heads.transfusion_assigner import Assignment
from bevfusion_enhanced.models.heads.transfusion_coder import TransFusionBBoxCoder
from bevfusion_enhanced.models.heads.transfusion_targets import (
    Truth,
    draw_gaussians,
    gaussian_radius,
    heatmap_targets,
    proposal_targets,
)

MAP_SIZE = (60, 40)


@pytest.fixture()
def coder() -> TransFusionBBoxCoder:
    return TransFusionBBoxCoder(pc_range=[-18.0, -12.0], voxel_size=[0.075, 0.075],
                                out_size_factor=8)


def random_truth(seed: int, count: int) -> Truth:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([
        rng.uniform((-18, -12, -2), (18, 12, 0), (count, 3)), rng.uniform(0.3, 14, (count, 3)),
        rng.uniform(-3, 3, (count, 1)), rng.normal(0, 3, (count, 2))], axis=1)
    return Truth(boxes=torch.from_numpy(boxes).float(),
                 labels=torch.from_numpy(rng.integers(0, 4, count)))


def draw(truths, coder, **changes):
    options = dict(num_classes=4, map_size=MAP_SIZE, min_overlap=0.1, min_radius=2)
    return heatmap_targets(truths, coder, **{**options, **changes})


def draw_one_by_one(truth: Truth) -> torch.Tensor:
    """The same with MMDetection3D's function, box after box; its maps are indexed (row, column)."""
    heatmap = torch.zeros(4, *MAP_SIZE)
    for box, label in zip(truth.boxes, truth.labels):
        size = box[3:5] / 0.6
        radius = max(2, int(radius_of_one((size[1], size[0]), min_overlap=0.1)))
        column, row = ((box[:2] - torch.tensor([-18.0, -12.0])) / 0.6).int()
        draw_heatmap_gaussian(heatmap[label], torch.stack([row, column]), radius)
    return heatmap


def test_all_boxes_at_once_is_one_box_after_another(coder):
    truths = [random_truth(0, 40), random_truth(1, 0), random_truth(2, 7)]
    expected = torch.stack([draw_one_by_one(t) for t in truths])
    torch.testing.assert_close(draw(truths, coder), expected, atol=1e-6, rtol=1e-5)


def test_peaks_are_exactly_one_at_the_cells_of_the_centres(coder):
    truth = random_truth(3, 30)
    heatmap = draw([truth], coder)[0]
    cells = coder.cells(truth.boxes[:, :2]).long()
    peaks = {(int(c), *map(int, xy)) for c, xy in zip(truth.labels, cells)}
    assert {tuple(p) for p in (heatmap == 1).nonzero().tolist()} == peaks
    assert heatmap.max() == 1 and heatmap.min() == 0


def test_the_first_axis_is_x(coder):
    box = torch.tensor([[10.0, -5.0, 0, 2, 2, 2, 0, 0, 0]])
    heatmap = draw([Truth(box, torch.tensor([1]))], coder)[0, 1]
    assert (heatmap == 1).nonzero().tolist() == [[46, 11]]  # (10 + 18) / 0.6, (-5 + 12) / 0.6


@pytest.mark.parametrize('box', [
    [0.0, 0, 0, 0, 2, 2, 0, 0, 0], [0.0, 0, 0, 2, -1, 2, 0, 0, 0], [-18.1, 0, 0, 2, 2, 2, 0, 0, 0],
    [0.0, 12.1, 0, 2, 2, 2, 0, 0, 0], [float('nan'), 0, 0, 2, 2, 2, 0, 0, 0]])
def test_boxes_without_extent_or_off_the_map_are_not_drawn(coder, box):
    assert (draw([Truth(torch.tensor([box]), torch.tensor([0]))], coder) == 0).all()


def test_a_gaussian_larger_than_the_map():
    heatmap = draw_gaussians(plane=torch.tensor([0]), center=torch.tensor([[3, 1]]),
                             radius=torch.tensor([500]), planes=1, map_size=(6, 4))
    assert heatmap[0, 3, 1] == 1 and (heatmap > 0.99).all()


def test_radius_of_each_box_is_that_of_mmdet3d():
    size = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 20 + 0.1
    for overlap in (0.1, 0.5, 0.7):
        expected = torch.stack([radius_of_one((s[0], s[1]), min_overlap=overlap) for s in size])
        torch.testing.assert_close(gaussian_radius(size, overlap), expected)


def test_targets_go_to_their_proposals_and_unknown_velocities_are_left_out(coder):
    truths = [random_truth(4, 3), random_truth(5, 2)]
    truths[1].boxes[1, 7:] = float('nan')
    pairs = [([5, 0, 2], [0, 2, 1]), ([1, 3], [1, 0])]
    assignments = [Assignment(torch.tensor(p), torch.tensor(t), torch.ones(len(p)))
                   for p, t in pairs]
    targets = proposal_targets(truths, assignments, coder, num_proposals=6, num_classes=4)
    assert targets.matched.tolist() == [[True, False, True, False, False, True],
                                        [False, True, False, True, False, False]]
    for b, (proposals, indices) in enumerate(pairs):
        for p, t in zip(proposals, indices):
            assert targets.classes[b, p].argmax() == truths[b].labels[t]
            expected = coder.encode(truths[b].boxes[t:t + 1])[0]
            torch.testing.assert_close(targets.codes[b, p][:8], expected[:8])
    assert targets.classes.sum() == 5
    assert targets.known[1, 1].tolist() == [True] * 8 + [False] * 2
    assert targets.known.sum() == 5 * 10 - 2 and targets.codes.isfinite().all()
    assert (targets.codes[~targets.matched] == 0).all()
