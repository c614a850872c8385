"""Rings of distance around the vehicle, metres: by them results are told apart.

A ring (near, far) holds what is at least `near` and less than `far` away, seen from above.
"""
from typing import Sequence, Tuple

import numpy as np

from bevfusion_enhanced.errors import ConfigError

Ring = Tuple[float, float]
DEFAULT_RINGS: Tuple[Ring, ...] = ((0, 15), (15, 30), (30, 50))


def check_rings(rings: Sequence[Sequence[float]]) -> Tuple[Ring, ...]:
    """The rings as pairs.

    Raises:
        ConfigError: One has no width, or two overlap.
    """
    pairs = []
    for ring in rings:
        if len(ring) != 2 or not 0 <= ring[0] < ring[1]:
            raise ConfigError(f'rings: {list(ring)} is no ring; expected [near, far] in metres')
        pairs.append((ring[0], ring[1]))
    for (_, far), (near, _) in zip(pairs, pairs[1:]):
        if near < far:
            raise ConfigError(f'rings: {[list(ring) for ring in pairs]} overlap or are not in '
                              'order; each has to begin where or after the one before it ends')
    return tuple(pairs)


def ring_name(ring: Ring) -> str:
    """What results are called by, such as '0-15m'."""
    return f'{ring[0]:g}-{ring[1]:g}m'


def rings_of_cells(rings: Sequence[Ring], *, xbound: Sequence[float],
                   ybound: Sequence[float]) -> np.ndarray:
    """In which ring the centre of each cell of a grid lies, seen from the grid's origin.

    Args:
        rings: R of them.
        xbound: (first edge, last edge, step) along LiDAR x, metres.
        ybound: The same along LiDAR y.

    Returns:
        (X, Y) int64: index of the ring, R where there is none, as in the corners of the grid.
    """
    centers = [first + step * (np.arange(int(round((last - first) / step))) + 0.5)
               for first, last, step in (xbound, ybound)]
    distance = np.hypot(centers[0][:, None], centers[1][None, :])                      # (X, Y)
    index = np.full(distance.shape, len(rings), dtype=np.int64)
    for number, (near, far) in enumerate(rings):
        index[(distance >= near) & (distance < far)] = number
    return index
