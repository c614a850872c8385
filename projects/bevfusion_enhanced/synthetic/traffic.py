"""Who drives, walks and stands in a scene: the ego vehicle's drive, and everybody near it.

`simulate` fills the surroundings of the ego until every class is as dense as `TARGETS` asks; no two
boxes touch at any time. Global frame, metres, seconds, yaw counter-clockwise from +x.
Shapes: T times, A agents, B buildings, K = A + B boxes; agents come first.
"""
from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Optional, Tuple

import numpy as np
import shapely
from shapely.geometry import LineString

from bevfusion_enhanced.synthetic.agents import Agent
from bevfusion_enhanced.synthetic.paths import LaneGraph, sideways_acceleration
from bevfusion_enhanced.synthetic.scene import SCENERY, Snapshot, Town
from bevfusion_enhanced.synthetic.vehicles import (
    SIDEWAYS_LIMIT,
    at_kerb,
    driving,
    in_car_park,
    parked,
    towing,
)
from bevfusion_enhanced.synthetic.walkers import crossing, parked_cycles, standing, walking
from bevfusion_enhanced.synthetic.works import works
from bevfusion_enhanced.synthetic.world import Proposal, World

TIME_STEP = 0.05
LEAD = 0.15
"""Seconds simulated before the start and after the end: cameras fire a little before the LiDAR."""
EGO_SPEED = (5.0, 9.0)
WHEELBASE = 2.6
_ROUTE_CANDIDATES = 60
_AHEAD = 8.0
_DISTRICT = 60.0
"""Distance in metres from where a drive should be that outweighs one map layer."""
_VIEW = 45.0
_TRIES = 320

Proposer = Callable[..., Optional[Proposal]]


class Target(NamedTuple):
    """At least `count` agents of a class within `reach` metres of the ego, by these proposers."""
    name: str
    count: int
    reach: float
    proposers: Tuple[Proposer, ...]


TARGETS: Tuple[Target, ...] = (
    Target('construction_vehicle', 2, 38.0, (works, works, works, in_car_park)),
    Target('barrier', 6, 27.0, (works,)),
    Target('traffic_cone', 6, 27.0, (works,)),
    Target('trailer', 2, 42.0, (at_kerb, in_car_park, towing)),
    Target('bus', 2, 42.0, (at_kerb, in_car_park, driving, driving)),
    Target('truck', 2, 42.0, (at_kerb, in_car_park, driving)),
    Target('car', 12, 42.0, (parked, driving, driving, at_kerb)),
    Target('motorcycle', 3, 32.0, (parked_cycles, driving, driving)),
    Target('bicycle', 3, 32.0, (parked_cycles, driving, driving)),
    Target('pedestrian', 12, 32.0, (walking, walking, walking, walking, crossing, standing)),
)
"""In the order of placing: what needs much room, and hides others, first."""


@dataclass(frozen=True)
class Traffic:
    """Everything that the sensors of a scene can meet, over its whole duration.

    Attributes:
        agents: The A agents.
        times: (T,) evenly spaced.
        agent_poses: (A, T, 3) x, y, yaw of the centres; the yaw has no jumps along T.
        ego_poses: (T, 3) x, y, yaw of the ego's origin, on the ground under its rear axle.
        buildings: (B, 7) boxes of the buildings in sight.
        building_colours: (B, 3) uint8 RGB.
    """
    agents: Tuple[Agent, ...]
    times: np.ndarray
    agent_poses: np.ndarray
    ego_poses: np.ndarray
    buildings: np.ndarray
    building_colours: np.ndarray

    def ego2global(self, t: float) -> np.ndarray:
        """(4, 4) pose of the ego frame at time t."""
        x, y, yaw = self._at(self.ego_poses, t)
        cos, sin = np.cos(yaw), np.sin(yaw)
        return np.array([[cos, -sin, 0.0, x], [sin, cos, 0.0, y], [0.0, 0.0, 1.0, 0.0],
                         [0.0, 0.0, 0.0, 1.0]])

    def agent_boxes(self, t: float) -> np.ndarray:
        """(A, 7) boxes of the agents at time t: x, y, z of the centre, size, yaw."""
        poses = self._at(self.agent_poses, t)
        sizes = np.array([agent.size for agent in self.agents]).reshape(-1, 3)
        return np.concatenate([poses[:, :2], sizes[:, 2:] / 2, sizes, poses[:, 2:]], axis=-1)

    def agent_velocities(self, t: float) -> np.ndarray:
        """(A, 2) velocities of the agents' centres at time t, in m/s."""
        before, after = (self._at(self.agent_poses, t + dt)[:, :2] for dt in (-1e-3, 1e-3))
        return (after - before) / 2e-3

    def snapshot(self, t: float) -> Snapshot:
        """All boxes at time t: the A agents, then the B buildings."""
        colours = np.array([agent.colour for agent in self.agents], np.uint8).reshape(-1, 3)
        ids = np.array([agent.class_id for agent in self.agents], np.int64)
        intensities = np.array([agent.intensity for agent in self.agents], np.float32)
        count = len(self.buildings)
        return Snapshot(
            boxes=np.concatenate([self.agent_boxes(t), self.buildings]),
            class_ids=np.concatenate([ids, np.full(count, SCENERY, np.int64)]),
            colours=np.concatenate([colours, self.building_colours]),
            intensities=np.concatenate([intensities, np.full(count, 18.0, np.float32)]))

    def _at(self, poses: np.ndarray, t: float) -> np.ndarray:
        """Poses (..., T, 3) interpolated at time t."""
        if not self.times[0] <= t <= self.times[-1]:
            raise ValueError(f't must lie within {self.times[0]} and {self.times[-1]}, got {t}')
        place = (t - self.times[0]) / (self.times[-1] - self.times[0]) * (len(self.times) - 1)
        index = min(int(place), len(self.times) - 2)
        share = place - index
        return poses[..., index, :] * (1 - share) + poses[..., index + 1, :] * share


def simulate(*, town: Town, seed: int, duration: float, bearing: Optional[float] = None) -> Traffic:
    """Simulate the traffic around an ego vehicle that drives through a town.

    Args:
        town: Where.
        seed: The same seed gives the same traffic.
        duration: Seconds; poses are known from `LEAD` before 0 until `LEAD` after it.
        bearing: Direction from the middle of the town to where the ego is to drive, in radians
            counter-clockwise from east; anywhere if None.

    Raises:
        ValueError: If no route through the town is long enough.
    """
    rng = np.random.default_rng(seed)
    steps = int(np.ceil((duration + 2 * LEAD) / TIME_STEP))
    times = -LEAD + TIME_STEP * np.arange(steps + 1)
    world = _start(town, times, rng, bearing)
    for target in TARGETS:
        fill(world, target)
    placed = world.placed
    shades = rng.integers(120, 205, size=(len(world.buildings), 1))
    tint = rng.integers(-14, 15, size=(len(world.buildings), 3))
    return Traffic(agents=tuple(p.agent for p in placed), times=times,
                   agent_poses=np.array([p.poses for p in placed]).reshape(-1, len(times), 3),
                   ego_poses=world.ego_poses, buildings=world.buildings,
                   building_colours=(shades + tint).astype(np.uint8))


def fill(world: World, target: Target) -> None:
    """Propose agents where they are missing most, until the target is met or patience ends."""
    count = world.visible_count(target.name, reach=target.reach)
    for _ in range(_TRIES):
        missing = np.maximum(target.count - count, 0)
        if not missing.any():
            return
        probe = int(world.rng.choice(len(missing), p=missing / missing.sum()))
        propose = target.proposers[int(world.rng.integers(len(target.proposers)))]
        proposal = propose(world, name=target.name, probe=probe, reach=0.9 * target.reach)
        if proposal is not None and world.place(proposal):
            count = world.visible_count(target.name, reach=target.reach)


def _start(town: Town, times: np.ndarray, rng: np.random.Generator, bearing: Optional[float]
           ) -> World:
    """Choose the ego's route: of some random ones, that which passes most of what a map holds."""
    graph = LaneGraph(town=town)
    speed = rng.uniform(*EGO_SPEED)
    elapsed = times - times[0]
    swing, phase = rng.uniform(0.0, 0.1), rng.uniform(0, 2 * np.pi)
    arc = speed * (elapsed + swing * (np.cos(phase) - np.cos(0.7 * elapsed + phase)) / 0.7)
    best: Optional[np.ndarray] = None
    best_score = -1.0
    for _ in range(_ROUTE_CANDIDATES):
        chosen = int(rng.integers(len(graph.points)))
        route = graph.route(lane=graph.point_lane[chosen], index=int(graph.point_index[chosen]),
                            before=0.0, after=arc[-1] + _AHEAD, rng=rng)
        if route is None:
            continue
        poses = route[0].poses(arc + route[1], behind=0.0, ahead=WHEELBASE)
        if sideways_acceleration(poses, step=TIME_STEP) > SIDEWAYS_LIMIT:
            continue
        score = _interest(town, poses, bearing) + rng.uniform(0, 0.5)
        if score > best_score:
            best, best_score = poses, score
    if best is None:
        raise ValueError(f'no route of {arc[-1]:.0f} m in the town of {town.location}')
    return World(town=town, rng=rng, times=times, ego_poses=best,
                 ego_lanes=_lanes_under(graph, best), ego_speed=speed)


def _interest(town: Town, poses: np.ndarray, bearing: Optional[float]) -> float:
    """How many map layers and parking spots a drive (T, 3) passes, and how well it lies."""
    drive, size = LineString(poses[::10, :2]), np.array(town.size)
    near = [any(shapely.dwithin(list(town.polygons[layer]), drive, _VIEW - 15.0))
            for layer in ('ped_crossing', 'walkway', 'stop_line', 'carpark_area')]
    spots = shapely.dwithin(shapely.points(town.parking_spots[:, :2]), drive, _VIEW).sum()
    inside = min(poses[:, :2].min(), (size - poses[:, :2]).min())
    interest = sum(near) + min(spots / 40.0, 1.0) + min(inside / 50.0, 1.0)
    if bearing is None:
        return interest
    goal = size / 2 + 0.25 * size * np.array([np.cos(bearing), np.sin(bearing)])
    return interest - float(np.hypot(*(poses[len(poses) // 2, :2] - goal))) / _DISTRICT


def _lanes_under(graph: LaneGraph, poses: np.ndarray) -> Tuple[str, ...]:
    """Names of the lanes whose points the ego passes within a metre in their direction."""
    near: List[str] = []
    for name, lane in graph.lanes.items():
        distance = np.hypot(*np.moveaxis(lane.centreline[:, None] - poses[None, ::4, :2], -1, 0))
        if (distance.min(1) < 1.0).sum() > 1:
            near.append(name)
    return tuple(near)
