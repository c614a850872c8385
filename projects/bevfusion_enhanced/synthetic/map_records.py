"""Records of the nuScenes map expansion (version 1.3): nodes, lines, polygons, layers on them.

Frame: town frame, metres. Tokens are short readable strings, unique within a map; the token of a
lane or a connector is its name in the town.
"""
from typing import Dict, Iterable, List, Sequence, Tuple

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

from bevfusion_enhanced.synthetic.arclines import fit_arclines
from bevfusion_enhanced.synthetic.roads import STOP_GAP, STOP_LINE_WIDTH
from bevfusion_enhanced.synthetic.scene import Lane, Town

VERSION = '1.3'
Record = Dict[str, object]

_DECIMALS = 3


class Geometry:
    """The node, line and polygon tables of a map; equal points share one node."""

    def __init__(self) -> None:
        self.nodes: List[Record] = []
        self.lines: List[Record] = []
        self.polygons: List[Record] = []
        self._node_of: Dict[Tuple[float, float], str] = {}

    def node(self, point: Sequence[float]) -> str:
        """Token of the node at a point."""
        x, y = (round(float(value), _DECIMALS) for value in point[:2])
        if (x, y) not in self._node_of:
            self._node_of[x, y] = f'node{len(self.nodes)}'
            self.nodes.append({'token': self._node_of[x, y], 'x': x, 'y': y})
        return self._node_of[x, y]

    def line(self, points: Iterable[Sequence[float]]) -> str:
        """Token of a new line through points."""
        token = f'line{len(self.lines)}'
        self.lines.append({'token': token, 'node_tokens': [self.node(point) for point in points]})
        return token

    def polygon(self, polygon: Polygon) -> str:
        """Token of a new polygon; rings are stored without their closing point."""
        token = f'polygon{len(self.polygons)}'
        self.polygons.append({
            'token': token, 'exterior_node_tokens': self._ring(polygon.exterior),
            'holes': [{'node_tokens': self._ring(ring)} for ring in polygon.interiors]})
        return token

    def _ring(self, ring: LineString) -> List[str]:
        return [self.node(point) for point in ring.coords[:-1]]


def map_records(town: Town) -> Record:
    """The whole map expansion of a town, ready for JSON."""
    geometry = Geometry()
    layers = {
        'drivable_area': [{'token': 'drivable_area0', 'polygon_tokens': [
            geometry.polygon(polygon) for polygon in town.polygons['drivable_area']]}],
        'road_segment': _road_segments(town, geometry),
        'road_block': _road_blocks(town, geometry),
        'lane': _lanes(town, geometry),
        'ped_crossing': _on_segments(town, geometry, 'ped_crossing'),
        'walkway': _plain(town, geometry, 'walkway'),
        'stop_line': _stop_lines(town, geometry),
        'carpark_area': _plain(town, geometry, 'carpark_area'),
        'road_divider': _road_dividers(town, geometry),
        'lane_divider': _lane_dividers(town, geometry),
        'traffic_light': [],
        'lane_connector': _lane_connectors(town, geometry)}
    return {'version': VERSION, 'canvas_edge': list(town.size), **layers,
            'polygon': geometry.polygons, 'line': geometry.lines, 'node': geometry.nodes,
            'arcline_path_3': {name: fit_arclines(lane.centreline)
                               for name, lane in town.lanes.items()},
            'connectivity': _connectivity(town.lanes)}


def _plain(town: Town, geometry: Geometry, layer: str) -> List[Record]:
    """One record a polygon, with nothing but its geometry."""
    return [{'token': f'{layer}{i}', 'polygon_token': geometry.polygon(polygon)}
            for i, polygon in enumerate(town.polygons[layer])]


def _on_segments(town: Town, geometry: Geometry, layer: str) -> List[Record]:
    """Polygon records that name the road segment under them."""
    on = _nearest(town.polygons[layer], town.polygons['road_segment'])
    return [{**record, 'road_segment_token': f'road_segment{i}'}
            for record, i in zip(_plain(town, geometry, layer), on, strict=True)]


def _nearest(shapes: Sequence[shapely.Geometry], others: Sequence[Polygon]) -> np.ndarray:
    """(N,) index of the area that is nearest to the middle of each of N shapes."""
    middles = shapely.point_on_surface(np.array(shapes, dtype=object))
    return shapely.distance(middles[:, None], np.array(others, dtype=object)[None]).argmin(axis=1)


def _road_segments(town: Town, geometry: Geometry) -> List[Record]:
    """Roads come first, two road blocks each; the other segments are junctions."""
    roads = len(town.polygons['road_block']) // 2
    return [{**record, 'is_intersection': i >= roads, 'drivable_area_token': 'drivable_area0'}
            for i, record in enumerate(_plain(town, geometry, 'road_segment'))]


def _road_blocks(town: Town, geometry: Geometry) -> List[Record]:
    return [{**record, 'road_segment_token': f'road_segment{i // 2}'}
            for i, record in enumerate(_plain(town, geometry, 'road_block'))]


def _lanes(town: Town, geometry: Geometry) -> List[Record]:
    """Lanes with the lines across their start and end; those nodes belong to their polygon too."""
    lanes = [lane for lane in town.lanes.values() if not lane.is_connector]
    return [{'token': lane.name, 'polygon_token': geometry.polygon(polygon), 'lane_type': 'CAR',
             'from_edge_line_token': geometry.line(_edge(polygon, lane, 0)),
             'to_edge_line_token': geometry.line(_edge(polygon, lane, -1)),
             'left_lane_divider_segments': [], 'right_lane_divider_segments': []}
            for lane, polygon in zip(lanes, town.polygons['lane'], strict=True)]


def _edge(polygon: Polygon, lane: Lane, end: int) -> np.ndarray:
    """(2, 2) the two polygon vertices nearest to the start (0) or end (-1) of a lane."""
    corners = np.asarray(polygon.exterior.coords)[:-1]
    distance = np.linalg.norm(corners - lane.centreline[end], axis=1)
    return corners[np.argsort(distance, kind='stable')[:2]]


def _stop_lines(town: Town, geometry: Geometry) -> List[Record]:
    """Stop lines before a crossing name it; the others stand for a stop sign."""
    crossings = np.array(town.polygons['ped_crossing'], dtype=object)
    records = []
    for record, polygon in zip(_plain(town, geometry, 'stop_line'), town.polygons['stop_line'],
                               strict=True):
        near = shapely.distance(polygon, crossings) < STOP_GAP + STOP_LINE_WIDTH / 2.0
        cues = [f'ped_crossing{i}' for i in np.flatnonzero(near)]
        records.append({**record, 'stop_line_type': 'PED_CROSSING' if cues else 'STOP_SIGN',
                        'ped_crossing_tokens': cues, 'traffic_light_tokens': []})
    return records


def _pieces(lines: Sequence[LineString]) -> List[LineString]:
    """Every line cut into straight pieces of two points.

    A straight piece can not leave a patch and enter it again, which the devkit's masks do not
    survive under shapely 2.
    """
    return [LineString(pair) for line in lines
            for pair in zip(line.coords[:-1], line.coords[1:], strict=True)]


def _road_dividers(town: Town, geometry: Geometry) -> List[Record]:
    pieces = _pieces(town.lines['road_divider'])
    on = _nearest(pieces, town.polygons['road_segment'])
    return [{'token': f'road_divider{i}', 'line_token': geometry.line(piece.coords),
             'road_segment_token': f'road_segment{segment}'}
            for i, (piece, segment) in enumerate(zip(pieces, on, strict=True))]


def _lane_dividers(town: Town, geometry: Geometry) -> List[Record]:
    return [{'token': f'lane_divider{i}', 'line_token': geometry.line(piece.coords),
             'lane_divider_segments': [{'node_token': geometry.node(point),
                                        'segment_type': 'SINGLE_SOLID_WHITE'}
                                       for point in piece.coords]}
            for i, piece in enumerate(_pieces(town.lines['lane_divider']))]


def _lane_connectors(town: Town, geometry: Geometry) -> List[Record]:
    """Connectors as bands of their lane's width."""
    connectors = [lane for lane in town.lanes.values() if lane.is_connector]
    lines = [shapely.simplify(LineString(lane.centreline), 0.05) for lane in connectors]
    return [{'token': lane.name, 'polygon_token': geometry.polygon(
        line.buffer(lane.width / 2.0, cap_style='flat', join_style='mitre'))}
            for lane, line in zip(connectors, lines, strict=True)]


def _connectivity(lanes: Dict[str, Lane]) -> Record:
    """What leads into and out of each lane and connector."""
    incoming: Dict[str, List[str]] = {name: [] for name in lanes}
    for name, lane in lanes.items():
        for successor in lane.successors:
            incoming[successor].append(name)
    return {name: {'incoming': incoming[name], 'outgoing': list(lane.successors)}
            for name, lane in lanes.items()}
