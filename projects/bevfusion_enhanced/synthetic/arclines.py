"""Lane centrelines as nuScenes' arcline paths: chains of pieces, each an arc or a straight line.

Frame: town frame, metres, radians. A piece has a start pose (x, y, yaw), the lengths of its three
segments and one radius. Its shape names the segments (L left arc, S straight, R right arc); here
only one of the three has a length.

Shapes: P points of a centreline.
"""
from typing import Dict, List

import numpy as np

PIECE_POINTS = 2
"""Steps of the centreline (two metres at most, each) that one piece spans."""
STRAIGHT_TURN = 1e-4
"""Turns smaller than this, in radians, are written as straight lines."""
STRAIGHT_RADIUS = 999.999


def fit_arclines(centreline: np.ndarray) -> List[Dict[str, object]]:
    """Pieces along a (P, 2) centreline, each through two of its points and tangent at the first."""
    tangent = np.gradient(centreline, axis=0)
    tangent[1:-1] = _through_three_points(centreline)
    yaw = np.arctan2(tangent[:, 1], tangent[:, 0])
    picks = list(range(0, len(centreline) - 1, PIECE_POINTS)) + [len(centreline) - 1]
    return [_piece(centreline[i], centreline[j], float(yaw[i]), float(yaw[j]))
            for i, j in zip(picks[:-1], picks[1:], strict=True)]


def _through_three_points(line: np.ndarray) -> np.ndarray:
    """(P-2, 2) direction at each inner point: chords weighted by the length of the other one."""
    steps = np.diff(line, axis=0)
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    units = steps / lengths
    return units[:-1] * lengths[1:] + units[1:] * lengths[:-1]


def _piece(start: np.ndarray, end: np.ndarray, yaw: float, end_yaw: float) -> Dict[str, object]:
    """The arc from one point to another that leaves in a given direction."""
    dx, dy = end - start
    chord = float(np.hypot(dx, dy))
    lean = (np.arctan2(dy, dx) - yaw + np.pi) % (2.0 * np.pi) - np.pi
    straight = abs(lean) < STRAIGHT_TURN
    radius = STRAIGHT_RADIUS if straight else chord / (2.0 * abs(np.sin(lean)))
    length = chord if straight else 2.0 * abs(lean) * radius
    return {'start_pose': [*_rounded(start), round(yaw, 5)],
            'end_pose': [*_rounded(end), round(end_yaw, 5)],
            'shape': 'RSR' if lean < 0.0 else 'LSL', 'radius': round(radius, 3),
            'segment_length': [0.0, round(length, 3), 0.0] if straight
            else [round(length, 3), 0.0, 0.0]}


def _rounded(point: np.ndarray) -> List[float]:
    return [round(float(value), 3) for value in point]
