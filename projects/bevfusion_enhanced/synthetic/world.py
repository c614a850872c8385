"""A scene while it is being filled: the ego's drive, who has been placed, and where there is room.

Global frame, metres, seconds. Shapes: T times of the scene, F of them are probes (one every half
second, where the density of objects is measured), A placed agents.
"""
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import shapely
from shapely.geometry import LineString

from bevfusion_enhanced.synthetic.agents import Agent
from bevfusion_enhanced.synthetic.occupancy import Occupancy, rectangles_overlap
from bevfusion_enhanced.synthetic.paths import LaneGraph, densified
from bevfusion_enhanced.synthetic.scene import CLASSES, Material, Town
from bevfusion_enhanced.synthetic.sightlines import LIDAR_HEIGHT, Sightlines

EGO_SIZE = (4.084, 1.730, 1.562)
EGO_CENTRE = 1.39
"""Distance of the ego vehicle's middle ahead of its origin, the rear axle."""
SIGHT = 120.0
"""Farther buildings are left out of a scene."""
_EGO_MARGIN = (4.0, 0.4)
"""Room kept free before and behind, and beside the ego."""
_TALL_DISTANCE = 18.0
_MOST_HIDDEN = 2.0
"""Agents in sight that a further one may hide, on average over the scene."""
_LANE_CORE = 0.6
_PAVED = (Material.ROAD, Material.CARPARK, Material.PED_CROSSING, Material.STOP_LINE,
          Material.LANE_DIVIDER, Material.ROAD_DIVIDER)


class Placed(NamedTuple):
    """An agent and the poses (T, 3) x, y, yaw of its centre."""
    agent: Agent
    poses: np.ndarray


class Proposal(NamedTuple):
    """Agents that are placed together or not at all, and the gap in metres they need to others."""
    group: List[Placed]
    margin: float


class World:
    """The scene being filled.

    Args:
        town: Where it takes place.
        rng: Source of all choices.
        times: (T,) in seconds.
        ego_poses: (T, 3) x, y, yaw of the ego's origin.
        ego_lanes: Names of the lanes that the ego drives on.
        ego_speed: Its mean speed.
    """

    def __init__(self, *, town: Town, rng: np.random.Generator, times: np.ndarray,
                 ego_poses: np.ndarray, ego_lanes: Tuple[str, ...], ego_speed: float) -> None:
        self.town, self.rng, self.times, self.ego_poses = town, rng, times, ego_poses
        self.ego_lanes, self.ego_speed = frozenset(ego_lanes), ego_speed
        self.graph = LaneGraph(town=town)
        self.probes = np.unique(np.searchsorted(times, np.arange(0.0, times[-1], 0.5)))
        self.placed: List[Placed] = []
        self.walk_paths = tuple(densified(path) for path in town.walk_paths)
        self.crossing_paths = tuple(densified(path) for path in town.crossing_paths)
        self.buildings = self._buildings_in_sight()
        self._walls = shapely.union_all(_footprints(self.buildings[:, [0, 1, 3, 4, 6]]))
        shapely.prepare(self._walls)
        self._lane_cores = shapely.union_all([
            LineString(lane.centreline).buffer(lane.width / 2 - _LANE_CORE, cap_style='flat')
            for lane in town.lanes.values()])
        shapely.prepare(self._lane_cores)
        self._occupancy = Occupancy(num_times=len(times))
        self._sightlines = Sightlines(origins=ego_poses[self.probes, :2], walls=self._walls)
        heading = np.stack([np.cos(ego_poses[:, 2]), np.sin(ego_poses[:, 2])], axis=-1)
        ego = np.concatenate([ego_poses[:, :2] + EGO_CENTRE * heading, ego_poses[:, 2:]], axis=-1)
        self._occupancy.add(_rectangles(ego, np.array(EGO_SIZE[:2]) + 2 * np.array(_EGO_MARGIN)))

    def place(self, proposal: Proposal) -> bool:
        """Place a group if none of it touches anything at any time or hides much; else nobody."""
        shapes = [_rectangles(poses, np.array(agent.size)) for agent, poses in proposal.group]
        bodies = [(shape, agent.size[2])
                  for (agent, _), shape in zip(proposal.group, shapes, strict=True)]
        if not all(self._occupancy.is_free(shape, margin=proposal.margin)
                   and not self._hits_wall(shape) and not self._fills_the_view(shape, height)
                   for shape, height in bodies):
            return False
        for index, shape in enumerate(shapes):
            if any(rectangles_overlap(shape, other).any() for other in shapes[:index]):
                return False
        for shape, height in bodies:
            self._occupancy.add(shape)
            self._sightlines.add(shape[self.probes], height)
        self.placed.extend(proposal.group)
        return True

    def visible_count(self, name: str, *, reach: float) -> np.ndarray:
        """(F,) agents of a class within `reach` metres of the ego that nothing hides."""
        class_id = CLASSES.index(name)
        group = np.array([p.agent.class_id == class_id for p in self.placed], bool)
        if not group.any():
            return np.zeros(len(self.probes), int)
        positions = np.stack([p.poses[self.probes, :2] for p in self.placed])[group]  # (A, F, 2)
        distance = np.hypot(*np.moveaxis(positions - self.ego_poses[self.probes, :2], -1, 0))
        return ((distance < reach) & self._sightlines.seen[group]).sum(0)

    def are_seen(self, points: np.ndarray, *, height: float, probe: int) -> np.ndarray:
        """(N,) whether something of this height at points (N, 2) is seen at a probe."""
        heights = np.full(len(points), height)
        return self._sightlines.points_seen(points[:, None], heights,
                                            probes=slice(probe, probe + 1))[:, 0]

    def still(self, x: float, y: float, yaw: float) -> np.ndarray:
        """(T, 3) poses of something that does not move."""
        return np.tile(np.array([x, y, yaw]), (len(self.times), 1))

    def blocks_lane(self, pose: np.ndarray, size: Tuple[float, float, float]) -> bool:
        """Whether a standing box reaches into the part of a lane that vehicles drive on."""
        x, y, yaw = pose
        footprint = _footprints(np.array([[x, y, size[0], size[1], yaw]]))
        return bool(shapely.intersects(self._lane_cores, footprint).any())

    def kerb(self, *, lane: str, index: int) -> Optional[Tuple[np.ndarray, float, float]]:
        """The kerb to the right of a point of a lane.

        Returns:
            A point (2,) on the kerb, the yaw of the lane and the distance of the kerb from the
            lane's middle; None where another lane or an intersection lies to the right.
        """
        line = self.graph.lanes[lane].centreline
        ahead = line[min(index + 1, len(line) - 1)] - line[max(index - 1, 0)]
        yaw = float(np.arctan2(ahead[1], ahead[0]))
        right = np.array([np.sin(yaw), -np.cos(yaw)])
        distances = np.arange(0.5, 6.0, 0.1)
        unpaved = ~np.isin(self.materials(line[index] + distances[:, None] * right), _PAVED)
        if not unpaved.any():
            return None
        distance = float(distances[np.argmax(unpaved)])
        return line[index] + distance * right, yaw, distance

    def materials(self, points: np.ndarray) -> np.ndarray:
        """(N,) `Material` of the ground at points (N, 2); terrain outside the town."""
        labels = self.town.ground.labels
        column, row = np.floor(points / self.town.ground.resolution).astype(int).T
        inside = (row >= 0) & (row < labels.shape[0]) & (column >= 0) & (column < labels.shape[1])
        found = np.full(len(points), int(Material.TERRAIN))
        found[inside] = labels[row[inside], column[inside]]
        return found

    def _buildings_in_sight(self) -> np.ndarray:
        buildings = self.town.buildings.reshape(-1, 7)
        radius = np.hypot(buildings[:, 3], buildings[:, 4]) / 2
        distance = np.hypot(*np.moveaxis(buildings[:, None, :2] - self.ego_poses[None, ::10, :2],
                                         -1, 0)).min(1)
        return buildings[distance - radius < SIGHT]

    def _fills_the_view(self, rectangles: np.ndarray, height: float) -> bool:
        """Whether something tall keeps close to the ego for long, or hides too many others."""
        distance = np.hypot(*(rectangles[:, :2] - self.ego_poses[:, :2]).T)
        if height > LIDAR_HEIGHT and float(np.median(distance)) < _TALL_DISTANCE:
            return True
        hidden = self._sightlines.newly_hidden(rectangles[self.probes], height)
        return float(hidden.sum()) > _MOST_HIDDEN * len(self.probes)

    def _hits_wall(self, rectangles: np.ndarray) -> bool:
        moves = np.ptp(rectangles[:, :2], axis=0).max() > 0
        some = rectangles[::4] if moves else rectangles[:1]
        return bool(shapely.intersects(self._walls, _footprints(some)).any())


def _rectangles(poses: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(T, 5) x, y, length, width, yaw of a body of `size` at poses (T, 3)."""
    edges = np.broadcast_to(size[:2], (len(poses), 2))
    return np.concatenate([poses[:, :2], edges, poses[:, 2:]], axis=-1)


def _footprints(rectangles: np.ndarray) -> np.ndarray:
    """(N,) polygons of rectangles (N, 5): x, y, length, width, yaw."""
    length, width, yaw = rectangles[:, 2, None], rectangles[:, 3, None], rectangles[:, 4]
    along = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1) * length / 2
    across = np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1) * width / 2
    corners = np.stack([along + across, across - along, -along - across, along - across], axis=1)
    return shapely.polygons(rectangles[:, None, :2] + corners)
