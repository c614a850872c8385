"""Smooth curves to drive and walk on, and routes through the lane graph.

Global frame, metres; arc length s grows in driving direction; an offset across a path is
positive to its left. Shapes: P points of a polyline, T times.
"""
from typing import Dict, List, Optional, Tuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

from bevfusion_enhanced.synthetic.scene import Lane, Town

_STEP = 0.25
_SMOOTHING = 1.0


class Path:
    """A polyline, resampled and smoothed, that answers with poses at arc lengths.

    Args:
        points: (P, 2) with P >= 2; repeated points are allowed.
    """

    def __init__(self, *, points: np.ndarray) -> None:
        arc = _arc_lengths(points)
        keep = np.concatenate([[True], np.diff(arc) > 1e-6])
        samples = np.linspace(0.0, arc[-1], max(int(round(arc[-1] / _STEP)), 1) + 1)
        curve = np.stack([np.interp(samples, arc[keep], points[keep, axis]) for axis in (0, 1)], -1)
        # Smoothing the deviation from the chord leaves a straight line exactly as it is.
        chord = curve[0] + (curve[-1] - curve[0]) * np.linspace(0, 1, len(curve))[:, None]
        bend = gaussian_filter1d(curve - chord, _SMOOTHING / _STEP, axis=0, mode='nearest')
        self._points = chord + bend
        self._arc = _arc_lengths(self._points)
        self.length = float(self._arc[-1])

    def positions(self, s: np.ndarray) -> np.ndarray:
        """(T, 2) points at arc lengths `s` (T,), which are clipped to the path."""
        return np.stack([np.interp(s, self._arc, self._points[:, axis]) for axis in (0, 1)], -1)

    def arc_length_near(self, point: np.ndarray) -> float:
        """The arc length at which the path passes nearest to a point (2,)."""
        return float(self._arc[np.argmin(np.hypot(*(self._points - point).T))])

    def poses(self, s: np.ndarray, *, behind: float, ahead: float, offset: float = 0.0
              ) -> np.ndarray:
        """Poses of a body that touches the path with two axles.

        Args:
            s: (T,) arc length of the reference point, within [behind, length - ahead].
            behind: Distance of the rear axle behind the reference point.
            ahead: Distance of the front axle ahead of it.
            offset: Distance of the body to the left of the path.

        Returns:
            (T, 3) x, y, yaw of the reference point; the yaw has no jumps along T.
        """
        rear, front = self.positions(s - behind), self.positions(s + ahead)
        heading = front - rear
        yaw = np.unwrap(np.arctan2(heading[:, 1], heading[:, 0]))
        left = np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1)
        centre = rear + heading * (behind / (behind + ahead)) + offset * left
        return np.concatenate([centre, yaw[:, None]], axis=-1)


class LaneGraph:
    """The lanes of a town with both directions of their links."""

    def __init__(self, *, town: Town) -> None:
        self.lanes: Dict[str, Lane] = town.lanes
        self.predecessors: Dict[str, List[str]] = {name: [] for name in town.lanes}
        for name, lane in town.lanes.items():
            for successor in lane.successors:
                self.predecessors[successor].append(name)
        points = [(name, index) for name, lane in town.lanes.items()
                  for index in range(len(lane.centreline))]
        self.point_lane = [name for name, _ in points]
        self.point_index = np.array([index for _, index in points])
        self.points = np.concatenate([lane.centreline for lane in town.lanes.values()])

    def route(self, *, lane: str, index: int, before: float, after: float,
              rng: np.random.Generator) -> Optional[Tuple[Path, float]]:
        """A random route through point `index` of a lane.

        Args:
            lane: Name of the lane.
            index: Index of the point in its centreline.
            before: Metres needed before that point.
            after: Metres needed after it.
            rng: Chooses at every fork.

        Returns:
            The path and the arc length of the point on it, or None where the roads end too early.
        """
        centreline = self.lanes[lane].centreline
        head = self._extend(lane, before - _arc_lengths(centreline[:index + 1])[-1], rng, -1)
        tail = self._extend(lane, after - _arc_lengths(centreline[index:])[-1], rng, +1)
        if head is None or tail is None:
            return None
        path = Path(points=np.concatenate(head[::-1] + [centreline] + tail))
        return path, path.arc_length_near(centreline[index])

    def _extend(self, lane: str, missing: float, rng: np.random.Generator, direction: int
                ) -> Optional[List[np.ndarray]]:
        """Centrelines that follow (+1) or precede (-1) a lane, until `missing` metres are met."""
        found: List[np.ndarray] = []
        while missing > 0:
            options = (self.lanes[lane].successors if direction > 0
                       else self.predecessors[lane])
            if not options:
                return None
            lane = options[int(rng.integers(len(options)))]
            found.append(self.lanes[lane].centreline)
            missing -= _arc_lengths(found[-1])[-1]
        return found


def sideways_acceleration(poses: np.ndarray, *, step: float) -> float:
    """The largest acceleration across its heading, in m/s^2, of a body with poses (T, 3).

    Args:
        poses: x, y, yaw without jumps.
        step: Seconds between the poses.
    """
    speed = np.hypot(*np.diff(poses[:, :2], axis=0).T) / step
    return float((np.abs(np.diff(poses[:, 2])) / step * speed).max())


def densified(points: np.ndarray, *, step: float = 2.0) -> np.ndarray:
    """The same polyline (P, 2) with points at most `step` metres apart."""
    arc = _arc_lengths(points)
    samples = np.linspace(0.0, arc[-1], max(int(np.ceil(arc[-1] / step)), 1) + 1)
    return np.stack([np.interp(samples, arc, points[:, axis]) for axis in (0, 1)], axis=-1)


def _arc_lengths(points: np.ndarray) -> np.ndarray:
    """(P,) arc length at every point of a polyline."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
