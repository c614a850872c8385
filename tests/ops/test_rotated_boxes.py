"""Rotated boxes against shapely, against mmcv's compiled operators, and against geometry."""
import math

import numpy as np
import pytest
import shapely
import torch

from bevfusion_enhanced.ops import rotated_boxes as ops

GROUND = [0, 1, 3, 4, 6]


def random_boxes(count: int, seed: int, spread: float = 6.0) -> torch.Tensor:
    """(count, 7) boxes of car-like sizes, close enough together that most pairs overlap."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(-spread / 2, spread / 2, (count, 3)) * (1, 1, 0.3)
    size = rng.uniform(0.3, 6.0, (count, 3))
    yaw = rng.uniform(-2 * math.pi, 2 * math.pi, (count, 1))
    return torch.from_numpy(np.concatenate([center, size, yaw], axis=1))


def polygons(ground_boxes: torch.Tensor) -> np.ndarray:
    """The (N,) shapely polygons of ground boxes (N, 5)."""
    x, y, dx, dy, yaw = ground_boxes.double().numpy().T[..., None]                     # (N, 1) each
    along, across = dx / 2 * np.array([-1, 1, 1, -1]), dy / 2 * np.array([-1, -1, 1, 1])
    corners = [x + along * np.cos(yaw) - across * np.sin(yaw),
               y + along * np.sin(yaw) + across * np.cos(yaw)]
    return shapely.polygons(np.stack(corners, axis=-1))                                # (N, 4, 2)


def assert_agrees_with_shapely(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-9) -> np.ndarray:
    """Compare IoU and IoF of boxes (N, 5) in pairs; returns the areas (N,) that they share."""
    first, second = polygons(a), polygons(b)
    shared, union = shapely.intersection(first, second), shapely.union(first, second)
    shared, union = shapely.area(shared), shapely.area(union)
    iou = ops.box_iou_rotated(a, b, aligned=True).numpy()
    iof = ops.box_iou_rotated(a, b, aligned=True, mode='iof').numpy()
    np.testing.assert_allclose(iou, shared / union, rtol=0, atol=atol)
    np.testing.assert_allclose(iof, shared / shapely.area(first), rtol=0, atol=atol)
    return shared


def test_thousand_random_pairs_agree_with_shapely():
    a, b = random_boxes(1000, 1), random_boxes(1000, 2)
    shared = assert_agrees_with_shapely(a[:, GROUND], b[:, GROUND])
    assert (shared > 0).sum() > 500
    top = np.minimum((a[:, 2] + a[:, 5]).numpy(), (b[:, 2] + b[:, 5]).numpy())
    height = np.maximum(top - np.maximum(a[:, 2].numpy(), b[:, 2].numpy()), 0)
    volume, volumes = shared * height, (a[:, 3:6].prod(1) + b[:, 3:6].prod(1)).numpy()
    np.testing.assert_allclose(ops.box_iou_3d(a, b, aligned=True).numpy(),
                               volume / (volumes - volume), rtol=0, atol=1e-9)


def test_thousand_pairs_that_meet_in_edges_and_corners_agree_with_shapely():
    """On a coarse lattice, where edges coincide, corners touch and boxes hold one another."""
    rng = np.random.default_rng(20)

    def boxes() -> torch.Tensor:
        center, size = rng.integers(-2, 3, (1000, 2)), rng.choice([1, 2, 4], (1000, 2))
        yaw = rng.integers(-4, 5, (1000, 1)) * math.pi / 2
        return torch.from_numpy(np.concatenate([center, size, yaw], axis=1).astype(float))

    a, b = boxes(), boxes()
    turned = 0.3  # by an angle that leaves no coordinate exact
    for angle in (0.0, math.pi / 4, turned):
        p, q = (turn(x, angle) for x in (a, b))
        shared = assert_agrees_with_shapely(p, q)
        touching = shapely.distance(polygons(p), polygons(q)) < 1e-9
        assert (touching & (shared < 1e-9)).sum() > 100 and (shared > 0.5).sum() > 300


def turn(boxes: torch.Tensor, angle: float) -> torch.Tensor:
    """Turn the frame of ground boxes (N, 5)."""
    matrix = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
                          dtype=boxes.dtype)
    return torch.cat([boxes[:, :2] @ matrix, boxes[:, 2:4], boxes[:, 4:] + angle], dim=1)


@pytest.mark.parametrize(('scale', 'thinness'), [
    (1e-3, 1.0), (1e4, 1.0), (1.0, 1e-3), (1e3, 1e-4)])
def test_tiny_huge_and_needle_boxes_agree_with_shapely(scale, thinness):
    a, b = (random_boxes(200, seed, spread=1.0)[:, GROUND] for seed in (21, 22))
    stretch = torch.tensor([scale, scale, scale, scale * thinness, 1.0], dtype=a.dtype)
    shared = assert_agrees_with_shapely(a * stretch, b * stretch, atol=1e-7)
    assert (shared > 0).sum() > 50


def test_a_small_box_in_a_huge_one_is_all_inside():
    small = random_boxes(50, 23)[:, GROUND]
    huge = torch.tensor([[100.0, -50.0, 2e5, 1e5, 0.7]], dtype=small.dtype)
    torch.testing.assert_close(ops.box_iou_rotated(small, huge, mode='iof'),
                               torch.ones(50, 1, dtype=small.dtype), rtol=0, atol=1e-8)
    areas = small[:, 2] * small[:, 3]
    torch.testing.assert_close(ops.bev_overlap(huge, small)[0], areas, rtol=1e-9, atol=0)


@pytest.mark.parametrize('size', [1e9, 1e30, 3e38, 1e99, 1e101, 1e200, 1e308])
def test_no_size_gives_nan(size):
    boxes = torch.tensor([
        [0, 0, 0, size, size, size, 0.3], [size / 2, 0, 0, size, size, size, 0.3],
        [0, 0, 0, size, 1 / size, 1, 0.0], [size, -size, -size, 1, size, size, -size],
        [0, 0, 0, 1, 1, 1, 0.0]], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):  # in which the larger ones are infinite
        cast = boxes.to(dtype)
        for ratios in (ops.box_iou_3d(cast, cast), ops.box_iou_3d(cast, cast, mode='iof'),
                       ops.box_iou_rotated(cast[:, GROUND], cast[:, GROUND])):
            assert ((ratios >= 0) & (ratios <= 1)).all()
            assert ratios[4, 4] == 1
        assert ops.bev_overlap(cast[:, GROUND], cast[:, GROUND]).isfinite().all()
    if size < 1e100:
        assert ops.box_iou_3d(boxes, boxes)[0, 0] == pytest.approx(1)


def test_of_identical_boxes_the_first_of_the_best_stays():
    boxes = torch.tensor([[1.0, 2.0, 4.0, 2.0, 0.4]]).repeat(5, 1)
    kept = ops.nms_rotated(boxes, torch.tensor([0.1, 0.9, 0.5, 0.9, 0.9]), iou_threshold=0.99)
    assert kept.tolist() == [1]


def test_gradients_of_boxes_that_meet_in_edges_are_finite():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0]] * 6, requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0], [2.0, 0.0, 2.0, 2.0, 0.0],
                      [2.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 1.0, 2.0, math.pi / 2],
                      [0.0, 0.0, 0.0, 2.0, 0.0], [0.0, 0.0, math.inf, 2.0, 0.0]],
                     requires_grad=True)
    iou = ops.box_iou_rotated(a, b, aligned=True)
    for gradient in torch.autograd.grad(iou.sum(), (a, b)):
        assert gradient.isfinite().all()


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
    shift = torch.tensor([40.0, -30.0, 0, 0, 0], dtype=a.dtype)

    def moved(boxes):
        return turn(boxes, 0.7) + shift

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


@pytest.mark.parametrize('broken', [
    [0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, -1, -1, 1, 0],
    [0, 0, 1, 1, 1, -1, 0], [0, 0, 0, math.inf, 1, 1, 0], [0, 0, 0, 1, math.inf, 1, 0],
    [0, 0, 0, 1, 1, math.inf, 0], [0, 0, -math.inf, 1, 1, math.inf, 0],
    [math.nan, 0, 0, 1, 1, 1, 0], [0, 0, math.nan, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, math.nan]])
def test_boxes_without_volume_hold_no_point(broken):
    boxes = torch.tensor([broken, [0, 0, 0, 1, 1, 1, 0]], dtype=torch.float32)
    points = torch.tensor([[0, 0, 0.5], [0, 0, 0], [0.2, 0.2, 0.1], [9, 0, 0],
                           [math.inf, 0, 0], [0, 0, math.nan]])
    inside = ops.points_in_boxes_all(points, boxes)
    assert inside.tolist() == [[False, True]] * 3 + [[False, False]] * 3
    assert ops.points_in_boxes_part(points, boxes).tolist() == [1, 1, 1, -1, -1, -1]
    iou = ops.box_iou_3d(boxes, boxes)
    assert iou[1, 1] == 1 and iou.sum() == 1


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
