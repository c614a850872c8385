"""Rays against the ground plane and yaw-oriented boxes, as flat lists of (ray, box) pairs.

A sensor's rays start at its origin and are given in its own frame. Each box has a frame of its own
in which it is the cube [-1, 1]^3 (x along its length, y along its width, z up), so that the slab
test (Kay and Kajiya, "Ray Tracing Complex Scenes", SIGGRAPH 1986) needs no box size. A ray `t * d`
of the sensor frame is `origin + t * (rotation @ d)` in a box's frame, with the same parameter t.

Shapes: K boxes, P (ray, box) pairs.
"""
from typing import NamedTuple, Tuple

import numpy as np

from bevfusion_enhanced.synthetic.scene import Ground, Material

CORNER_SIGNS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
"""(8, 3) corners of the unit cube; bits 4, 2 and 1 of a corner's number choose x, y and z."""

_TINY = 1e-9


class BoxFrames(NamedTuple):
    """How a sensor's rays look from each box.

    Attributes:
        origin: (K, 3) float32 sensor position in the box's unit frame.
        rotation: (K, 3, 3) float32 sensor directions to the box's unit frame.
        corners: (K, 8, 3) float64 corners in the sensor frame, metres, in `CORNER_SIGNS` order.
    """
    origin: np.ndarray
    rotation: np.ndarray
    corners: np.ndarray


def box_frames(boxes: np.ndarray, sensor2global: np.ndarray) -> BoxFrames:
    """Changes of frame between a sensor and boxes (K, 7: x, y, z of the centre, l, w, h, yaw).

    Raises:
        ValueError: If a box is not seven numbers wide.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(f'boxes must be (K, 7), got {boxes.shape}')
    cos, sin, zero = np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))
    global2box = np.stack([cos, sin, zero, -sin, cos, zero, zero, zero, zero + 1], 1)
    global2box = global2box.reshape(-1, 3, 3)
    half = boxes[:, 3:6] / 2
    offset = sensor2global[:3, 3] - boxes[:, :3]
    origin = np.einsum('kij,kj->ki', global2box, offset)
    rotation = global2box @ sensor2global[:3, :3]
    corners = CORNER_SIGNS * half[:, None] - origin[:, None]           # box frame, from the sensor
    corners = np.einsum('kij,kci->kcj', rotation, corners)
    return BoxFrames(origin=(origin / half).astype(np.float32),
                     rotation=(rotation / half[:, :, None]).astype(np.float32), corners=corners)


def expand_ranges(starts: np.ndarray, counts: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Lists start, start + 1, ... for every range.

    Returns:
        (P,) int32 range that each entry belongs to, and (P,) int32 entries; P = sum of counts.
    """
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    entry = np.arange(len(owner), dtype=np.int32)
    entry += np.repeat((starts - (np.cumsum(counts) - counts)).astype(np.int32), counts)
    return owner, entry


def slab_interval(origin: Tuple[np.ndarray, ...],
                  direction: Tuple[np.ndarray, ...]) -> Tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave the unit cube; they miss it where enter > leave.

    Args:
        origin: Three (P,) float32 arrays, the ray origins' x, y and z.
        direction: Three (P,) float32 arrays. Edited in place, to save memory traffic.
    """
    enter = leave = None
    for start, step in zip(origin, direction, strict=True):
        step[np.abs(step) < _TINY] = _TINY
        inverse = np.reciprocal(step, out=step)
        middle = start * inverse
        reach = np.abs(inverse, out=inverse)
        near = -reach - middle
        far = np.subtract(reach, middle, out=middle)
        enter = near if enter is None else np.maximum(enter, near, out=enter)
        leave = far if leave is None else np.minimum(leave, far, out=leave)
    return enter, leave


def material_at(ground: Ground, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Ground material (uint8) at global positions; TERRAIN outside the raster."""
    rows, columns = ground.labels.shape
    column = np.floor(x / ground.resolution).astype(np.int32)
    row = np.floor(y / ground.resolution).astype(np.int32)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    flat = np.where(inside, row * columns + column, 0)
    labels = ground.labels.reshape(-1)[flat].astype(np.uint8)
    return np.where(inside, labels, np.uint8(Material.TERRAIN))
