"""The pairing of least cost."""
import itertools

import numpy as np
import pytest
import torch

from bevfusion_enhanced.models.heads.transfusion_assigner import BBoxBEVL1Cost, HungarianAssigner3D

RANGE = [-50.0, -50.0, -5.0, 50.0, 50.0, 3.0]


def assigner(cls: float = 0.15, reg: float = 0.25, iou: float = 0.25) -> HungarianAssigner3D:
    return HungarianAssigner3D(
        point_cloud_range=RANGE, cls_cost=dict(type='mmdet.FocalLossCost', weight=cls),
        reg_cost=dict(type='BBoxBEVL1Cost', weight=reg),
        iou_cost=dict(type='IoU3DCost', weight=iou),
        iou_calculator=dict(type='BboxOverlaps3D', coordinate='lidar'))


def random_boxes(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.concatenate([
        rng.uniform(-4, 4, (count, 2)), rng.uniform(-1, 0, (count, 1)),
        rng.uniform(1, 5, (count, 3)), rng.uniform(-3, 3, (count, 3))], axis=1)).float()


def test_true_boxes_find_themselves_in_any_order():
    truth = random_boxes(12, 0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    far = random_boxes(8, 1) + torch.tensor([40.0, 0, 0, 0, 0, 0, 0, 0, 0])
    boxes = torch.cat([far, truth[order]])
    pairs = assigner(cls=0.0).assign(boxes, torch.zeros(20, 5), truth, torch.zeros(12).long())
    assert torch.equal(pairs.proposal, torch.arange(8, 20)) and torch.equal(pairs.truth, order)
    torch.testing.assert_close(pairs.iou, torch.ones(12), atol=1e-4, rtol=0)


def test_the_class_decides_between_equal_boxes():
    truth = random_boxes(1, 2).repeat(3, 1)
    logits = torch.full((3, 4), -3.0)
    logits[torch.arange(3), torch.tensor([2, 0, 1])] = 3.0
    pairs = assigner().assign(truth, logits, truth, torch.tensor([0, 1, 2]))
    assert pairs.truth.tolist() == [2, 0, 1]


def test_no_other_pairing_costs_less():
    boxes, truth = random_boxes(5, 3), random_boxes(4, 4)
    tool = assigner(cls=0.0, iou=0.0)
    pairs = tool.assign(boxes, torch.zeros(5, 2), truth, torch.zeros(4).long())
    cost = BBoxBEVL1Cost(weight=1.0)(boxes, truth, RANGE)
    least = min(sum(cost[p, t].item() for t, p in enumerate(choice))
                for choice in itertools.permutations(range(5), 4))
    assert cost[pairs.proposal, pairs.truth].sum().item() == pytest.approx(least, rel=1e-5)


def test_distance_is_in_parts_of_the_range():
    boxes = torch.tensor([[10.0, 20.0, 0, 1, 1, 1, 0]])
    truth = torch.tensor([[-10.0, 20.0, 0, 1, 1, 1, 0], [10.0, -30.0, 0, 1, 1, 1, 0]])
    cost = BBoxBEVL1Cost(weight=2.0)(boxes, truth, RANGE)
    torch.testing.assert_close(cost, torch.tensor([[0.4, 1.0]]))


@pytest.mark.parametrize(('proposals', 'truths'), [(0, 3), (3, 0), (0, 0), (2, 5), (5, 2)])
def test_as_many_pairs_as_there_can_be(proposals, truths):
    pairs = assigner().assign(random_boxes(proposals, 5), torch.zeros(proposals, 4),
                              random_boxes(truths, 6), torch.zeros(truths).long())
    count = min(proposals, truths)
    assert len(pairs.proposal) == len(pairs.truth) == len(pairs.iou) == count
    assert len(set(pairs.proposal.tolist())) == len(set(pairs.truth.tolist())) == count


def test_numbers_that_overflowed_are_paired_last():
    boxes, truth = random_boxes(3, 7), random_boxes(1, 8)
    boxes[0, 3:6] = float('inf')
    boxes[1] = float('nan')
    pairs = assigner().assign(boxes, torch.zeros(3, 2), truth, torch.zeros(1).long())
    assert pairs.proposal.tolist() == [2] and pairs.iou.isfinite().all()
