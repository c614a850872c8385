"""What is painted on the roads: pedestrian crossings, stop lines and dividers.

Frame: town frame. A crossing is one solid area (no zebra stripes), so the painted ground and the
map agree pixel for pixel.
"""
from dataclasses import dataclass
from typing import Dict, List, Tuple

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

from bevfusion_enhanced.synthetic.junctions import Junction, lane_span
from bevfusion_enhanced.synthetic.layout import Layout
from bevfusion_enhanced.synthetic.roads import (
    CROSSING_WIDTH,
    GRID,
    LANE_WIDTH,
    STOP_GAP,
    STOP_LINE_WIDTH,
    WALKWAY_WIDTH,
    Road,
)

JUNCTION_CROSSING_SHARE = 0.9
"""Share of junction arms with a pedestrian crossing."""
MID_CROSSING_MIN_LENGTH = 46.0
"""Length of lane from which a road may have a crossing between its junctions."""
MID_CROSSING_SPACING = 62.0
"""Long roads have one crossing about every so many metres."""
MID_CROSSING_SHARE = 0.85


@dataclass(frozen=True)
class Crossing:
    """A pedestrian crossing over a whole road, between stations s0 and s1."""
    road: Road
    s0: float
    s1: float
    at_junction: bool

    @property
    def area(self) -> Polygon:
        """The painted area, from kerb to kerb."""
        return self.road.strip(self.s0, self.s1, -self.road.half_width, self.road.half_width)

    @property
    def path(self) -> np.ndarray:
        """(2, 2) from the middle of the walkway on the right to the one on the left."""
        middle = np.array([(self.s0 + self.s1) / 2.0])
        reach = [self.road.half_width + WALKWAY_WIDTH / 2.0
                 + (0.0 if self.at_junction else self.road.bay_width(side)) for side in (-1, 1)]
        return np.concatenate([self.road.points(middle, -reach[0]),
                               self.road.points(middle, reach[1])])


def make_crossings(rng: np.random.Generator, layout: Layout,
                   junctions: Tuple[Junction, ...]) -> Tuple[Crossing, ...]:
    """Crossings at most junction arms and in the middle of long roads."""
    crossings = []
    for junction in junctions:
        for arm in junction.arms:
            if rng.random() < JUNCTION_CROSSING_SHARE:
                s0, s1 = arm.stretch(arm.setback, arm.setback + CROSSING_WIDTH)
                crossings.append(Crossing(road=arm.road, s0=s0, s1=s1, at_junction=True))
    for road in layout.roads:
        start, end = lane_span(road, junctions)
        if end - start < MID_CROSSING_MIN_LENGTH:
            continue
        count = max(round((end - start) / MID_CROSSING_SPACING), 1)
        for share in (np.arange(count) + 0.5) / count:
            middle = start + share * (end - start) + rng.uniform(-4.0, 4.0)
            if rng.random() < MID_CROSSING_SHARE:
                crossings.append(Crossing(road=road, s0=middle - CROSSING_WIDTH / 2.0,
                                          s1=middle + CROSSING_WIDTH / 2.0, at_junction=False))
    return tuple(crossings)


def make_stop_lines(junctions: Tuple[Junction, ...],
                    crossings: Tuple[Crossing, ...]) -> Tuple[Polygon, ...]:
    """A stop line where lanes arrive at a junction, and before each crossing in mid-road."""
    lines = []
    for junction in junctions:
        for arm in junction.arms:
            s0, s1 = arm.stretch(arm.lane_gap - STOP_LINE_WIDTH, arm.lane_gap)
            lines.append(_half_strip(arm.road, s0, s1, arm.arriving_side))
    for crossing in crossings:
        if not crossing.at_junction:
            before, after = crossing.s0 - STOP_GAP, crossing.s1 + STOP_GAP
            lines.append(_half_strip(crossing.road, before - STOP_LINE_WIDTH, before, -1))
            lines.append(_half_strip(crossing.road, after, after + STOP_LINE_WIDTH, 1))
    return tuple(lines)


def _half_strip(road: Road, s0: float, s1: float, side: int) -> Polygon:
    """All lanes of one direction between two stations."""
    t0, t1 = sorted((0.0, side * road.half_width))
    return road.strip(s0, s1, t0, t1)


def make_dividers(layout: Layout, junctions: Tuple[Junction, ...],
                  crossings: Tuple[Crossing, ...]) -> Dict[str, Tuple[LineString, ...]]:
    """Lines between the directions (road_divider) and between the lanes of one (lane_divider).

    They run from stop line to stop line, leaving out the crossings in mid-road.
    """
    dividers: Dict[str, List[LineString]] = {'road_divider': [], 'lane_divider': []}
    for road in layout.roads:
        gap = STOP_GAP + STOP_LINE_WIDTH
        gaps = [(crossing.s0 - gap, crossing.s1 + gap) for crossing in crossings
                if crossing.road is road and not crossing.at_junction]
        ends = [*lane_span(road, junctions), *(s for pair in gaps for s in pair)]
        for s0, s1 in np.sort(ends).reshape(-1, 2):
            dividers['road_divider'].append(_divider(road, s0, s1, 0.0))
            for index in range(1, road.lanes):
                dividers['lane_divider'] += [_divider(road, s0, s1, side * index * LANE_WIDTH)
                                             for side in (-1, 1)]
    return {layer: tuple(lines) for layer, lines in dividers.items()}


def _divider(road: Road, s0: float, s1: float, t: float) -> LineString:
    return shapely.set_precision(shapely.simplify(road.parallel(s0, s1, t), 0.04), GRID)
