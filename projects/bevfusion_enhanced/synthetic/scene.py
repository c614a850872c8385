"""The records that the simulator's parts hand to each other: a town, one instant of its world.

Frames and units, everywhere in `synthetic/`: metres, seconds, radians. The global frame of a town
has x east, y north, z up, its origin at the south-west corner and the ground at z = 0. Yaw is
counter-clockwise from global +x; a box of yaw 0 has its length along x. Sizes are (length, width,
height); nuScenes' (width, length, height) appears only where tables are written.
"""
from dataclasses import dataclass
from enum import IntEnum
from typing import Dict, Tuple

import numpy as np
from shapely.geometry import LineString, Polygon

CLASSES: Tuple[str, ...] = ('car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier',
                            'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone')
"""The ten detection classes in BEVFusion's order; `class_ids` below index it."""

SCENERY = -1
"""Class id of a box that sensors see and nobody annotates (buildings, walls)."""


class Material(IntEnum):
    """What the ground is made of, from the vector map; later members are painted over earlier."""
    TERRAIN = 0
    ROAD = 1
    CARPARK = 2
    WALKWAY = 3
    PED_CROSSING = 4
    STOP_LINE = 5
    LANE_DIVIDER = 6
    ROAD_DIVIDER = 7


@dataclass(frozen=True)
class Lane:
    """One directed lane, or the connector of two lanes inside an intersection.

    Attributes:
        centreline: (P, 2) points in driving direction, at most 2 m apart.
        successors: Names of the lanes that can follow.
    """
    name: str
    centreline: np.ndarray
    width: float
    successors: Tuple[str, ...]
    is_connector: bool


@dataclass(frozen=True)
class Ground:
    """The ground as a raster: `labels[row, column]` is the `Material` at
    x = (column + 0.5) * resolution, y = (row + 0.5) * resolution (row 0 is the south edge).
    """
    labels: np.ndarray
    resolution: float


@dataclass(frozen=True)
class Town:
    """A location: its vector map, the raster drawn from it, and where agents may go.

    Attributes:
        location: One of nuScenes' four location names.
        size: (width, height) in metres.
        lanes: By name.
        polygons: By layer: drivable_area, road_segment, road_block, lane, ped_crossing, walkway,
            stop_line, carpark_area.
        lines: By layer: road_divider, lane_divider.
        walk_paths: Polylines (P, 2) along the middle of walkways.
        crossing_paths: Polylines (2, 2) across the roads at pedestrian crossings.
        parking_spots: (S, 3) x, y, yaw of the centre of a parked car (car parks and kerbs).
        buildings: (B, 7) x, y, z of the centre, length, width, height, yaw.
    """
    location: str
    size: Tuple[float, float]
    lanes: Dict[str, Lane]
    polygons: Dict[str, Tuple[Polygon, ...]]
    lines: Dict[str, Tuple[LineString, ...]]
    ground: Ground
    walk_paths: Tuple[np.ndarray, ...]
    crossing_paths: Tuple[np.ndarray, ...]
    parking_spots: np.ndarray
    buildings: np.ndarray


@dataclass(frozen=True)
class Snapshot:
    """Every box of the world at one instant, in the global frame.

    Attributes:
        boxes: (K, 7) float64: x, y, z of the centre, length, width, height, yaw.
        class_ids: (K,) int64 index into `CLASSES`, or `SCENERY`.
        colours: (K, 3) uint8 RGB of the box.
        intensities: (K,) float32 LiDAR intensity of the surface, 0..255.
    """
    boxes: np.ndarray
    class_ids: np.ndarray
    colours: np.ndarray
    intensities: np.ndarray
