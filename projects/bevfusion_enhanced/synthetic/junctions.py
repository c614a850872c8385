"""Junctions: where the arms of each end, and the lanes and connectors that lead through.

Frame: town frame. d is the distance in metres from a junction's node along one of its arms. From
the node outwards an arm has: the junction itself up to `setback`, a pedestrian crossing, a gap, a
stop line for the lanes that arrive, and from `lane_gap` on the lanes.
"""
from dataclasses import dataclass
from typing import Dict, List, Tuple

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon
from shapely.ops import unary_union

from bevfusion_enhanced.synthetic.layout import Layout
from bevfusion_enhanced.synthetic.roads import (
    CORNER_RADIUS,
    CROSSING_WIDTH,
    LANE_WIDTH,
    STATION_STEP,
    STOP_GAP,
    STOP_LINE_WIDTH,
    Road,
)
from bevfusion_enhanced.synthetic.scene import Lane

STRAIGHT_LIMIT = np.radians(45.0)
"""Turning by less than this is going straight on."""


@dataclass(frozen=True)
class Arm:
    """One road where it meets a junction.

    Attributes:
        at_end: Whether it is the road's end (its lanes t < 0 arrive) or its start (lanes t > 0).
        outward: Yaw in which the arm leaves the node.
        setback: d at which the kerbs of the arm run straight again.
    """
    road: Road
    at_end: bool
    outward: float
    setback: float

    @property
    def lane_gap(self) -> float:
        """d at which the lanes begin and end."""
        return self.setback + CROSSING_WIDTH + STOP_GAP + STOP_LINE_WIDTH

    def stretch(self, d0: float, d1: float) -> Tuple[float, float]:
        """Stations (s0, s1), s0 < s1, of the stretch between distances d0 < d1."""
        return (self.road.length - d1, self.road.length - d0) if self.at_end else (d0, d1)

    @property
    def arriving_side(self) -> int:
        """Sign of t of the lanes that arrive."""
        return -1 if self.at_end else 1


@dataclass(frozen=True)
class Junction:
    """A node where three or four roads meet."""
    node: int
    centre: np.ndarray
    arms: Tuple[Arm, ...]


def make_junctions(layout: Layout) -> Tuple[Junction, ...]:
    """The junctions of a layout, with the arms' setbacks."""
    junctions = []
    for node in layout.junctions:
        arms = [(road, False, road.heading(0.0)) for road in layout.roads if road.start == node]
        arms += [(road, True, road.heading(road.length) + np.pi)
                 for road in layout.roads if road.end == node]
        setbacks = [max(_kerb_corner(arm, other) for other in arms if other is not arm)
                    for arm in arms]
        junctions.append(Junction(
            node=node, centre=layout.nodes[node],
            arms=tuple(Arm(road=road, at_end=at_end, outward=yaw, setback=setback)
                       for (road, at_end, yaw), setback in zip(arms, setbacks, strict=True))))
    return tuple(junctions)


def _kerb_corner(arm: Tuple[Road, bool, float], other: Tuple[Road, bool, float]) -> float:
    """d on `arm` where the rounded kerb between it and `other` becomes straight; 0 if opposite."""
    angle = abs(_turn(arm[2], other[2]))
    if angle > np.radians(135.0):
        return 0.0
    corner = (other[0].half_width + arm[0].half_width * np.cos(angle)) / np.sin(angle)
    return float(corner + CORNER_RADIUS / np.tan(angle / 2.0))


def _turn(yaw: float, towards: float) -> float:
    """Signed angle from one yaw to another, in [-pi, pi)."""
    return float((towards - yaw + np.pi) % (2.0 * np.pi) - np.pi)


def lane_span(road: Road, junctions: Tuple[Junction, ...]) -> Tuple[float, float]:
    """Stations between which the lanes of a road run."""
    gaps = {arm.at_end: arm.lane_gap for junction in junctions for arm in junction.arms
            if arm.road is road}
    return gaps[False], road.length - gaps[True]


def junction_area(junction: Junction) -> Polygon:
    """The paved area of a junction, out to where the lanes begin, with rounded kerbs.

    Between two opposite arms the kerb runs straight, so a wide arm narrows gently to a slim one,
    and the bands of all connectors belong to the area.
    """
    areas = [LineString(lane.centreline).buffer(LANE_WIDTH / 2.0, cap_style='flat')
             for lane in _connectors(junction)]
    for arm in junction.arms:
        opposite = [other for other in junction.arms
                    if abs(_turn(arm.outward + np.pi, other.outward)) < STRAIGHT_LIMIT]
        areas.append(_arm_strip(arm, arm.setback if opposite else 0.0))
        areas += [unary_union([_mouth(arm), _mouth(other)]).convex_hull for other in opposite]
    area = unary_union(areas)
    return area.buffer(CORNER_RADIUS, quad_segs=6).buffer(-CORNER_RADIUS, quad_segs=6)


def _arm_strip(arm: Arm, d: float) -> Polygon:
    """An arm from distance d to its lanes."""
    width = arm.road.half_width
    return arm.road.strip(*arm.stretch(d, arm.lane_gap), -width, width)


def _mouth(arm: Arm) -> LineString:
    """The line across an arm at its setback; between two opposite mouths kerbs run straight."""
    s = np.array([arm.stretch(arm.setback, arm.setback)[0]])
    return LineString([arm.road.points(s, side * arm.road.half_width)[0] for side in (-1, 1)])


def make_lanes(layout: Layout, junctions: Tuple[Junction, ...]) -> Dict[str, Lane]:
    """All lanes and connectors by name; every lane has a successor."""
    connectors = [lane for junction in junctions for lane in _connectors(junction)]
    following: Dict[str, List[str]] = {}
    for lane in connectors:
        following.setdefault(lane.name.split('>')[0], []).append(lane.name)
    lanes = {}
    for road in layout.roads:
        for side in (-1, 1):
            for index in range(road.lanes):
                name = _lane_name(road, side, index)
                lanes[name] = Lane(name=name, width=LANE_WIDTH, is_connector=False,
                                   centreline=_lane_line(road, side, index, junctions),
                                   successors=tuple(following[name]))
    lanes.update({lane.name: lane for lane in connectors})
    return lanes


def _lane_name(road: Road, side: int, index: int) -> str:
    """Lane names: the road, the direction, and the index counted from the road's centre."""
    return f'{road.name}_{"forward" if side < 0 else "backward"}{index}'


def _lane_line(road: Road, side: int, index: int, junctions: Tuple[Junction, ...]) -> np.ndarray:
    s = road.stations(*lane_span(road, junctions))
    return _even(road.points(s if side < 0 else s[::-1], _lane_offset(side, index)))


def _lane_offset(side: int, index: int) -> float:
    return side * (index + 0.5) * LANE_WIDTH


def _even(line: np.ndarray) -> np.ndarray:
    """(P, 2) points along a line, evenly spaced, `STATION_STEP` at most; the ends stay."""
    curve = LineString(line)
    count = max(int(np.ceil(curve.length / STATION_STEP)), 1) + 1
    points = shapely.get_coordinates(shapely.line_interpolate_point(
        curve, np.linspace(0.0, curve.length, count)))
    points[0], points[-1] = line[0], line[-1]
    return points


def _connectors(junction: Junction) -> List[Lane]:
    """The connectors of one junction: lane pairs (arriving, leaving) without U-turns."""
    connectors: Dict[str, Lane] = {}
    for source, index, target, target_index in _allowed_turns(junction):
        before = _lane_name(source.road, source.arriving_side, index)
        after = _lane_name(target.road, -target.arriving_side, target_index)
        centreline = _connect(_approach(source, source.arriving_side, index),
                              _approach(target, -target.arriving_side, target_index)[::-1])
        name = f'{before}>{after}'
        connectors[name] = Lane(name=name, width=LANE_WIDTH, is_connector=True,
                                centreline=centreline, successors=(after,))
    return list(connectors.values())


def _approach(arm: Arm, side: int, index: int) -> np.ndarray:
    """(P, 2) a lane's line from where the lane ends inwards to where the kerbs bend away."""
    s = arm.road.stations(*arm.stretch(arm.setback, arm.lane_gap))
    return arm.road.points(s if arm.at_end else s[::-1], _lane_offset(side, index))


Turn = Tuple[Arm, int, Arm, int]
"""Arm and lane that arrive, arm and lane that leave."""


def _allowed_turns(junction: Junction) -> List[Turn]:
    """Straight on lane by lane; left from and into the inner lanes, right the outer ones.

    A single lane may turn into every lane of another arm. A lane that would lead nowhere, or that
    nothing would lead into, is joined to all other arms. A turn may occur twice.
    """
    arms = junction.arms
    turns: List[Turn] = []
    for source, target in ((a, b) for a in arms for b in arms if a is not b):
        angle = _turn(source.outward + np.pi, target.outward)
        last, last_target = source.road.lanes - 1, target.road.lanes - 1
        if abs(angle) < STRAIGHT_LIMIT:
            turns += [(source, min(i, last), target, min(i, last_target))
                      for i in range(max(last, last_target) + 1)]
        elif last == 0:
            turns += [(source, 0, target, i) for i in range(last_target + 1)]
        else:
            turns.append((source, 0, target, 0) if angle > 0.0
                         else (source, last, target, last_target))
    leading = {(source.road.name, source.at_end, i) for source, i, _, _ in turns}
    led_to = {(target.road.name, target.at_end, i) for _, _, target, i in turns}
    for arm, i in [(end, index) for end in arms for index in range(end.road.lanes)]:
        others = [(other, min(i, other.road.lanes - 1)) for other in arms if other is not arm]
        if (arm.road.name, arm.at_end, i) not in leading:
            turns += [(arm, i, other, j) for other, j in others]
        if (arm.road.name, arm.at_end, i) not in led_to:
            turns += [(other, j, arm, i) for other, j in others]
    return turns


def _connect(arriving: np.ndarray, leaving: np.ndarray) -> np.ndarray:
    """(P, 2) line along one lane, over a cubic curve tangent to both, and along the other lane.

    Handles of 0.39 of the distance make a right angle turn nearly a circular arc.
    """
    first, last = arriving[-1], leaving[0]
    handle = 0.39 * np.linalg.norm(last - first)
    ahead = (arriving[-1] - arriving[-2]) / np.linalg.norm(arriving[-1] - arriving[-2])
    onward = (leaving[1] - leaving[0]) / np.linalg.norm(leaving[1] - leaving[0])
    control = np.stack([first, first + handle * ahead, last - handle * onward, last])
    u = np.linspace(0.0, 1.0, 65)[:, None]
    weights = np.concatenate([(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u ** 2 * (1 - u), u ** 3], 1)
    return _even(np.concatenate([arriving[:-1], weights @ control, leaving[1:]]))
