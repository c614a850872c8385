"""Where cars park: car parks behind the walkways, and bays along the kerb.

Frames: town frame; inside a car park, u metres along the road and v metres away from it, from the
point of the car park's front that lies opposite its entrance. A car park has one or two modules of
row, aisle, row; its driveway leads from the road through the walkway into the aisles.

Shapes: S parking spots, (S, 3) x, y, yaw.
"""
from dataclasses import dataclass
from typing import List, Optional, Tuple

import numpy as np
import shapely
from shapely.geometry import Polygon

from bevfusion_enhanced.synthetic.junctions import Junction, lane_span
from bevfusion_enhanced.synthetic.layout import Layout
from bevfusion_enhanced.synthetic.markings import Crossing
from bevfusion_enhanced.synthetic.roads import STOP_GAP, STOP_LINE_WIDTH, WALKWAY_WIDTH, Road

SPOT_WIDTH, SPOT_DEPTH = 2.6, 5.2
AISLE_WIDTH = 6.0
MODULE_DEPTH = 2.0 * SPOT_DEPTH + AISLE_WIDTH
LOT_LENGTHS = (46.8, 39.0, 31.2, 26.0)
"""Along the road, in whole spots; the longest that fits is built."""
TWO_MODULE_SHARE = 0.35
LOT_SPACING = 75.0
"""On long roads one car park is tried every so many metres of each side."""
LOT_TRIES = 8
"""Places tried for each car park."""
LOT_GAP = 0.6
"""Between a walkway and a car park."""
LOT_CLEARANCE = 1.0
"""Between a car park and any other thing."""
DRIVEWAY_WIDTH = 6.0
BAY_LENGTH = 6.2
BAY_CLEARANCE = 3.0
"""Between a bay and a crossing, a driveway or the end of the lanes."""
MIN_BAYS = 2


@dataclass(frozen=True)
class CarPark:
    """A car park beside a road.

    Attributes:
        driveway: From inside the road to inside the car park.
        entrance: Station of the middle of the driveway on the road.
        side: +1 left of the road, -1 right.
    """
    road: Road
    side: int
    entrance: float
    area: Polygon
    driveway: Polygon
    spots: np.ndarray


@dataclass(frozen=True)
class Bay:
    """A strip of kerb parking."""
    area: Polygon
    spots: np.ndarray


def make_car_parks(rng: np.random.Generator, *, layout: Layout, junctions: Tuple[Junction, ...],
                   crossings: Tuple[Crossing, ...], streets: shapely.Geometry,
                   share: float) -> Tuple[CarPark, ...]:
    """Car parks on a share of the road sides, wherever they fit.

    Args:
        streets: The area of roads and walkways, which car parks keep clear of.
        share: Share of the road sides on which a car park is tried.
    """
    taken = streets
    town = shapely.box(1.0, 1.0, layout.size[0] - 1.0, layout.size[1] - 1.0)
    car_parks: List[CarPark] = []
    sides = [(road, side) for road in layout.roads for side in (-1, 1)
             for _ in range(max(round(road.length / LOT_SPACING), 1))]
    for index in rng.permutation(len(sides)):
        road, side = sides[index]
        if rng.random() >= share:
            continue
        car_park = _fit(rng, road=road, side=side, stretches=_clear_stretches(
            road, junctions, _crossing_stretches(road, crossings), DRIVEWAY_WIDTH),
            free=town.difference(taken))
        if car_park is not None:
            car_parks.append(car_park)
            taken = taken.union(car_park.area.buffer(LOT_CLEARANCE, join_style='mitre'))
    return tuple(car_parks)


def _crossing_stretches(road: Road, crossings: Tuple[Crossing, ...]) -> List[Tuple[float, float]]:
    """Stations that the crossings in mid-road take, stop lines included."""
    gap = STOP_GAP + STOP_LINE_WIDTH
    return [(crossing.s0 - gap, crossing.s1 + gap) for crossing in crossings
            if crossing.road is road and not crossing.at_junction]


def _clear_stretches(road: Road, junctions: Tuple[Junction, ...],
                     taken: List[Tuple[float, float]],
                     shortest: float) -> List[Tuple[float, float]]:
    """Stretches of the lanes, at least `shortest` long, `BAY_CLEARANCE` from what is taken."""
    start, end = lane_span(road, junctions)
    stretches, s = [], start + BAY_CLEARANCE
    for s0, s1 in [*sorted(taken), (end, end)]:
        if s0 - BAY_CLEARANCE - s >= shortest:
            stretches.append((s, s0 - BAY_CLEARANCE))
        s = max(s, s1 + BAY_CLEARANCE)
    return stretches


def _fit(rng: np.random.Generator, *, road: Road, side: int, stretches: List[Tuple[float, float]],
         free: shapely.Geometry) -> Optional[CarPark]:
    """The largest of the car parks tried along one side of a road, or None."""
    shapely.prepare(free)
    modules = 2 if rng.random() < TWO_MODULE_SHARE else 1
    tries = [(stretches[i], u, v) for i, u, v in zip(
        rng.integers(len(stretches), size=LOT_TRIES), rng.random(LOT_TRIES),
        rng.uniform(-0.35, 0.35, LOT_TRIES), strict=True)] if stretches else []
    for count in (modules, 1) if modules == 2 else (1,):
        for length in LOT_LENGTHS:
            for (s0, s1), where, lean in tries:
                entrance = s0 + DRIVEWAY_WIDTH / 2.0 + where * (s1 - s0 - DRIVEWAY_WIDTH)
                frame = _Frame(road=road, side=side, entrance=entrance)
                area = frame.box(lean * length, length, 0.0, count * MODULE_DEPTH)
                if free.contains(area):
                    return _car_park(rng, frame, area=area, middle=lean * length, length=length,
                                     modules=count)
    return None


@dataclass(frozen=True)
class _Frame:
    """Car park coordinates: origin on the front line opposite the entrance, u along the road."""
    road: Road
    side: int
    entrance: float

    @property
    def front(self) -> float:
        """Distance from the road's centreline to the front."""
        return self.road.half_width + self.road.bay_width(self.side) + WALKWAY_WIDTH + LOT_GAP

    def to_town(self, uv: np.ndarray) -> np.ndarray:
        """(P, 2) car park coordinates in the town frame."""
        normal = self.side * self.road.normal(self.entrance)
        along = np.array([np.cos(self.yaw), np.sin(self.yaw)])
        origin = self.road.points(np.array([self.entrance]), self.side * self.front)
        return origin + uv[:, :1] * along + uv[:, 1:] * normal

    @property
    def yaw(self) -> float:
        return self.road.heading(self.entrance)

    def box(self, middle: float, length: float, v0: float, v1: float) -> Polygon:
        """A rectangle around u = middle."""
        u0, u1 = middle - length / 2.0, middle + length / 2.0
        return Polygon(self.to_town(np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]])))


def _car_park(rng: np.random.Generator, frame: _Frame, *, area: Polygon, middle: float,
              length: float, modules: int) -> CarPark:
    reach = frame.front - frame.road.half_width + 1.0
    return CarPark(road=frame.road, side=frame.side, entrance=frame.entrance, area=area,
                   driveway=frame.box(0.0, DRIVEWAY_WIDTH, -reach, 1.0),
                   spots=_lot_spots(rng, frame, middle=middle, length=length, modules=modules))


def _lot_spots(rng: np.random.Generator, frame: _Frame, *, middle: float, length: float,
               modules: int) -> np.ndarray:
    """(S, 3) spots of all rows, leaving the way from the driveway to the last aisle free."""
    u = middle - length / 2.0 + SPOT_WIDTH * (np.arange(round(length / SPOT_WIDTH)) + 0.5)
    rows = np.array([SPOT_DEPTH / 2.0, MODULE_DEPTH - SPOT_DEPTH / 2.0])
    v = (np.arange(modules)[:, None] * MODULE_DEPTH + rows).reshape(-1)
    grid = np.stack(np.meshgrid(u, v, indexing='ij'), axis=-1).reshape(-1, 2)
    in_way = ((np.abs(grid[:, 0]) < (DRIVEWAY_WIDTH + SPOT_WIDTH) / 2.0)
              & (grid[:, 1] < v[-1] - 1e-6))
    grid = grid[~in_way]
    yaw = frame.yaw + np.pi / 2.0 + np.pi * rng.integers(2, size=len(grid))
    return np.column_stack([frame.to_town(grid), yaw])


def make_bays(*, layout: Layout, junctions: Tuple[Junction, ...], crossings: Tuple[Crossing, ...],
              car_parks: Tuple[CarPark, ...]) -> Tuple[Bay, ...]:
    """Kerb parking on the road sides that have it, between crossings, driveways and junctions."""
    bays = []
    for road in layout.roads:
        for side in (-1, 1):
            if not road.bay_width(side):
                continue
            taken = _crossing_stretches(road, crossings) + [
                (lot.entrance - DRIVEWAY_WIDTH / 2.0, lot.entrance + DRIVEWAY_WIDTH / 2.0)
                for lot in car_parks if lot.road is road and lot.side == side]
            bays += [_bay(road, side, s0, s1) for s0, s1 in _clear_stretches(
                road, junctions, taken, MIN_BAYS * BAY_LENGTH)]
    return tuple(bays)


def _bay(road: Road, side: int, s0: float, s1: float) -> Bay:
    """As many spots as fit between two stations; cars stand in the direction of the nearer lane.

    Spots are measured along the bay, which is shorter than the road where it lies inside a curve.
    """
    inner, outer = road.half_width - 0.2, road.half_width + road.bay_width(side)
    middle = road.half_width + road.bay_width(side) / 2.0
    s = road.stations(s0, s1)
    steps = np.linalg.norm(np.diff(road.points(s, side * middle), axis=0), axis=1)
    known = np.concatenate([[0.0], np.cumsum(steps)])
    count = int(known[-1] / BAY_LENGTH)
    margin = (known[-1] - count * BAY_LENGTH) / 2.0
    first, last = np.interp([margin, known[-1] - margin], known, s)
    stations = np.interp(margin + BAY_LENGTH * (np.arange(count) + 0.5), known, s)
    yaw = [road.heading(station) + (np.pi if side > 0 else 0.0) for station in stations]
    t0, t1 = sorted((side * inner, side * outer))
    return Bay(area=road.strip(first, last, t0, t1),
               spots=np.column_stack([road.points(stations, side * middle), yaw]).reshape(-1, 3))
