"""A road as a curve with lanes beside it, its coordinates, and the cross-section of every street.

Frames: town frame (x east, y north, metres). Road frame: s metres along the centreline from the
road's start, t metres to the left of it. Traffic keeps to the right: the lanes that run with s lie
at t < 0, the lanes against it at t > 0. All towns share the widths below; street layouts differ.

Shapes: P points of a line, M stations.
"""
from dataclasses import dataclass
from typing import Tuple

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

LANE_WIDTH = 3.5
WALKWAY_WIDTH = 3.0
BAY_WIDTH = 2.4
"""Width of the strip of kerb parking between the outermost lane and the walkway."""
CROSSING_WIDTH = 4.0
STOP_LINE_WIDTH = 1.0
STOP_GAP = 1.0
"""Between a pedestrian crossing and the stop line before it."""
CORNER_RADIUS = 6.0
"""Of the kerb at the corner of a junction."""
GRID = 1e-3
"""All coordinates of a town are multiples of this, so what is exported is what is simulated."""
STATION_STEP = 2.0


@dataclass(frozen=True)
class Road:
    """A two-way road between two junctions.

    Attributes:
        line: (P, 2) centreline, points evenly spaced by about one metre.
        normals: (P, 2) unit vectors to the left of the direction of `line`.
        length: Metres along `line`.
        lanes: Number of lanes in each direction.
        start, end: Indices of the nodes that it joins.
        bays: Whether there is kerb parking on the left (t > 0) and on the right (t < 0).
    """
    name: str
    line: np.ndarray
    normals: np.ndarray
    length: float
    lanes: int
    start: int
    end: int
    bays: Tuple[bool, bool]

    @property
    def half_width(self) -> float:
        """From the centreline to the edge of the outermost lane."""
        return self.lanes * LANE_WIDTH

    def bay_width(self, side: int) -> float:
        """Width of the kerb parking on one side, +1 left or -1 right; 0 where there is none."""
        return BAY_WIDTH if self.bays[0 if side > 0 else 1] else 0.0

    def stations(self, s0: float, s1: float) -> np.ndarray:
        """(M,) stations from s0 to s1, both included, at most `STATION_STEP` apart."""
        count = max(int(np.ceil(abs(s1 - s0) / STATION_STEP)), 1) + 1
        return np.linspace(s0, s1, count)

    def points(self, s: np.ndarray, t: float) -> np.ndarray:
        """(M, 2) town coordinates of the road coordinates (s, t)."""
        known = np.linspace(0.0, self.length, len(self.line))
        centre = np.stack([np.interp(s, known, self.line[:, i]) for i in range(2)], axis=-1)
        normal = np.stack([np.interp(s, known, self.normals[:, i]) for i in range(2)], axis=-1)
        return centre + t * normal / np.linalg.norm(normal, axis=-1, keepdims=True)

    def normal(self, s: float) -> np.ndarray:
        """(2,) unit vector to the left of the road at station s."""
        return (self.points(np.array([s]), 1.0) - self.points(np.array([s]), 0.0))[0]

    def heading(self, s: float) -> float:
        """Yaw of the direction of growing s, in radians."""
        x, y = self.normal(s)
        return float(np.arctan2(-x, y))

    def strip(self, s0: float, s1: float, t0: float, t1: float) -> Polygon:
        """The area between stations s0 < s1 and offsets t0 < t1."""
        s = self.stations(s0, s1)
        return Polygon(np.concatenate([self.points(s, t0), self.points(s[::-1], t1)]))

    def parallel(self, s0: float, s1: float, t: float) -> LineString:
        """The line at offset t from station s0 to s1."""
        return LineString(self.points(self.stations(s0, s1), t))


def make_road(*, name: str, curve: np.ndarray, lanes: int, start: int, end: int,
              bays: Tuple[bool, bool]) -> Road:
    """A `Road` along a dense curve (spacing well below a metre), resampled to about one metre."""
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    known = np.concatenate([[0.0], np.cumsum(steps)])
    length = float(known[-1])
    wanted = np.linspace(0.0, length, int(np.ceil(length)) + 1)
    line = np.stack([np.interp(wanted, known, curve[:, i]) for i in range(2)], axis=-1)
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normals = np.stack([-tangent[:, 1], tangent[:, 0]], axis=-1)
    return Road(name=name, line=line, normals=normals, length=length, lanes=lanes, start=start,
                end=end, bays=bays)


def smallest_radius(road: Road) -> float:
    """Smallest radius of curvature of the centreline, in metres."""
    heading = np.unwrap(np.arctan2(-road.normals[:, 0], road.normals[:, 1]))
    turn = np.abs(np.diff(heading)).max() / (road.length / (len(road.line) - 1))
    return float(1.0 / max(turn, 1e-9))


def tidy(geometry: shapely.Geometry, *, tolerance: float = 0.03,
         smallest: float = 0.5) -> Tuple[Polygon, ...]:
    """The valid polygons of an area: simplified, on the coordinate grid, specks dropped.

    Args:
        tolerance: Greatest distance in metres by which simplification may move the border.
        smallest: Area in square metres below which a part is dropped; holes are filled likewise.
    """
    simple = shapely.set_precision(shapely.simplify(geometry, tolerance), GRID)
    polygons = [part for part in shapely.get_parts(simple)
                if part.geom_type == 'Polygon' and part.area >= smallest]
    return tuple(Polygon(polygon.exterior, [ring for ring in polygon.interiors
                                            if Polygon(ring).area >= smallest])
                 for polygon in polygons)
