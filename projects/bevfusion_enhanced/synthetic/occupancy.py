"""Who is where, when: refuses a box that would touch another one at any time of the scene.

Footprints are rectangles in the global frame (x east, y north, metres; yaw counter-clockwise from
+x; length along the yaw). Shapes: A accepted boxes, G boxes of a group, T times of the scene.
"""
from typing import List

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


class Occupancy:
    """The footprints accepted so far, over the times of a scene.

    Args:
        num_times: T.
    """

    def __init__(self, *, num_times: int) -> None:
        self.num_times = num_times
        self._rectangles: List[np.ndarray] = []

    def add(self, rectangles: np.ndarray) -> None:
        """Reserve the footprint `rectangles` (T, 5): x, y, length, width, yaw."""
        if rectangles.shape != (self.num_times, 5):
            raise ValueError(f'expected ({self.num_times}, 5) rectangles, got {rectangles.shape}')
        self._rectangles.append(rectangles)

    def is_free(self, rectangles: np.ndarray, *, margin: float) -> bool:
        """Whether a footprint (T, 5), grown by `margin` metres on every side, touches no other."""
        if not self._rectangles:
            return True
        taken = np.stack(self._rectangles)  # (A, T, 5)
        grown = rectangles + np.array([0.0, 0.0, 2 * margin, 2 * margin, 0.0])
        distance = np.hypot(*np.moveaxis(taken[..., :2] - grown[..., :2], -1, 0))
        reach = (np.hypot(taken[..., 2], taken[..., 3]) + np.hypot(grown[..., 2], grown[..., 3])) / 2
        box, time = np.nonzero(distance < reach)
        return not rectangles_overlap(taken[box, time], grown[time]).any()
