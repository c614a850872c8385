"""Proposals of people and of parked cycles.

As in `vehicles.py`: each proposes agents near the ego at a probe time, or None. Global frame,
metres.
"""
from typing import List, Optional, Tuple

import numpy as np

from bevfusion_enhanced.synthetic.agents import draw_agent
from bevfusion_enhanced.synthetic.paths import Path
from bevfusion_enhanced.synthetic.vehicles import pick_near
from bevfusion_enhanced.synthetic.world import Placed, Proposal, World

_WALKING = (0.7, 1.7)
_PERSON_MARGIN = 0.15
_STRIDE = 0.2


def walking(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A person on the way along a walkway, in either direction."""
    return _walk(world, world.walk_paths, probe, reach, sideways=1.0)


def crossing(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A person who crosses the road at a pedestrian crossing, then stands."""
    return _walk(world, world.crossing_paths, probe, reach, sideways=1.2)


def standing(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """A person who stands on a walkway; now and then one who sits."""
    spot = _spot_beside_path(world, probe, reach, sideways=1.2)
    if spot is None:
        return None
    person = draw_agent(name='pedestrian', rng=world.rng, sitting=world.rng.random() < 0.06)
    yaw = world.rng.uniform(-np.pi, np.pi)
    return Proposal([Placed(person, world.still(spot[0], spot[1], yaw))], _PERSON_MARGIN)


def parked_cycles(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """One to three cycles of a class, side by side across the edge of a walkway."""
    spot = _spot_beside_path(world, probe, reach, sideways=1.0)
    if spot is None:
        return None
    x, y, yaw = spot
    along = np.array([np.cos(yaw), np.sin(yaw)])
    group: List[Placed] = []
    lean = world.rng.uniform(-0.3, 0.3)
    for index in range(int(world.rng.integers(1, 4))):
        agent = draw_agent(name=name, rng=world.rng)
        px, py = np.array([x, y]) + 1.25 * index * along
        group.append(Placed(agent, world.still(px, py, yaw + np.pi / 2 + lean)))
    return Proposal(group, _PERSON_MARGIN)


def _walk(world: World, paths: Tuple[np.ndarray, ...], probe: int, reach: float, *,
          sideways: float) -> Optional[Proposal]:
    """A person on one of the paths, near the ego at the probe; stops at the path's end."""
    found = _point_on_path(world, paths, probe, reach)
    if found is None:
        return None
    rng = world.rng
    line, at = found
    if rng.random() < 0.5:
        line, at = line[::-1], len(line) - 1 - at
    path = Path(points=line)
    if path.length < 2.0:
        return None
    elapsed = world.times - world.times[world.probes[probe]]
    arc = path.arc_length_near(line[at]) + rng.uniform(-2.0, 2.0) + rng.uniform(*_WALKING) * elapsed
    arc = np.clip(arc, _STRIDE, path.length - _STRIDE)
    person = draw_agent(name='pedestrian', rng=rng)
    poses = path.poses(arc, behind=_STRIDE, ahead=_STRIDE, offset=rng.uniform(-sideways, sideways))
    return Proposal([Placed(person, poses)], _PERSON_MARGIN)


def _spot_beside_path(world: World, probe: int, reach: float, *, sideways: float
                      ) -> Optional[np.ndarray]:
    """(3,) x, y of a place up to `sideways` metres from a walk path, and the path's yaw there."""
    found = _point_on_path(world, world.walk_paths, probe, reach)
    if found is None:
        return None
    line, at = found
    path = Path(points=line)
    if path.length < 2.0:
        return None
    arc = path.arc_length_near(line[at]) + world.rng.uniform(-3.0, 3.0)
    return path.poses(np.array([np.clip(arc, 1.0, path.length - 1.0)]), behind=_STRIDE,
                      ahead=_STRIDE, offset=world.rng.uniform(-sideways, sideways))[0]


def _point_on_path(world: World, paths: Tuple[np.ndarray, ...], probe: int, reach: float
                   ) -> Optional[Tuple[np.ndarray, int]]:
    """A polyline (P, 2) and the index of a point of it near the ego; None without any."""
    if not paths:
        return None
    points = np.concatenate(paths)
    chosen = pick_near(world, points, probe, reach)
    if chosen is None:
        return None
    starts = np.cumsum([0] + [len(path) for path in paths])
    which = int(np.searchsorted(starts, chosen, side='right')) - 1
    return paths[which], chosen - int(starts[which])
