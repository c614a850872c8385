"""Proposals of works at the road side: barriers and cones towards the road, a machine, workers.

Site frame: u along the lane, v away from the road, origin on the kerb; metres.
"""
from typing import List, Optional

import numpy as np

from bevfusion_enhanced.synthetic.agents import Agent, draw_agent
from bevfusion_enhanced.synthetic.vehicles import pick_near
from bevfusion_enhanced.synthetic.world import Placed, Proposal, World

_BARRIER_SPACING = 2.65
_BARRIER_V = 0.45
_CONE_SPACING = 1.5
_CONE_GAP = 2.3
"""Between the middle of the last barrier and the first cone."""
_CONE_FLARE = 0.25
"""By how much each further cone stands farther from the road."""
_MACHINE_V = 1.15
_WORKER_U, _WORKER_V = (4.8, 6.0), (1.4, 2.4)
_MARGIN = 0.05


def works(world: World, *, name: str, probe: int, reach: float) -> Optional[Proposal]:
    """Works behind the kerb; with a machine where a construction vehicle is asked for."""
    rng, graph = world.rng, world.graph
    chosen = pick_near(world, graph.points, probe, reach)
    kerb = None if chosen is None else world.kerb(lane=graph.point_lane[chosen],
                                                  index=int(graph.point_index[chosen]))
    if kerb is None:
        return None
    site = _Site(world, origin=kerb[0], yaw=kerb[1])
    count = int(rng.integers(3, 6))
    end = _BARRIER_SPACING * (count - 1) / 2
    for u in np.linspace(-end, end, count):
        site.add('barrier', u, _BARRIER_V, np.pi / 2 + rng.uniform(-0.04, 0.04))
    for direction, most in ((-1, 3), (1, 2)):
        for index in range(int(rng.integers(most - 1, most + 1))):
            u = direction * (end + _CONE_GAP + _CONE_SPACING * index)
            v = _BARRIER_V + _CONE_FLARE * index + rng.uniform(-0.1, 0.1)
            site.add('traffic_cone', u, v, rng.uniform(-np.pi, np.pi))
    if name == 'construction_vehicle':
        machine = draw_agent(name=name, rng=rng)
        site.place(machine, rng.uniform(-1.0, 1.0), _MACHINE_V + machine.size[1] / 2,
                   rng.uniform(-0.08, 0.08) + np.pi * rng.integers(2))
    for side in (-1, 1)[:int(rng.integers(1, 3))]:
        worker = draw_agent(name='pedestrian', rng=rng,
                            category='human.pedestrian.construction_worker')
        site.place(worker, side * rng.uniform(*_WORKER_U), rng.uniform(*_WORKER_V),
                   rng.uniform(-np.pi, np.pi))
    return site.proposal()


class _Site:
    """Collects what stands at the works, in their own frame."""

    def __init__(self, world: World, *, origin: np.ndarray, yaw: float) -> None:
        self._world, self._origin, self._yaw = world, origin, yaw
        self._along = np.array([np.cos(yaw), np.sin(yaw)])
        self._away = np.array([np.sin(yaw), -np.cos(yaw)])
        self._group: List[Placed] = []

    def add(self, name: str, u: float, v: float, turn: float) -> None:
        """Draw something of a class and place it, turned against the lane's yaw."""
        self.place(draw_agent(name=name, rng=self._world.rng), u, v, turn)

    def place(self, agent: Agent, u: float, v: float, turn: float) -> None:
        """Place an agent, turned against the lane's yaw."""
        x, y = self._origin + u * self._along + v * self._away
        self._group.append(Placed(agent, self._world.still(x, y, self._yaw + turn)))

    def proposal(self) -> Optional[Proposal]:
        """None where something would stand on a lane (the road bends, or a junction is near)."""
        if any(self._world.blocks_lane(poses[0], agent.size) for agent, poses in self._group):
            return None
        return Proposal(self._group, _MARGIN)
