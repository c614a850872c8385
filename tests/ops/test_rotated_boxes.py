"""Rotated boxes against shapely, against mmcv's compiled operators, and against geometry."""
import math

import numpy as np
import pytest
import torch
from shapely.geometry import Polygon

from bevfusion_enhanced.ops import rotated_boxes as ops

GROUND = [0, 1, 3, 4, 6]


def random_boxes(count: int, seed: int, spread: float = 6.0) -> torch.Tensor:
    """(count, 7) boxes of car-like sizes, close enough together that most pairs overlap."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(-spread / 2, spread / 2, (count, 3)) * (1, 1, 0.3)
    size = rng.uniform(0.3, 6.0, (count, 3))
    yaw = rng.uniform(-2 * math.pi, 2 * math.pi, (count, 1))
    return torch.from_numpy(np.concatenate([center, size, yaw], axis=1))


def polygon(ground_box: torch.Tensor) -> Polygon:
    x, y, dx, dy, yaw = ground_box.tolist()
    along = np.array([math.cos(yaw), math.sin(yaw)]) * dx / 2
    across = np.array([-math.sin(yaw), math.cos(yaw)]) * dy / 2
    signs = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    return Polygon([np.array([x, y]) + s * along + t * across for s, t in signs])


def test_thousand_random_pairs_agree_with_shapely():
    a, b = random_boxes(1000, 1)[:, GROUND], random_boxes(1000, 2)[:, GROUND]
    iou = ops.box_iou_rotated(a, b, aligned=True)
    iof = ops.box_iou_rotated(a, b, aligned=True, mode='iof')
    pairs = [(polygon(p), polygon(q)) for p, q in zip(a, b)]
    shared = np.array([p.intersection(q).area for p, q in pairs])
    union = np.array([p.union(q).area for p, q in pairs])
    assert (shared > 0).sum() > 500
    np.testing.assert_allclose(iou.numpy(), shared / union, atol=1e-9)
    np.testing.assert_allclose(iof.numpy(), shared / [p.area for p, _ in pairs], atol=1e-9)


def test_every_pair_is_the_aligned_pair_and_swapping_transposes():
    a, b = random_boxes(17, 3), random_boxes(23, 4)
    pairwise = ops.box_iou_3d(a, b)
    i, j = torch.meshgrid(torch.arange(17), torch.arange(23), indexing='ij')
    aligned = ops.box_iou_3d(a[i.flatten()], b[j.flatten()], aligned=True)
    torch.testing.assert_close(pairwise.flatten(), aligned)
    torch.testing.assert_close(pairwise, ops.box_iou_3d(b, a).T)
    assert pairwise.min() >= 0 and pairwise.max() <= 1


def test_overlap_does_not_depend_on_where_the_pair_is_or_how_it_is_turned():
    a, b = random_boxes(200, 5)[:, GROUND], random_boxes(200, 6)[:, GROUND]
    expected = ops.box_iou_rotated(a, b, aligned=True)
    angle, shift = 0.7, torch.tensor([40.0, -30.0], dtype=a.dtype)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
                        dtype=a.dtype)

    def moved(boxes):
        return torch.cat([boxes[:, :2] @ turn + shift, boxes[:, 2:4], boxes[:, 4:] + angle], dim=1)

    torch.testing.assert_close(ops.box_iou_rotated(moved(a), moved(b), aligned=True), expected)


def test_chunks_do_not_change_the_result(monkeypatch):
    a, b = random_boxes(40, 7), random_boxes(30, 8)
    points = torch.from_numpy(np.random.default_rng(9).uniform(-4, 4, (50, 3)))
    expected = ops.box_iou_3d(a, b), ops.points_in_boxes_all(points, a)
    monkeypatch.setattr(ops, 'PAIRS_PER_CHUNK', 7)
    monkeypatch.setattr(ops, 'TESTS_PER_CHUNK', 61)
    torch.testing.assert_close((ops.box_iou_3d(a, b), ops.points_in_boxes_all(points, a)), expected)


def test_identical_touching_contained_and_turned_boxes():
    unit = [0.0, 0.0, 2.0, 2.0, 0.3]
    cos, sin = math.cos(0.3), math.sin(0.3)
    other = torch.tensor([
        unit,                                          # itself
        [0.0, 0.0, 2.0, 2.0, 0.3 + math.pi / 2],       # turned onto itself
        [2 * cos, 2 * sin, 2.0, 2.0, 0.3],             # shares one edge
        [2 * (cos - sin), 2 * (sin + cos), 2.0, 2.0, 0.3],  # shares one corner
        [0.1, 0.1, 0.5, 0.5, 1.0],                     # inside
        [cos, sin, 2.0, 2.0, 0.3],                     # shifted by half along its edge
        [100.0, 0.0, 2.0, 2.0, 0.0],                   # far away
    ])
    iou = ops.box_iou_rotated(torch.tensor([unit]), other)[0]
    expected = torch.tensor([1, 1, 0, 0, 0.25 / 4, 1 / 3, 0])
    torch.testing.assert_close(iou, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize('broken', [
    [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, -1, 2, 0], [0, 0, -1, -2, 0],
    [0, 0, math.inf, 1, 0], [0, 0, 1, 1, math.nan], [math.nan, 0, 1, 1, 0], [0, math.inf, 1, 1, 0]])
def test_boxes_without_area_overlap_nothing(broken):
    good = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 4.0, 4.0, 1.0]])
    boxes = torch.cat([good, torch.tensor([broken], dtype=torch.float32)])
    for mode in ('iou', 'iof'):
        iou = ops.box_iou_rotated(boxes, boxes, mode=mode)
        torch.testing.assert_close(iou[:2, :2], ops.box_iou_rotated(good, good, mode=mode))
        assert (iou[2] == 0).all() and (iou[:, 2] == 0).all()
    kept = ops.nms_rotated(boxes, torch.tensor([0.1, 0.2, 0.3]), iou_threshold=0.0)
    assert kept.tolist() == [2, 1]


def test_flat_boxes_have_no_volume():
    box = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]])
    assert ops.box_iou_3d(box, box).item() == 0


def test_no_boxes():
    none, some = torch.zeros(0, 7), random_boxes(3, 0).float()
    assert ops.box_iou_3d(none, some).shape == (0, 3)
    assert ops.box_iou_3d(some, none).shape == (3, 0)
    assert ops.box_iou_3d(none, none, aligned=True).shape == (0,)
    assert ops.nms_rotated(none[:, GROUND], torch.zeros(0), iou_threshold=0.5).shape == (0,)
    assert ops.nms_distance(none[:, :2], torch.zeros(0), min_distance=1.0).shape == (0,)
    assert ops.points_in_boxes_all(torch.zeros(4, 3), none).shape == (4, 0)
    assert ops.points_in_boxes_part(torch.zeros(4, 3), none).tolist() == [-1] * 4
    assert ops.points_in_boxes_all(torch.zeros(0, 3), some).shape == (0, 3)
    assert ops.points_in_boxes_part(torch.zeros(0, 3), some).shape == (0,)


def greedy(order, excludes) -> list:
    """The definition of non-maximum suppression, one box after another."""
    kept = []
    for i in order:
        if not any(excludes[j, i] for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize('threshold', [0.0, 0.1, 0.5])
def test_suppression_is_greedy(threshold):
    boxes = random_boxes(150, 10, spread=20.0)[:, GROUND]
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(150, generator=generator)
    labels = torch.randint(0, 2, (150,), generator=generator)
    order = scores.argsort(descending=True).tolist()
    excludes = (ops.box_iou_rotated(boxes, boxes) > threshold).numpy()
    kept = ops.nms_rotated(boxes, scores, iou_threshold=threshold)
    assert kept.tolist() == greedy(order, excludes)
    excludes &= (labels[:, None] == labels).numpy()
    kept = ops.nms_rotated(boxes, scores, iou_threshold=threshold, labels=labels)
    assert kept.tolist() == greedy(order, excludes)


def test_suppression_by_distance_is_greedy():
    centers = random_boxes(150, 11, spread=20.0)[:, :2]
    scores = torch.rand(150, generator=torch.Generator().manual_seed(1))
    excludes = (centers[:, None] - centers).norm(dim=-1).numpy() <= 1.5
    kept = ops.nms_distance(centers, scores, min_distance=1.5)
    assert kept.tolist() == greedy(scores.argsort(descending=True).tolist(), excludes)


def test_long_chains_of_suppression_alternate():
    boxes = torch.tensor([[0.6 * i, 0, 1.0, 1.0, 0] for i in range(60)])
    kept = ops.nms_rotated(boxes, torch.linspace(1, 0, 60), iou_threshold=0.1)
    assert kept.tolist() == list(range(0, 60, 2))


def test_points_against_the_definition():
    boxes = random_boxes(20, 12)
    points = torch.from_numpy(np.random.default_rng(13).uniform(-4, 4, (500, 3)))
    expected = torch.zeros(500, 20, dtype=torch.bool)
    for j, (x, y, z, dx, dy, dz, yaw) in enumerate(boxes.tolist()):
        turn = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]],
                            dtype=points.dtype)
        local = (points[:, :2] - torch.tensor([x, y])) @ turn
        expected[:, j] = ((local[:, 0].abs() < dx / 2) & (local[:, 1].abs() < dy / 2)
                          & (points[:, 2] >= z) & (points[:, 2] <= z + dz))
    inside = ops.points_in_boxes_all(points, boxes)
    assert torch.equal(inside, expected)
    first = [row.nonzero()[0].item() if row.any() else -1 for row in expected]
    assert ops.points_in_boxes_part(points, boxes).tolist() == first


@pytest.mark.parametrize(('call', 'message'), [
    (lambda b: ops.box_iou_rotated(b, b[:, :5]), r'boxes_a .*\(N, 5\), got \(4, 7\)'),
    (lambda b: ops.box_iou_3d(b, b[:, :5]), r'boxes_b .*\(N, 7\), got \(4, 5\)'),
    (lambda b: ops.box_iou_3d(b, b[:2], aligned=True), 'equally many, got 4 and 2'),
    (lambda b: ops.box_iou_3d(b, b, mode='giou'), "'iou' or 'iof', got 'giou'")])
def test_wrong_arguments_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_boxes(4, 0))


@pytest.mark.needs_shared
def test_mmcv_compiled_operators_agree(shared):
    golden = np.load(shared / 'parity' / 'mmcv_ops_golden.npz')
    a, b = torch.from_numpy(golden['boxes_a']), torch.from_numpy(golden['boxes_b'])
    for name, iou in (('iou_bev', ops.box_iou_rotated(a[:, GROUND], b[:, GROUND])),
                      ('iou_3d', ops.box_iou_3d(a, b))):
        difference = np.linalg.norm(iou.numpy() - golden[name])
        assert difference < 1e-4 * np.linalg.norm(golden[name])
    scores = torch.from_numpy(golden['scores'])
    kept = ops.nms_rotated(a[:, GROUND], scores, iou_threshold=0.2)
    assert np.array_equal(kept.numpy(), golden['nms_keep_02'])
    inside = ops.points_in_boxes_all(torch.from_numpy(golden['points']), a).numpy()
    expected = np.unpackbits(golden['inside'])[:inside.size].reshape(golden['inside_shape'])
    assert np.array_equal(inside, expected.astype(bool))
