"""Moving points column by column: what the product of matrices gives."""
import numpy as np
import pytest

from bevfusion_enhanced.datasets.point_columns import move_points


def turned(*, angle: float = 0.0, scale: float = 1.0, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = shift
    return matrix


def any_affine() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3] = np.random.default_rng(5).normal(size=(3, 4))
    return matrix


@pytest.mark.parametrize('matrix', [
    np.eye(4), np.diag([-1.0, 1.0, 1.0, 1.0]), turned(angle=0.3, scale=1.1, shift=(1, -2, 3)),
    np.eye(4)[[1, 0, 2, 3]], any_affine()],
    ids=['identity', 'mirror', 'turn', 'axes swapped', 'any'])
@pytest.mark.parametrize('in_place', [True, False])
def test_a_product_of_matrices(matrix, in_place):
    points = np.random.default_rng(0).normal(scale=30, size=(500, 5)).astype(np.float32)
    expected = points[:, :3].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    others, source = points[:, 3:].copy(), points.copy()
    out = points if in_place else points.copy()
    move_points(points, matrix, out=out)
    np.testing.assert_allclose(out[:, :3], expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(out[:, 3:], others)
    if not in_place:
        np.testing.assert_array_equal(points, source)


def test_there_and_back():
    points = np.random.default_rng(1).normal(scale=30, size=(100, 5)).astype(np.float32)
    matrix, moved = turned(angle=2.0, scale=0.9, shift=(3, 4, 5)), points.copy()
    move_points(moved, matrix, out=moved)
    assert np.abs(moved - points).max() > 1
    move_points(moved, np.linalg.inv(matrix), out=moved)
    np.testing.assert_allclose(moved, points, atol=1e-4)


def test_no_points():
    empty = np.zeros((0, 5), np.float32)
    move_points(empty, turned(angle=1.0), out=empty)
    assert empty.shape == (0, 5)
