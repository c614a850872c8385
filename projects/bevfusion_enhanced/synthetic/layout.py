"""The street plan of a town: a bent grid of nodes, some streets left out, curved roads through it.

Frame: town frame (x east, y north, metres, radians). A node with three or four streets is a
junction; a node with two is a bend, and the road runs through it.

Shapes: N nodes.
"""
from dataclasses import dataclass, replace
from typing import Dict, List, Set, Tuple

import numpy as np
import shapely
from scipy.interpolate import CubicSpline
from shapely.geometry import LineString

from bevfusion_enhanced.synthetic.roads import Road, make_road, smallest_radius

GRID_NODES = (4, 4)
SPACING = (76.0, 96.0)
"""Range of the distance between neighbouring rows and columns of the grid, before bending."""
ATTEMPTS = 200
MIN_RADIUS = 20.0
MIN_ROAD_LENGTH = 62.0
MIN_CLEARANCE = 34.0
"""Between the centrelines of two roads that share no junction."""
MARGIN = 37.0
"""From the outermost centreline to the town's edge: a wide road, a walkway, and a plot behind."""
MAX_ARM_SKEW = np.radians(9.0)
"""By how much a street may leave a junction off its square direction."""

SIDES = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Steps on the grid to the neighbour in direction k, at k * 90 degrees."""

Edge = Tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Roads and the junctions that they join.

    Attributes:
        nodes: (N, 2) positions; bends are among them.
        junctions: Indices of the nodes where three or four roads meet.
        size: (width, height) of the town in metres: the roads and `MARGIN` around them.
    """
    nodes: np.ndarray
    junctions: Tuple[int, ...]
    roads: Tuple[Road, ...]
    size: Tuple[float, float]


def plan_layout(rng: np.random.Generator) -> Layout:
    """Draws street plans until one can be built (radii, lengths, distances)."""
    for _ in range(ATTEMPTS):
        layout = _propose(rng)
        if _buildable(layout):
            return layout
    raise RuntimeError(f'no buildable street plan in {ATTEMPTS} attempts')


def _buildable(layout: Layout) -> bool:
    if any(smallest_radius(road) < MIN_RADIUS or road.length < MIN_ROAD_LENGTH
           for road in layout.roads):
        return False
    lines = np.array([LineString(road.line) for road in layout.roads])
    ends = np.array([(road.start, road.end) for road in layout.roads])
    shared = (ends[:, None, :, None] == ends[None, :, None, :]).any(axis=(2, 3))
    distance = shapely.distance(lines[:, None], lines[None, :])
    return bool((distance[~shared] > MIN_CLEARANCE).all())


def _propose(rng: np.random.Generator) -> Layout:
    nodes, neighbours = _bent_grid(rng)
    _leave_out_streets(rng, neighbours)
    degree = {node: len(sides) for node, sides in neighbours.items()}
    nodes = _round_off_bends(nodes, neighbours)
    junctions = tuple(node for node, count in degree.items() if count >= 3)
    arms = {node: _arm_directions(nodes, neighbours, node) for node in junctions}
    roads = []
    for chain in _chains(neighbours, junctions):
        roads.append(_road(rng, name=f'road{len(roads):02d}', nodes=nodes, arms=arms, chain=chain))
    return _placed(nodes=nodes, junctions=junctions, roads=roads)


def _placed(*, nodes: np.ndarray, junctions: Tuple[int, ...], roads: List[Road]) -> Layout:
    """The layout with its origin at the south-west corner of the town."""
    points = np.concatenate([road.line for road in roads])
    origin = points.min(axis=0) - MARGIN
    width, height = np.ceil(10.0 * (points.max(axis=0) + MARGIN - origin)) / 10.0
    return Layout(nodes=nodes - origin, junctions=junctions, size=(float(width), float(height)),
                  roads=tuple(replace(road, line=road.line - origin) for road in roads))


def _bent_grid(rng: np.random.Generator) -> Tuple[np.ndarray, Dict[int, Dict[int, int]]]:
    """Node positions (N, 2), and for each node its neighbour in each direction k."""
    columns, rows = GRID_NODES
    x = np.cumsum(rng.uniform(*SPACING, columns))
    y = np.cumsum(rng.uniform(*SPACING, rows))
    nodes = np.stack(np.meshgrid(x, y, indexing='ij'), axis=-1).reshape(-1, 2)
    amplitude, phase = rng.uniform(4.0, 12.0, 2), rng.uniform(0.0, 2.0 * np.pi, 2)
    wave = np.sin(2.0 * np.pi * nodes[:, ::-1] / rng.uniform(200.0, 320.0, 2) + phase)
    nodes = nodes + amplitude * wave + rng.uniform(-5.0, 5.0, nodes.shape)
    turn = rng.uniform(4.0, 18.0) * rng.choice([-1.0, 1.0])
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    neighbours: Dict[int, Dict[int, int]] = {}
    for i in range(columns):
        for j in range(rows):
            around = {k: (i + di, j + dj) for k, (di, dj) in enumerate(SIDES)}
            neighbours[i * rows + j] = {k: a * rows + b for k, (a, b) in around.items()
                                        if 0 <= a < columns and 0 <= b < rows}
    return nodes @ np.array([[c, s], [-s, c]]), neighbours


def _leave_out_streets(rng: np.random.Generator, neighbours: Dict[int, Dict[int, int]]) -> None:
    """Removes a few streets so that every node keeps two; the net stays connected."""
    wanted = int(rng.integers(1, 4))
    edges = [(a, k, b) for a, sides in neighbours.items() for k, b in sides.items() if a < b]
    for index in rng.permutation(len(edges)):
        a, k, b = edges[index]
        if wanted == 0:
            return
        if len(neighbours[a]) < 3 or len(neighbours[b]) < 3:
            continue
        del neighbours[a][k], neighbours[b][(k + 2) % 4]
        if _connected(neighbours):
            wanted -= 1
        else:
            neighbours[a][k], neighbours[b][(k + 2) % 4] = b, a


def _connected(neighbours: Dict[int, Dict[int, int]]) -> bool:
    seen: Set[int] = set()
    waiting = [0]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(neighbours[node].values())
    return len(seen) == len(neighbours)


def _round_off_bends(nodes: np.ndarray, neighbours: Dict[int, Dict[int, int]]) -> np.ndarray:
    """Nodes with two streets, pulled towards the middle of their neighbours: gentler curves."""
    moved = nodes.copy()
    for node, sides in neighbours.items():
        if len(sides) == 2:
            middle = nodes[list(sides.values())].mean(axis=0)
            moved[node] += 0.3 * (middle - nodes[node])
    return moved


def _arm_directions(nodes: np.ndarray, neighbours: Dict[int, Dict[int, int]],
                    node: int) -> Dict[int, float]:
    """Yaw in which the street to each neighbour leaves a junction: nearly square to the others."""
    sides = neighbours[node]
    away = nodes[list(sides.values())] - nodes[node]
    square = np.array(list(sides)) * np.pi / 2.0
    skew = np.arctan2(away[:, 1], away[:, 0]) - square
    skew = (skew + np.pi) % (2.0 * np.pi) - np.pi
    turn = skew.mean()
    yaws = square + turn + np.clip(0.5 * (skew - turn), -MAX_ARM_SKEW, MAX_ARM_SKEW)
    return dict(zip(sides.values(), yaws.tolist(), strict=True))


def _chains(neighbours: Dict[int, Dict[int, int]], junctions: Tuple[int, ...]) -> List[List[int]]:
    """Node sequences from junction to junction through bends, each once."""
    chains, used = [], set()
    for start in junctions:
        for step in neighbours[start].values():
            if (start, step) in used:
                continue
            chain = [start, step]
            while chain[-1] not in junctions:
                ahead = [n for n in neighbours[chain[-1]].values() if n != chain[-2]]
                chain.append(ahead[0])
            used.update({(chain[0], chain[1]), (chain[-1], chain[-2])})
            chains.append(chain)
    return chains


def _road(rng: np.random.Generator, *, name: str, nodes: np.ndarray,
          arms: Dict[int, Dict[int, float]], chain: List[int]) -> Road:
    """A smooth road through the nodes of a chain, square to the junctions at its ends."""
    points = [nodes[node] for node in chain]
    if len(chain) == 2:
        points.insert(1, _swerve(rng, points[0], points[1]))
    leave, arrive = arms[chain[0]][chain[1]], arms[chain[-1]][chain[-2]] + np.pi
    knots = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    slopes = [np.array([np.cos(yaw), np.sin(yaw)]) for yaw in (leave, arrive)]
    spline = CubicSpline(knots, np.array(points), bc_type=((1, slopes[0]), (1, slopes[1])))
    curve = spline(np.linspace(0.0, knots[-1], int(knots[-1] * 10)))
    return make_road(name=name, curve=curve, lanes=2 if rng.random() < 0.45 else 1,
                     start=chain[0], end=chain[-1],
                     bays=(bool(rng.random() < 0.5), bool(rng.random() < 0.5)))


def _swerve(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A point beside the middle of a street, through which it bends."""
    along = b - a
    left = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    return (a + b) / 2.0 + float(rng.uniform(-1.0, 1.0)) * 7.0 * left
