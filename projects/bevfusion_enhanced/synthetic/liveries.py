"""What is painted on boxes: windows, lamps and wheels of vehicles, stripes, clothes, storeys.

A box's unit frame is the cube [-1, 1]^3 with x along its length (+1 is the front), y to the left,
z up. Every place on a box shows one of a few paints; the details sit where they tell classes apart,
and front from rear. Colours are float32 RGB in 0..255.

Shapes: K boxes, N pixels, C paints.
"""
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from bevfusion_enhanced.synthetic.scene import CLASSES, SCENERY, Snapshot

BACK, FRONT, RIGHT, LEFT, BOTTOM, TOP = range(6)
"""Faces of a box, in the order 2 * axis + (1 on the positive side)."""


class Paint(IntEnum):
    """The paints of a box; the first three are shades of its own colour."""
    BODY = 0
    SHADED = 1
    PALE = 2
    GLASS = 3
    TYRE = 4
    HEADLIGHT = 5
    TAIL_LIGHT = 6
    WHITE = 7
    SKIN = 8
    WINDOW = 9
    LIT_WINDOW = 10


GLOW = np.zeros(len(Paint), np.float32)
"""(C,) how strongly each paint shines by itself."""
GLOW[[Paint.HEADLIGHT, Paint.TAIL_LIGHT, Paint.LIT_WINDOW]] = 1.0, 1.0, 0.9

_FIXED = np.array([[38, 46, 58], [24, 24, 26], [255, 250, 225], [214, 28, 22], [238, 238, 235],
                   [206, 162, 134], [84, 98, 116], [128, 120, 100]], np.float32)
_ID = {name: index for index, name in enumerate(CLASSES)}
_VEHICLES = ('car', 'truck', 'construction_vehicle', 'bus', 'trailer')
_WINDOWS = np.array([[-0.85, 0.70, 0.10, 0.75, 1, 1],      # car
                     [0.55, 0.95, 0.05, 0.70, 1, 0],       # truck: the cab
                     [-0.30, 0.35, 0.10, 0.85, 1, 1],      # construction vehicle: the cabin
                     [-0.96, 0.96, -0.10, 0.60, 1, 1],     # bus
                     [2.00, 2.00, 2.00, 2.00, 0, 0]],      # trailer: none
                    np.float32).T.copy()
"""Rows: side windows from x, to x, from z, to z, front has one, rear has one; columns: classes."""
_WHEEL_RADIUS = 0.36
_STOREY = 3.2
_BAY = 3.0


class Places(NamedTuple):
    """Places on boxes that pixels show.

    Attributes:
        x: (N,) float32 in the unit frame, like y and z.
        half: (3, N) float32 half sizes of the box in metres.
        face: (N,) int face of the box.
        box: (N,) int index of the box.
        class_id: (N,) int class of the box.
    """
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    half: np.ndarray
    face: np.ndarray
    box: np.ndarray
    class_id: np.ndarray

    @property
    def height(self) -> np.ndarray:
        """(N,) metres above the box's bottom."""
        return (self.z + 1) * self.half[2]


def palette(snapshot: Snapshot) -> np.ndarray:
    """(K, C, 3) colour of each paint on each box."""
    body = snapshot.colours.astype(np.float32)
    colours = np.empty((len(body), len(Paint), 3), np.float32)
    colours[:, Paint.BODY] = body
    colours[:, Paint.SHADED] = 0.45 * body
    colours[:, Paint.PALE] = 0.45 * body + 0.55 * 238
    colours[:, Paint.GLASS:] = _FIXED
    return colours


def faces(where: np.ndarray) -> np.ndarray:
    """(N,) uint8 face on which each place (3, N) of a unit frame lies."""
    x, y, z = np.abs(where)
    side = np.where(x > y, BACK, RIGHT)
    axis = np.where(np.maximum(x, y) > z, side, BOTTOM).astype(np.uint8)
    front, left, top = (where > 0).view(np.uint8)
    return axis + np.where(axis == BACK, front, np.where(axis == RIGHT, left, top))


def paints(snapshot: Snapshot, box: np.ndarray, where: np.ndarray, face: np.ndarray) -> np.ndarray:
    """(N,) uint8 `Paint` of places on boxes.

    Args:
        snapshot: The boxes.
        box: (N,) index of the box.
        where: (3, N) place on it, in its unit frame.
        face: (N,) the face it lies on.
    """
    painted = np.zeros(len(box), np.uint8)
    half = (snapshot.boxes[:, 3:6].T / 2).astype(np.float32)
    class_ids = snapshot.class_ids.astype(np.int8)
    kinds = _KINDS[class_ids][box]
    for kind, painter in enumerate(_PAINTERS):
        chosen = np.flatnonzero(kinds == kind)
        if len(chosen):
            of = box[chosen]
            x, y, z = np.take(where, chosen, axis=1)
            places = Places(x=x, y=y, z=z, half=np.take(half, of, axis=1), face=face[chosen],
                            box=of, class_id=class_ids[of])
            painted[chosen] = painter(places)
    return painted


def _vehicle(places: Places) -> np.ndarray:
    x, y, z, face, class_id = places.x, places.y, places.z, places.face, places.class_id
    height, beside = places.height, np.abs(y)
    side, front, back = face // 2 == RIGHT // 2, face == FRONT, face == BACK
    paint = np.where(height < 0.28, np.uint8(Paint.SHADED), np.uint8(Paint.BODY))
    paint[(class_id == _ID['truck']) & (x < 0.45) & (height > 0.28)] = Paint.PALE
    digger = np.flatnonzero((class_id == _ID['construction_vehicle']) & (z < -0.3))
    stripe = x[digger] * places.half[0, digger] + height[digger]
    paint[digger[stripe % 0.8 < 0.4]] = Paint.TYRE

    low_x, high_x, low_z, high_z, in_front, in_back = np.take(_WINDOWS, class_id, axis=1)
    pane = np.where(side, (x > low_x) & (x < high_x),
                    (beside < 0.85) & (front & (in_front > 0) | back & (in_back > 0)))
    paint[pane & (z > low_z) & (z < high_z)] = Paint.GLASS
    wheel = np.square((np.abs(x) - 0.62) * places.half[0]) + np.square(height - _WHEEL_RADIUS)
    paint[side & (wheel < _WHEEL_RADIUS ** 2)] = Paint.TYRE
    lamp = (np.abs(beside - 0.71) < 0.21) & (np.abs(z + 0.38) < 0.17)
    paint[lamp & front & (class_id != _ID['trailer'])] = Paint.HEADLIGHT
    paint[lamp & back] = Paint.TAIL_LIGHT
    return paint


def _barrier(places: Places) -> np.ndarray:
    along = places.x * places.half[0] + places.y * places.half[1]
    return np.where(along % 0.8 < 0.4, Paint.WHITE, Paint.BODY)


def _cone(places: Places) -> np.ndarray:
    band = (places.z > -0.05) & (places.z < 0.4)
    return np.where(places.z < -0.85, Paint.TYRE, np.where(band, Paint.WHITE, Paint.BODY))


def _pedestrian(places: Places) -> np.ndarray:
    return np.where(places.z > 0.72, Paint.SKIN,
                    np.where(places.z < -0.1, Paint.SHADED, Paint.BODY))


def _cycle(places: Places) -> np.ndarray:
    frame = np.where(places.class_id == _ID['motorcycle'], 0.35, 0.08)
    wheels = (places.z < -0.1) & (np.abs(places.z + 0.35) > frame)
    head = (places.z > 0.65) & (np.abs(places.x) < 0.5)
    return np.where(wheels, Paint.TYRE, np.where(head, Paint.SKIN, Paint.BODY))


def _building(places: Places) -> np.ndarray:
    on_end = places.face // 2 == BACK // 2
    along = np.where(on_end, places.y * places.half[1], places.x * places.half[0]) / _BAY
    up = places.height / _STOREY
    bay, storey = np.floor(along), np.floor(up)
    along, up, wall = along - bay, up - storey, places.face < BOTTOM
    paint = np.where(wall & (up < 0.08), np.uint8(Paint.SHADED), np.uint8(Paint.BODY))
    pane = np.flatnonzero((np.abs(along - 0.5) < 0.26) & (np.abs(up - 0.57) < 0.23) & wall)
    # A cheap hash: every window of every building is dark or lit, for good.
    seed = bay[pane] * 12.99 + storey[pane] * 78.23 + places.face[pane] * 3.7 + places.box[pane]
    paint[pane] = np.where(np.sin(seed) * 437.5 % 1 < 0.3, Paint.LIT_WINDOW, Paint.WINDOW)
    return paint


_PAINTERS = (_vehicle, _barrier, _cycle, _pedestrian, _cone, _building)
_KINDS = np.zeros(len(CLASSES) + 1, np.uint8)
"""Which of `_PAINTERS` each class has; `SCENERY`, being -1, indexes the last place."""
_KINDS[[_ID[name] for name in _VEHICLES]] = 0
_KINDS[_ID['barrier']] = 1
_KINDS[[_ID['motorcycle'], _ID['bicycle']]] = 2
_KINDS[_ID['pedestrian']] = 3
_KINDS[_ID['traffic_cone']] = 4
_KINDS[SCENERY] = 5
