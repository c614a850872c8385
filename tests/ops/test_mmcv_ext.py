"""mmcv's own functions, called as MMDetection3D calls them, over the PyTorch operators."""
import numpy as np
import pytest
import torch
from mmcv import ops as mmcv_ops
from mmcv.ops.iou3d import boxes_overlap_bev, nms3d, nms3d_normal
from mmdet3d.structures import LiDARInstance3DBoxes

from bevfusion_enhanced.ops import mmcv_ext, rotated_boxes

GROUND = [0, 1, 3, 4, 6]


@pytest.fixture(autouse=True)
def substituted():
    """Skip where a compiled mmcv is installed: it is used and left alone."""
    import mmcv._ext
    if 'mmcv_ext' not in str(getattr(mmcv._ext, '__file__', '')):
        pytest.skip('a compiled mmcv is installed')


@pytest.fixture()
def boxes() -> torch.Tensor:
    rng = np.random.default_rng(0)
    center = rng.uniform(-5, 5, (40, 3)) * (1, 1, 0.2)
    size, yaw = rng.uniform(0.5, 5, (40, 3)), rng.uniform(-4, 4, (40, 1))
    return torch.from_numpy(np.concatenate([center, size, yaw], axis=1)).float()


def test_box_iou_rotated_in_both_modes_and_directions(boxes):
    a, b = boxes[:25, GROUND], boxes[15:, GROUND]
    for mode in ('iou', 'iof'):
        expected = rotated_boxes.box_iou_rotated(a, b, mode=mode)
        torch.testing.assert_close(mmcv_ops.box_iou_rotated(a, b, mode=mode), expected)
        # mirrored boxes turn the other way
        mirror = torch.tensor([1, -1, 1, 1, 1])
        mirrored = mmcv_ops.box_iou_rotated(a * mirror, b * mirror, mode=mode, clockwise=False)
        torch.testing.assert_close(mirrored, expected)
    aligned = mmcv_ops.box_iou_rotated(a[:20], b[:20], aligned=True)
    torch.testing.assert_close(aligned, rotated_boxes.box_iou_rotated(a[:20], b[:20], aligned=True))


def test_lidar_boxes_of_mmdet3d_overlap(boxes):
    a, b = LiDARInstance3DBoxes(boxes[:25]), LiDARInstance3DBoxes(boxes[15:])
    for mode in ('iou', 'iof'):
        torch.testing.assert_close(LiDARInstance3DBoxes.overlaps(a, b, mode=mode),
                                   rotated_boxes.box_iou_3d(a.tensor, b.tensor, mode=mode),
                                   atol=1e-5, rtol=1e-4)


def test_nms_rotated_with_and_without_labels(boxes):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    ground = boxes[:, GROUND]
    kept_boxes, kept = mmcv_ops.nms_rotated(ground, scores, 0.1)
    assert torch.equal(kept, rotated_boxes.nms_rotated(ground, scores, iou_threshold=0.1))
    torch.testing.assert_close(kept_boxes, torch.cat([ground[kept], scores[kept, None]], dim=1))
    kept = mmcv_ops.nms_rotated(ground, scores, 0.1, labels=labels)[1]
    assert torch.equal(
        kept, rotated_boxes.nms_rotated(ground, scores, iou_threshold=0.1, labels=labels))


def test_nms_3d_and_its_upright_variant(boxes):
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0))
    ground = boxes[:, GROUND]
    assert torch.equal(nms3d(boxes, scores, 0.1),
                       rotated_boxes.nms_rotated(ground, scores, iou_threshold=0.1))
    upright = ground * torch.tensor([1, 1, 1, 1, 0])
    assert torch.equal(nms3d_normal(boxes, scores, 0.1),
                       rotated_boxes.nms_rotated(upright, scores, iou_threshold=0.1))


def test_plain_nms():
    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30.0]])
    kept = mmcv_ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)[1]
    assert kept.tolist() == [1, 2]


def test_overlap_area(boxes):
    torch.testing.assert_close(
        boxes_overlap_bev(boxes, boxes[:9]),
        rotated_boxes.bev_overlap(boxes[:, GROUND], boxes[:9, GROUND]).float())


def test_points_in_boxes(boxes):
    points = torch.from_numpy(np.random.default_rng(1).uniform(-6, 6, (2, 300, 3))).float()
    batch = torch.stack([boxes[:20], boxes[20:]])
    expected = torch.stack([rotated_boxes.points_in_boxes_all(p, b) for p, b in zip(points, batch)])
    assert torch.equal(mmcv_ops.points_in_boxes_cpu(points, batch).bool(), expected)
    every = torch.zeros(2, 300, 20, dtype=torch.int)
    mmcv_ext.points_in_boxes_all_forward(batch, points, every)
    assert torch.equal(every.bool(), expected)
    first = torch.full((2, 300), -1, dtype=torch.int)
    mmcv_ext.points_in_boxes_part_forward(batch, points, first)
    assert torch.equal(first >= 0, expected.any(-1))
    assert torch.equal(first[first >= 0].long(), expected[first >= 0].int().argmax(-1))


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss_and_its_gradient(weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(0, 6, (30,), generator=generator)  # 5 is no class
    weight = torch.rand(5, dtype=torch.float64, generator=generator) if weighted else None
    if weighted:
        target = target.clamp(max=4)
    hit = torch.nn.functional.one_hot(target, 6)[:, :5]
    p = logits.sigmoid()
    expected = -(0.25 * hit * (1 - p) ** 2 * p.log() + 0.75 * (1 - hit) * p ** 2 * (1 - p).log())
    expected = expected * weight[target][:, None] if weighted else expected
    loss = mmcv_ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    torch.testing.assert_close(loss, expected)
    total = mmcv_ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'sum')
    torch.testing.assert_close(torch.autograd.grad(total, logits),
                               torch.autograd.grad(expected.sum(), logits))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([0, 2]), 2.0, 0.25, None, 'sum')
    assert loss.isfinite() and torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_empty_inputs(boxes):
    ground, none = boxes[:, GROUND], boxes[:0, GROUND]
    for a, b in ((ground, none), (none, ground), (none, none)):
        assert mmcv_ops.box_iou_rotated(a, b).shape == (len(a), len(b))
    assert boxes_overlap_bev(boxes[:0], boxes).shape == (0, 40)
    assert nms3d(boxes[:0], torch.zeros(0), 0.1).shape == (0,)
    assert mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1].shape == (0,)
    inside = mmcv_ops.points_in_boxes_cpu(torch.zeros(1, 0, 3), boxes[None])
    assert inside.shape == (1, 0, 40)
    inside = mmcv_ops.points_in_boxes_cpu(torch.zeros(1, 7, 3), boxes[None, :0])
    assert inside.shape == (1, 7, 0)
    logits = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long)
    loss = mmcv_ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'sum')
    assert loss == 0 and torch.autograd.grad(loss, logits)[0].shape == (0, 3)


def test_other_operators_say_what_to_install():
    with pytest.raises(NotImplementedError, match="'carafe_forward'.*compiled mmcv 2.1.0"):
        mmcv_ext.carafe_forward(1, 2)
