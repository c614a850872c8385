"""Who is where, when: refuses a box that would touch another one at any time of the scene.

Footprints are rectangles in the global frame (x east, y north, metres; yaw counter-clockwise from
+x; length along the yaw). Shapes: A accepted boxes, G boxes of a group, T times of the scene.
"""
import numpy as np


def rectangles_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether rectangles share area, by the separating axis theorem.

    Args:
        first: (..., 5) x, y, length, width, yaw.
        second: Likewise, broadcast against `first`.

    Returns:
        (...) bool.
    """
    first, second = np.broadcast_arrays(first, second)
    offset = second[..., :2] - first[..., :2]
    apart = np.zeros(offset.shape[:-1], bool)
    for one, other in ((first, second), (second, first)):
        turn = other[..., 4] - one[..., 4]
        cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
        along = np.stack([np.cos(one[..., 4]), np.sin(one[..., 4])], axis=-1)
        across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
        half_one, half_other = one[..., 2:4] / 2, other[..., 2:4] / 2
        reach_along = half_one[..., 0] + half_other[..., 0] * cos + half_other[..., 1] * sin
        reach_across = half_one[..., 1] + half_other[..., 0] * sin + half_other[..., 1] * cos
        apart |= np.abs((offset * along).sum(-1)) >= reach_along
        apart |= np.abs((offset * across).sum(-1)) >= reach_across
    return ~apart


def entry_shares(origins: np.ndarray, targets: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    """Where lines of sight enter rectangles; leading dimensions are broadcast.

    Args:
        origins: (..., 2) viewers.
        targets: (..., 2).
        rectangles: (..., 5) x, y, length, width, yaw.

    Returns:
        (...) share of the way to the target at which its line enters the rectangle; infinite
        where it does not, and where the target itself lies in the rectangle.
    """
    start, end = (_in_frame(points, rectangles) for points in (origins, targets))
    half = rectangles[..., 2:4] / 2
    way = end - start
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    bounds = np.stack([(-half - start) / way, (half - start) / way])
    enter, leave = bounds.min(0).max(-1), bounds.max(0).min(-1)
    met = (enter < leave) & (enter < 1) & (leave > 0) & ~(np.abs(end) <= half).all(-1)
    return np.where(met, np.maximum(enter, 0.0), np.inf)


def _in_frame(points: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    """(..., 2) points in the frames of rectangles: along their length, across it."""
    x, y = np.moveaxis(points - rectangles[..., :2], -1, 0)
    cos, sin = np.cos(rectangles[..., 4]), np.sin(rectangles[..., 4])
    return np.stack([x * cos + y * sin, y * cos - x * sin], axis=-1)


class Occupancy:
    """The footprints accepted so far, over the times of a scene.

    Args:
        num_times: T.
    """

    def __init__(self, *, num_times: int) -> None:
        self._taken = np.empty((0, num_times, 5))
        self._reach = np.empty((0, 4))

    def add(self, rectangles: np.ndarray) -> None:
        """Reserve the footprint `rectangles` (T, 5): x, y, length, width, yaw."""
        if rectangles.shape != self._taken.shape[1:]:
            raise ValueError(f'expected {self._taken.shape[1:]} rectangles, got {rectangles.shape}')
        self._taken = np.concatenate([self._taken, rectangles[None]])
        self._reach = np.concatenate([self._reach, _swept_bounds(rectangles)[None]])

    def is_free(self, rectangles: np.ndarray, *, margin: float) -> bool:
        """Whether a footprint (T, 5), grown by `margin` metres on every side, touches no other."""
        grown = rectangles + np.array([0.0, 0.0, 2 * margin, 2 * margin, 0.0])
        bounds = _swept_bounds(grown)
        near = ((self._reach[:, :2] < bounds[2:]) & (self._reach[:, 2:] > bounds[:2])).all(1)
        return not rectangles_overlap(self._taken[near], grown).any()


def _swept_bounds(rectangles: np.ndarray) -> np.ndarray:
    """(4,) x and y from, x and y to, of all that rectangles (T, 5) may touch."""
    radius = np.hypot(rectangles[:, 2:3], rectangles[:, 3:4]) / 2
    centres = rectangles[:, :2]
    return np.concatenate([(centres - radius).min(0), (centres + radius).max(0)])
