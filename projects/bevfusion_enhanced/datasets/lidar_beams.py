"""Beams of a spinning LiDAR, and scans with fewer of them.

nuScenes' LIDAR_TOP (HDL-32E) has 32 beams, ring 0 the lowest at -30.67 degrees, 1.333 degrees
apart. Its files carry each point's ring in the fifth column; where they do not, a point belongs to
the beam nearest to its elevation, seen from the sensor.

Shapes: P points.
"""
import numpy as np

from bevfusion_enhanced.errors import ConfigError

NUM_BEAMS = 32
LOWEST_DEG, STEP_DEG = -30.67, 4 / 3
_RING = 4


def check_beams(beams: int) -> int:
    """`beams`, where that many can be chosen evenly.

    Raises:
        ConfigError: They cannot.
    """
    if beams < 1 or NUM_BEAMS % beams:
        raise ConfigError(f'beams is {beams}; {NUM_BEAMS} beams can be reduced to '
                          f'{[n for n in range(1, NUM_BEAMS) if NUM_BEAMS % n == 0]}')
    return beams


def beam_of_points(points: np.ndarray) -> np.ndarray:
    """The beam of each point of one scan in its sensor's frame.

    Args:
        points: (P, 5 or more): x, y, z in metres, anything, ring or anything.

    Returns:
        (P,) int64 from 0, the lowest, to 31.
    """
    ring = points[:, _RING]
    if len(ring) and (ring == np.floor(ring)).all() and ring.min() >= 0 \
            and ring.max() < NUM_BEAMS and ring.min() < ring.max():
        return ring.astype(np.int64)
    elevation = np.rad2deg(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    beam = np.rint((elevation - LOWEST_DEG) / STEP_DEG)
    return beam.clip(0, NUM_BEAMS - 1).astype(np.int64)


def reduce_beams(points: np.ndarray, beams: int) -> np.ndarray:
    """The points of `beams` of the 32 beams, evenly spaced: every second one for 16, every eighth,
    from the fifth, for 4."""
    step = NUM_BEAMS // check_beams(beams)
    return points[beam_of_points(points) % step == step // 2]
