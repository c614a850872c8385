"""A town: streets, markings, car parks, walkways, buildings, from a location's name and a seed.

Frame: town frame (x east, y north, origin at the south-west corner; metres, radians). Traffic keeps
to the right everywhere, and all towns share widths and paint: what a model learns in one town holds
in the next, while no two towns share a street.
"""
import zlib
from typing import Dict, List, Tuple

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon
from shapely.ops import unary_union

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.synthetic.buildings import make_buildings
from bevfusion_enhanced.synthetic.junctions import (
    Junction,
    junction_area,
    lane_span,
    make_junctions,
    make_lanes,
)
from bevfusion_enhanced.synthetic.layout import Layout, plan_layout
from bevfusion_enhanced.synthetic.markings import make_crossings, make_dividers, make_stop_lines
from bevfusion_enhanced.synthetic.parking import make_bays, make_car_parks
from bevfusion_enhanced.synthetic.raster import draw_ground
from bevfusion_enhanced.synthetic.roads import GRID, LANE_WIDTH, WALKWAY_WIDTH, tidy
from bevfusion_enhanced.synthetic.scene import Lane, Town

LOCATIONS: Tuple[str, ...] = ('singapore-onenorth', 'singapore-hollandvillage',
                              'singapore-queenstown', 'boston-seaport')
"""nuScenes' location names; the devkit's map API accepts no other."""

CAR_PARK_SHARE = 0.6
"""Share of the road sides on which a car park is tried; not all fit."""


def build_town(*, location: str, seed: int) -> Town:
    """The town of a location; equal arguments give equal towns.

    Raises:
        ConfigError: For an unknown location or a negative seed.
    """
    rngs = _generators(location, seed)
    layout = plan_layout(rngs[0])
    junctions = make_junctions(layout)
    crossings = make_crossings(rngs[1], layout, junctions)
    areas = tuple(junction_area(junction) for junction in junctions)
    paved = _paved(layout, junctions, areas)
    street = _street(layout, junctions, paved)
    streets = shapely.simplify(street.buffer(WALKWAY_WIDTH), 0.03)
    car_parks = make_car_parks(rngs[2], layout=layout, junctions=junctions, crossings=crossings,
                               streets=streets, share=CAR_PARK_SHARE)
    bays = make_bays(layout=layout, junctions=junctions, crossings=crossings, car_parks=car_parks)
    drivable = tidy(unary_union([
        paved, *(bay.area for bay in bays),
        *(area for lot in car_parks for area in (lot.driveway, lot.area))]))
    lanes = make_lanes(layout, junctions)
    polygons = {
        'drivable_area': drivable,
        **_road_layers(layout, junctions, areas, lanes),
        'ped_crossing': _tidy_all([crossing.area for crossing in crossings]),
        'walkway': _walkways(layout, junctions, streets.difference(unary_union(drivable))),
        'stop_line': _tidy_all(make_stop_lines(junctions, crossings)),
        'carpark_area': _tidy_all([lot.area for lot in car_parks])}
    lines = make_dividers(layout, junctions, crossings)
    land = shapely.box(0.5, 0.5, layout.size[0] - 0.5, layout.size[1] - 0.5)
    return Town(
        location=location, size=layout.size, lanes=lanes, polygons=polygons, lines=lines,
        ground=draw_ground(size=layout.size, polygons=polygons, lines=lines),
        walk_paths=_walk_paths(street), crossing_paths=tuple(c.path for c in crossings),
        parking_spots=np.concatenate([part.spots for part in (*car_parks, *bays)]),
        buildings=make_buildings(rngs[3], land=land, taken=unary_union([*drivable, streets])))


def _generators(location: str, seed: int) -> List[np.random.Generator]:
    """Independent random streams for layout, crossings, car parks and buildings."""
    if location not in LOCATIONS:
        raise ConfigError(f'location: {location!r} is not one of {", ".join(LOCATIONS)}')
    if seed < 0:
        raise ConfigError(f'seed: must not be negative, got {seed}')
    streams = np.random.SeedSequence([zlib.crc32(location.encode()), seed]).spawn(4)
    return [np.random.default_rng(stream) for stream in streams]


def _paved(layout: Layout, junctions: Tuple[Junction, ...], areas: Tuple[Polygon, ...]) -> Polygon:
    """Lanes and junctions, without parking."""
    roads = [road.strip(*lane_span(road, junctions), -road.half_width, road.half_width)
             for road in layout.roads]
    return unary_union([*roads, *areas])


def _street(layout: Layout, junctions: Tuple[Junction, ...], paved: Polygon) -> Polygon:
    """The area between the walkways: the paved area and the whole strips in which bays may lie."""
    strips = []
    for road in layout.roads:
        start, end = lane_span(road, junctions)
        reach = [road.half_width + road.bay_width(side) for side in (-1, 1)]
        strips.append(road.strip(start, end, -reach[0], reach[1]))
    return unary_union([paved, *strips])


def _tidy_all(areas: List[Polygon]) -> Tuple[Polygon, ...]:
    return tuple(part for area in areas for part in tidy(area))


def _road_layers(layout: Layout, junctions: Tuple[Junction, ...], areas: Tuple[Polygon, ...],
                 lanes: Dict[str, Lane]) -> Dict[str, Tuple[Polygon, ...]]:
    """Road segments (roads, then junctions), road blocks (one a direction), and lanes.

    Lane polygons come in the order of the lanes that are no connectors.
    """
    segments, blocks = [], []
    for road in layout.roads:
        span = lane_span(road, junctions)
        segments.append(road.strip(*span, -road.half_width, road.half_width))
        blocks += [road.strip(*span, -road.half_width, 0.0),
                   road.strip(*span, 0.0, road.half_width)]
    segments += areas
    bands = [LineString(lane.centreline).buffer(LANE_WIDTH / 2.0, cap_style='flat')
             for lane in lanes.values() if not lane.is_connector]
    return {'road_segment': _tidy_all(segments), 'road_block': _tidy_all(blocks),
            'lane': _tidy_all(bands)}


def _walkways(layout: Layout, junctions: Tuple[Junction, ...],
              area: shapely.Geometry) -> Tuple[Polygon, ...]:
    """The walkways in pieces without holes: along each road, and around each corner.

    A ring around a block would erase, as a hole, what lies inside it when masks are drawn. The
    pieces keep the vertices of the kerb, so no gap opens between road and walkway.
    """
    pieces, rest = [], area
    for road in layout.roads:
        reach = [road.half_width + road.bay_width(side) + WALKWAY_WIDTH + 0.5 for side in (-1, 1)]
        along = road.strip(*lane_span(road, junctions), -reach[0], reach[1])
        pieces.append(area.intersection(along))
        rest = rest.difference(along)
    return tuple(part for piece in [*pieces, rest] for part in tidy(piece, tolerance=0.0))


def _walk_paths(street: Polygon) -> Tuple[np.ndarray, ...]:
    """Closed polylines along the middle of the walkways: around each block, and around all."""
    middle = shapely.simplify(street.buffer(WALKWAY_WIDTH / 2.0), 0.05)
    rings = [ring for part in shapely.get_parts(middle)
             for ring in (part.exterior, *part.interiors)]
    return tuple(np.round(np.asarray(ring.coords) / GRID) * GRID for ring in rings)
