"""Proposals of vehicles: driving on lanes, parked in spots, in car parks and at kerbs.

Every function proposes agents of one class for a `World`, so that they are near the ego at a given
probe time, or answers None where its dice fell badly. Global frame, metres, seconds.
"""
from typing import Optional, Tuple

import numpy as np
import shapely

from bevfusion_enhanced.synthetic.agents import draw_agent
from bevfusion_enhanced.synthetic.paths import Path, sideways_acceleration
from bevfusion_enhanced.synthetic.world import Placed, Proposal, World

SPEEDS = {'bicycle': (2.8, 5.0), 'motorcycle': (4.5, 9.0)}
_SPEED = (4.0, 9.0)
_DRIVING_MARGIN = 0.3
_PARKED_MARGIN = 0.15
_HITCH = 0.8
_AXLES = 0.3
_LARGEST_CUT = 0.9
SIDEWAYS_LIMIT = 4.5
"""Largest acceleration in a turn, in m/s^2."""
_DRAWS = 12
_SEEN_HEIGHT = 1.5
_CYCLES = ('bicycle', 'motorcycle')


def driving(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A vehicle on a lane, at a speed that hardly changes; a cycle has a rider."""
    rng = world.rng
    agent = draw_agent(name=name, rng=rng, ridden=True)
    found = _drive(world, name=name, probe=probe, reach=reach, behind=agent.size[0])
    if found is None:
        return None
    path, arc = found
    offset = 0.0
    if name in _CYCLES:
        offset = -rng.uniform(0.0, 0.8)
    poses = _poses(path, arc, agent.size[0], offset)
    if _cuts_corner(path, arc, poses) or _too_fast(world, poses):
        return None
    return Proposal([Placed(agent, poses)], _DRIVING_MARGIN)


def towing(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A truck that pulls a trailer along a lane."""
    truck = draw_agent(name='truck', rng=world.rng)
    trailer = draw_agent(name='trailer', rng=world.rng)
    gap = (truck.size[0] + trailer.size[0]) / 2 + _HITCH
    found = _drive(world, name='truck', probe=probe, reach=reach, behind=gap + trailer.size[0])
    if found is None:
        return None
    path, arc = found
    pulled = _poses(path, arc - gap, trailer.size[0], 0.0)
    if _cuts_corner(path, arc - gap, pulled) or _too_fast(world, pulled):
        return None
    return Proposal([Placed(truck, _poses(path, arc, truck.size[0], 0.0)),
                     Placed(trailer, pulled)], _DRIVING_MARGIN)


def parked(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A vehicle in a parking spot, forwards or backwards."""
    spots = world.town.parking_spots
    spot = pick_near(world, spots[:, :2], probe, reach) if len(spots) else None
    if spot is None:
        return None
    agent = draw_agent(name=name, rng=world.rng)
    x, y, yaw = spots[spot] + world.rng.uniform(-1, 1, size=3) * (0.25, 0.1, 0.03)
    yaw += np.pi * world.rng.integers(2)
    return Proposal([Placed(agent, world.still(x, y, yaw))], 0.05)


def in_car_park(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A long vehicle that stands across the spots of a car park."""
    spots = world.town.parking_spots
    spot = pick_near(world, spots[:, :2], probe, reach) if len(spots) else None
    if spot is None:
        return None
    agent = draw_agent(name=name, rng=world.rng)
    x, y, yaw = spots[spot]
    yaw += np.pi / 2 + np.pi * world.rng.integers(2)
    corner = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.array(agent.size[:2]) / 2
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    corners = shapely.points(np.array([x, y]) + corner @ turn.T)
    if not any(shapely.covers(park, corners).all()
               for park in world.town.polygons['carpark_area']):
        return None
    return Proposal([Placed(agent, world.still(x, y, yaw))], _PARKED_MARGIN)


def at_kerb(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A vehicle parked at the kerb: in the bay where the road has one, else up on the side."""
    graph, rng = world.graph, world.rng
    chosen = pick_near(world, graph.points, probe, reach)
    if chosen is None:
        return None
    kerb = world.kerb(lane=graph.point_lane[chosen], index=int(graph.point_index[chosen]))
    if kerb is None:
        return None
    point, yaw, distance = kerb
    agent = draw_agent(name=name, rng=rng)
    width = agent.size[1]
    lane = graph.lanes[graph.point_lane[chosen]]
    has_bay = distance - lane.width / 2 > 1.8
    outwards = -width / 2 + 0.35 if has_bay else width / 2 + rng.uniform(0.05, 0.3)
    x, y = point + outwards * np.array([np.sin(yaw), -np.cos(yaw)])
    pose = np.array([x, y, yaw + rng.uniform(-0.02, 0.02)])
    if world.blocks_lane(pose, agent.size):
        return None
    return Proposal([Placed(agent, world.still(*pose))], _PARKED_MARGIN)


def _drive(world: World, *, name: str, probe: int, reach: float, behind: float
           ) -> Optional[Tuple[Path, np.ndarray]]:
    """A route near the ego at a probe: path, arc length at every time (T,)."""
    graph, rng = world.graph, world.rng
    chosen = pick_near(world, graph.points, probe, reach)
    if chosen is None:
        return None
    name_of_lane = graph.point_lane[chosen]
    low, high = SPEEDS.get(name, _SPEED)
    speed = rng.uniform(low, high)
    if name_of_lane in world.ego_lanes and name != 'bicycle':
        speed = world.ego_speed * rng.uniform(0.97, 1.03)
    elapsed = world.times - world.times[world.probes[probe]]
    spare = behind + 4.0
    route = graph.route(lane=name_of_lane, index=int(graph.point_index[chosen]),
                        before=-1.15 * speed * elapsed[0] + spare,
                        after=1.15 * speed * elapsed[-1] + spare, rng=rng)
    if route is None:
        return None
    path, start = route
    if rng.random() < 0.4:
        elapsed = elapsed + _surge(elapsed, rng)
    return path, start + speed * elapsed


def _surge(elapsed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Seconds (T,) by which a driver gets ahead of or behind a constant speed; 0 at elapsed = 0."""
    swing, rate, phase = rng.uniform(0.05, 0.12), rng.uniform(0.4, 1.0), rng.uniform(0, 2 * np.pi)
    return swing / rate * (np.cos(phase) - np.cos(rate * elapsed + phase))


def _poses(path: Path, arc: np.ndarray, length: float, offset: float) -> np.ndarray:
    return path.poses(arc, behind=_AXLES * length, ahead=_AXLES * length, offset=offset)


def _cuts_corner(path: Path, arc: np.ndarray, poses: np.ndarray) -> bool:
    """Whether a body is too long for a turn: its middle would leave the lane's."""
    return bool(np.hypot(*(poses[:, :2] - path.positions(arc)).T).max() > _LARGEST_CUT)


def _too_fast(world: World, poses: np.ndarray) -> bool:
    """Whether a body takes a turn faster than anybody would."""
    step = float(world.times[1] - world.times[0])
    return sideways_acceleration(poses, step=step) > SIDEWAYS_LIMIT


def pick_near(world: World, points: np.ndarray, probe: int, reach: float) -> Optional[int]:
    """Index of a random one of points (N, 2) the ego sees at a probe; None if none is found."""
    ego = world.ego_poses[world.probes[probe], :2]
    near = np.flatnonzero(np.hypot(*(points - ego).T) < reach)
    if not len(near):
        return None
    drawn = near[world.rng.integers(len(near), size=_DRAWS)]
    seen = world.are_seen(points[drawn], height=_SEEN_HEIGHT, probe=probe)
    return int(drawn[np.argmax(seen)]) if seen.any() else None
