"""What moves or stands in the world: the ten kinds, their sizes, colours and nuScenes vocabulary.

Sizes are (length, width, height) in metres; of a barrier, as in nuScenes, the length is the thin
side.
"""
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping, Tuple

import numpy as np

from bevfusion_enhanced.synthetic.scene import CLASSES

MOVING_SPEED = 0.2
"""Metres a second above which nuScenes' tools take an object for a moving one."""


@dataclass(frozen=True)
class Kind:
    """A detection class as the simulator draws it.

    Attributes:
        size: Mean length, width, height in metres (the means of nuScenes).
        spread: Largest relative deviation of an instance's size from the mean.
        categories: nuScenes categories with the share of each.
        colour: RGB base colour; tells the class to a camera.
        intensity: LiDAR intensity of its surface, 0..255.
        moving: Attribute while it moves, '' where the class has none.
        resting: Attribute while it does not.
    """
    size: Tuple[float, float, float]
    spread: float
    categories: Tuple[Tuple[str, float], ...]
    colour: Tuple[int, int, int]
    intensity: float
    moving: str = ''
    resting: str = ''


KINDS: Mapping[str, Kind] = MappingProxyType({
    'car': Kind((4.63, 1.96, 1.74), 0.08, (('vehicle.car', 1.0),), (205, 35, 45), 26.0,
                'vehicle.moving', 'vehicle.parked'),
    'truck': Kind((6.90, 2.50, 2.85), 0.10, (('vehicle.truck', 1.0),), (45, 95, 215), 32.0,
                  'vehicle.moving', 'vehicle.parked'),
    'construction_vehicle': Kind((6.40, 2.80, 3.20), 0.10, (('vehicle.construction', 1.0),),
                                 (240, 190, 30), 42.0, 'vehicle.moving', 'vehicle.parked'),
    'bus': Kind((11.20, 2.95, 3.45), 0.05,
                (('vehicle.bus.rigid', 0.85), ('vehicle.bus.bendy', 0.15)),
                (25, 175, 175), 28.0, 'vehicle.moving', 'vehicle.stopped'),
    'trailer': Kind((12.30, 2.90, 3.90), 0.08, (('vehicle.trailer', 1.0),), (235, 235, 240), 48.0,
                    'vehicle.moving', 'vehicle.parked'),
    'barrier': Kind((0.50, 2.50, 0.98), 0.04, (('movable_object.barrier', 1.0),), (165, 50, 170),
                    70.0),
    'motorcycle': Kind((2.10, 0.77, 1.47), 0.08, (('vehicle.motorcycle', 1.0),), (35, 30, 60),
                       20.0, 'cycle.with_rider', 'cycle.without_rider'),
    'bicycle': Kind((1.70, 0.60, 1.28), 0.08, (('vehicle.bicycle', 1.0),), (125, 230, 60), 15.0,
                    'cycle.with_rider', 'cycle.without_rider'),
    'pedestrian': Kind((0.73, 0.67, 1.77), 0.09,
                       (('human.pedestrian.adult', 0.88), ('human.pedestrian.child', 0.07),
                        ('human.pedestrian.police_officer', 0.05)),
                       (250, 150, 175), 12.0, 'pedestrian.moving', 'pedestrian.standing'),
    'traffic_cone': Kind((0.41, 0.41, 1.07), 0.08, (('movable_object.trafficcone', 1.0),),
                         (255, 115, 10), 90.0),
})

_RIDER_HEIGHT = {'motorcycle': (1.27, 1.62), 'bicycle': (1.08, 1.66)}  # without, with a rider
_CHILD = 0.68
_SITTING = 0.72


@dataclass(frozen=True)
class Agent:
    """One instance: what never changes about it.

    Attributes:
        class_id: Index into `CLASSES`.
        category: nuScenes category.
        size: Length, width, height in metres, whole millimetres.
        colour: RGB, 0..255.
        intensity: LiDAR intensity of its surface, 0..255.
        resting: Attribute while it does not move, '' where the class has none.
    """
    class_id: int
    category: str
    size: Tuple[float, float, float]
    colour: Tuple[int, int, int]
    intensity: float
    resting: str

    @property
    def class_name(self) -> str:
        """Its detection class."""
        return CLASSES[self.class_id]

    def attribute(self, speed: float) -> str:
        """The nuScenes attribute at a speed in m/s; '' for classes that carry none."""
        return KINDS[self.class_name].moving if speed > MOVING_SPEED else self.resting


def draw_agent(*, name: str, rng: np.random.Generator, ridden: bool = False,
               sitting: bool = False, category: str = '') -> Agent:
    """Draw an instance of a class.

    Args:
        name: One of `CLASSES`.
        rng: Source of the size, the colour and the category.
        ridden: Of a motorcycle or bicycle: with a rider, who makes it taller.
        sitting: Of a pedestrian: sits and is lower.
        category: The nuScenes category; drawn by its share where empty.
    """
    kind = KINDS[name]
    if not category:
        names, shares = zip(*kind.categories, strict=True)
        category = names[int(rng.choice(len(names), p=shares))]
    size = np.array(kind.size)
    if name in _RIDER_HEIGHT:
        size[2] = _RIDER_HEIGHT[name][int(ridden)]
    if category.endswith('child'):
        size *= _CHILD
    if sitting:
        size[2] *= _SITTING
    size *= 1 + rng.uniform(-kind.spread, kind.spread, size=3)
    colour = np.clip(np.array(kind.colour) + rng.integers(-22, 23, size=3), 0, 255)
    return Agent(class_id=CLASSES.index(name), category=category,
                 size=tuple(float(round(edge, 3)) for edge in size),
                 colour=tuple(int(channel) for channel in colour),
                 intensity=float(kind.intensity * rng.uniform(0.8, 1.2)),
                 resting='pedestrian.sitting_lying_down' if sitting else kind.resting)


CATEGORIES: Tuple[str, ...] = (
    'human.pedestrian.adult', 'human.pedestrian.child', 'human.pedestrian.wheelchair',
    'human.pedestrian.stroller', 'human.pedestrian.personal_mobility',
    'human.pedestrian.police_officer', 'human.pedestrian.construction_worker', 'animal',
    'vehicle.car', 'vehicle.motorcycle', 'vehicle.bicycle', 'vehicle.bus.bendy',
    'vehicle.bus.rigid', 'vehicle.truck', 'vehicle.construction', 'vehicle.emergency.ambulance',
    'vehicle.emergency.police', 'vehicle.trailer', 'movable_object.barrier',
    'movable_object.trafficcone', 'movable_object.pushable_pullable', 'movable_object.debris',
    'static_object.bicycle_rack')
"""All 23 categories of nuScenes; those without a kind above do not occur."""
