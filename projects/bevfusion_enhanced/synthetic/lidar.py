"""A 32-beam spinning LiDAR: rays against the ground plane and the boxes of a snapshot.

Points are in the LIDAR_TOP frame of the instant of the scan (x right, y forward, z up; metres);
the vehicle's motion during the turn is ignored. Rays fire column by column, all rings of one
azimuth from the lowest up, with the azimuth falling (clockwise seen from above). Missing returns
leave no point.

Every box is cast a margin smaller than it is, and noise never carries a return out of that smaller
box. The ground is cast a little below z = 0 and noise never lifts it above. So a return of box k
lies inside box k, no ground return lies in a box that stands on the ground, and counting the points
inside a box agrees with counting its returns (other than where boxes overlap).

Shapes: R rays = columns x 32 rings, K boxes, P (ray, box) pairs.
"""
from functools import lru_cache
from typing import NamedTuple, Tuple

import numpy as np

from bevfusion_enhanced.synthetic.raycast import (
    BoxFrames,
    box_frames,
    expand_ranges,
    material_at,
    slab_interval,
)
from bevfusion_enhanced.synthetic.scene import Ground, Material, Snapshot

RINGS = 32
COLUMNS = 1084
LOWEST = np.radians(-30.67)
HIGHEST = np.radians(10.67)
MAX_RANGE = 100.0
RANGE_NOISE = 0.02
"""Standard deviation of a range in metres."""
MARGIN = 0.005
"""How far inside a box's faces, and below the ground, every return stays, in metres."""
DROP_OUT = 0.03
"""Share of returns lost at short range."""
ELEVATIONS = np.linspace(LOWEST, HIGHEST, RINGS)
"""(32,) elevation of each ring in radians, the lowest first."""

_NOTHING, _GROUND, _VEHICLE = -3, -2, -1
_GROUND_REACH = 75.0
_GRAZING = 0.01
_MATERIAL_INTENSITY = np.zeros(len(Material), np.float32)
_MATERIAL_INTENSITY[[Material.TERRAIN, Material.ROAD, Material.CARPARK, Material.WALKWAY]] = \
    22, 8, 10, 17
_MATERIAL_INTENSITY[[Material.PED_CROSSING, Material.STOP_LINE, Material.LANE_DIVIDER,
                     Material.ROAD_DIVIDER]] = 38, 45, 42, 35
_ROOF = (0.5, -0.95, -0.25, -0.35)
"""The patch of the own roof that low beams meet: |x| below, y from, y to, z; LIDAR_TOP frame."""
_VEHICLE_INTENSITY = 4.0


class LidarScan(NamedTuple):
    """One turn of the LiDAR.

    Attributes:
        points: (P, 5) float32 x, y, z, intensity (whole numbers 0..255), ring (0 the lowest).
        box_index: (P,) int64 index into the snapshot's boxes, or -1 for ground and own vehicle.
    """
    points: np.ndarray
    box_index: np.ndarray


def scan(*, snapshot: Snapshot, ground: Ground, lidar2global: np.ndarray,
         rng: np.random.Generator, columns: int = COLUMNS) -> LidarScan:
    """Fires every ray once.

    Args:
        snapshot: The boxes that can be hit, at the time of the scan.
        ground: Material of the plane z = 0.
        lidar2global: (4, 4) pose of the LiDAR.
        rng: Source of range noise, drop-outs and intensity noise; the only randomness.
        columns: Azimuth steps of a turn.
    """
    directions = ray_directions(columns)
    hits = _cast_ground(directions, lidar2global)
    _add(hits, *_cast_boxes(snapshot.boxes, lidar2global, columns, directions))
    _add(hits, *_cast_own_roof(directions))

    rays = np.flatnonzero(_returned(directions, hits, rng))
    surface = hits.surface[rays]
    noise = rng.standard_normal(len(rays), np.float32) * np.float32(RANGE_NOISE)
    ranges = np.clip(hits.first[rays] + RANGE_NOISE + noise, hits.first[rays], hits.last[rays])
    points = np.empty((len(rays), 5), np.float32)
    points[:, :3] = directions[rays] * ranges[:, None]
    points[:, 3] = _intensity(snapshot, ground, lidar2global, points[:, :3], surface, rng)
    points[:, 4] = rays % RINGS
    return LidarScan(points=points, box_index=np.maximum(surface, -1))


@lru_cache(maxsize=8)
def ray_directions(columns: int = COLUMNS) -> np.ndarray:
    """(columns * 32, 3) float32 unit directions in firing order, LIDAR_TOP frame. Read-only."""
    azimuth = -np.arange(columns) * (2 * np.pi / columns)
    flat, up = np.cos(ELEVATIONS), np.sin(ELEVATIONS)
    directions = np.stack([np.cos(azimuth)[:, None] * flat, np.sin(azimuth)[:, None] * flat,
                           np.broadcast_to(up, (columns, RINGS))], -1)
    directions = directions.reshape(-1, 3).astype(np.float32)
    directions.setflags(write=False)
    return directions


class _Hits(NamedTuple):
    """The nearest surface along every ray.

    Attributes:
        first: (R,) float32 shortest range that may be measured; infinite without a surface.
        last: (R,) float32 longest range that may be measured.
        surface: (R,) int64 index of a box, or one of the codes `_NOTHING`, `_GROUND`, `_VEHICLE`.
    """
    first: np.ndarray
    last: np.ndarray
    surface: np.ndarray


def _add(hits: _Hits, rays: np.ndarray, first: np.ndarray, last: np.ndarray,
         surface: np.ndarray) -> None:
    """Enters candidate surfaces into `hits` where they are nearer; several may share a ray."""
    nearest = hits.first.copy()
    np.minimum.at(nearest, rays, first)
    wins = (first == nearest[rays]) & (first < hits.first[rays])
    rays = rays[wins]
    hits.first[rays], hits.last[rays], hits.surface[rays] = first[wins], last[wins], surface[wins]


def _cast_ground(directions: np.ndarray, lidar2global: np.ndarray) -> _Hits:
    descent = -(directions @ lidar2global[2, :3].astype(np.float32))
    falling = descent > _GRAZING
    first = np.full(len(directions), np.inf, np.float32)
    first[falling] = np.float32(lidar2global[2, 3] + MARGIN) / descent[falling]
    return _Hits(first=first, last=np.full_like(first, np.inf),
                 surface=np.where(falling, _GROUND, _NOTHING))


def _cast_boxes(boxes: np.ndarray, lidar2global: np.ndarray, columns: int,
                directions: np.ndarray) -> Tuple[np.ndarray, ...]:
    """Candidates (rays, first, last, box), each only among the rays that can meet the box."""
    shrunk = boxes.copy()
    shrunk[:, 3:6] = np.maximum(boxes[:, 3:6] - 2 * MARGIN, boxes[:, 3:6] / 2)
    frames = box_frames(shrunk, lidar2global)
    first_column, column_count, first_ring, ring_count = _ray_windows(frames, columns)
    fan_box, column = expand_ranges(first_column, column_count)
    fan, ring = expand_ranges(first_ring[fan_box], ring_count[fan_box])
    box = fan_box[fan]
    rays = (column % columns)[fan] * RINGS + ring
    x, y, z = directions[rays].T
    turn = frames.rotation.reshape(-1, 9)[box].T
    steps = tuple(turn[3 * i] * x + turn[3 * i + 1] * y + turn[3 * i + 2] * z for i in range(3))
    enter, leave = slab_interval(tuple(frames.origin[box].T), steps)
    met = np.flatnonzero((enter < leave) & (enter > 0) & (enter < MAX_RANGE))
    return rays[met], enter[met], leave[met], box[met]


def _ray_windows(frames: BoxFrames, columns: int) -> Tuple[np.ndarray, ...]:
    """First column, columns, first ring and rings, (K,) each, that can meet each box.

    A box is convex: seen from the LiDAR's axis it lies between the azimuths of its corners, or all
    around where these span half a turn. Its elevations are bounded by its lowest and highest corner
    at the nearest and farthest distance from the axis.
    """
    x, y, z = np.moveaxis(frames.corners, -1, 0)                              # (K, 8) each
    middle = np.arctan2(y.mean(1), x.mean(1))
    turn = np.angle(np.exp(1j * (np.arctan2(y, x) - middle[:, None])))
    around = np.ptp(turn, 1) > np.pi - 1e-3
    step = 2 * np.pi / columns
    low = np.ceil(-(middle + turn.max(1)) / step - 1e-3).astype(np.int64)
    high = np.floor(-(middle + turn.min(1)) / step + 1e-3).astype(np.int64)
    first_column = np.where(around, 0, low)
    column_count = np.where(around, columns, np.maximum(high - low + 1, 0))

    distance = np.hypot(x, y)
    nearest = np.where(around, 1e-3, np.maximum(_distance_to_axis(x, y), 1e-3))
    farthest = np.maximum(distance.max(1), nearest)
    bottom, top = z.min(1), z.max(1)
    lowest = np.arctan2(bottom, np.where(bottom < 0, nearest, farthest))
    highest = np.arctan2(top, np.where(top > 0, nearest, farthest))
    pitch = ELEVATIONS[1] - ELEVATIONS[0]
    first_ring = np.ceil((lowest - LOWEST) / pitch - 1e-3).astype(np.int64).clip(0, RINGS)
    last_ring = np.floor((highest - LOWEST) / pitch + 1e-3).astype(np.int64).clip(-1, RINGS - 1)
    ring_count = np.where(nearest < MAX_RANGE, np.maximum(last_ring - first_ring + 1, 0), 0)
    return first_column, column_count, first_ring, ring_count


def _distance_to_axis(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A lower bound on the distance of the origin from convex hulls of points (K, 8), in the plane.

    The reach of a hull along any direction is such a bound; of the directions to its points the one
    with the largest reach is taken.
    """
    length = np.maximum(np.hypot(x, y), 1e-6)
    reach = (x[:, :, None] * x[:, None] + y[:, :, None] * y[:, None]) / length[:, :, None]
    return reach.min(2).max(1)


def _cast_own_roof(directions: np.ndarray) -> Tuple[np.ndarray, ...]:
    """Candidates (rays, first, last, surface) of the beams that end on the own vehicle."""
    half_width, rear, front, height = _ROOF
    low = np.flatnonzero(directions[:, 2] < np.sin(LOWEST / 2))
    ranges = np.float32(height) / directions[low, 2]
    x, y = directions[low, 0] * ranges, directions[low, 1] * ranges
    met = (np.abs(x) < half_width) & (y > rear) & (y < front)
    rays, ranges = low[met], ranges[met]
    return rays, ranges, ranges + 2 * np.float32(RANGE_NOISE), np.full(len(rays), _VEHICLE)


def _returned(directions: np.ndarray, hits: _Hits, rng: np.random.Generator) -> np.ndarray:
    """(R,) which rays come back: within range, and spared by drop-outs that grow with range.

    The ground is lost first, because far rays graze it.
    """
    reach = np.where(hits.surface == _GROUND, _GROUND_REACH, 1.3 * MAX_RANGE)
    with np.errstate(over='ignore'):
        kept = (1 - DROP_OUT) * np.exp(-(np.minimum(hits.first, 1e3) / reach) ** 4)
    in_range = hits.first < MAX_RANGE - 5 * RANGE_NOISE
    return in_range & (rng.random(len(directions), np.float32) < kept)


def _intensity(snapshot: Snapshot, ground: Ground, lidar2global: np.ndarray, xyz: np.ndarray,
               surface: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(P,) whole numbers 0..255 for returns at `xyz` (LIDAR_TOP frame) from these surfaces."""
    intensity = np.full(len(xyz), _VEHICLE_INTENSITY, np.float32)
    on_ground = np.flatnonzero(surface == _GROUND)
    ground_xy = xyz[on_ground] @ lidar2global[:2, :3].T + lidar2global[:2, 3]
    intensity[on_ground] = _MATERIAL_INTENSITY[material_at(ground, ground_xy[:, 0],
                                                           ground_xy[:, 1])]
    on_box = np.flatnonzero(surface >= 0)
    intensity[on_box] = snapshot.intensities[surface[on_box]]
    speckle = np.exp(0.25 * rng.standard_normal(len(xyz), np.float32))
    return np.clip(np.rint(intensity * speckle), 0, 255)
