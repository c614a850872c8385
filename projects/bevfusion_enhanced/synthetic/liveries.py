"""What is painted on boxes: windows, lamps and wheels of vehicles, stripes, clothes, storeys.

A box's unit frame is the cube [-1, 1]^3 with x along its length (+1 is the front), y to the left, z
up. `where` is a place on its surface in that frame, (3, N) for N pixels; colours are float32 RGB in
0..255. Details sit where they tell classes apart and front from rear.
"""
from typing import NamedTuple, Tuple

import numpy as np

from .scene import CLASSES, SCENERY, Snapshot

_F = np.float32
BACK, FRONT, RIGHT, LEFT, BOTTOM, TOP = range(6)
"""Faces of a box, in the order 2 * axis + (1 on the positive side)."""

GLASS = np.array([38, 46, 58], np.float32)
TYRE = np.array([24, 24, 26], np.float32)
HEADLIGHT = np.array([255, 250, 225], np.float32)
TAIL_LIGHT = np.array([214, 28, 22], np.float32)
WHITE = np.array([238, 238, 235], np.float32)
SKIN = np.array([206, 162, 134], np.float32)
WINDOW = np.array([84, 98, 116], np.float32)

_ID = {name: index for index, name in enumerate(CLASSES)}
_VEHICLES = tuple(_ID[name] for name in ('car', 'truck', 'construction_vehicle', 'bus', 'trailer'))
_WINDOWS = np.array([[-0.85, 0.70, 0.10, 0.75, 1, 1],      # car
                     [0.55, 0.95, 0.05, 0.70, 1, 0],       # truck: the cab
                     [-0.30, 0.35, 0.10, 0.85, 1, 1],      # construction vehicle: the cabin
                     [-0.96, 0.96, -0.10, 0.60, 1, 1],     # bus
                     [2.00, 2.00, 2.00, 2.00, 0, 0]], _F)  # trailer: none
"""Per vehicle class: side windows from x to x, from z to z; whether front and rear have one."""
_WHEEL_RADIUS = 0.36
_STOREY = 3.2
_BAY = 3.0


class _Patch(NamedTuple):
    """Pixels of some classes: places in the unit frame, half sizes in metres, faces."""
    where: np.ndarray
    half: np.ndarray
    face: np.ndarray
    box: np.ndarray

    @property
    def metres(self) -> np.ndarray:
        """(3, N) from the middle of the box's bottom."""
        metres = self.where * self.half
        metres[2] += self.half[2]
        return metres


def paint(snapshot: Snapshot, box: np.ndarray, where: np.ndarray,
          face: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Colours of places on boxes, before light, and how strongly each shines by itself.

    Args:
        snapshot: The boxes.
        box: (N,) index of the box.
        where: (3, N) place on it.
        face: (N,) the face it is on.

    Returns:
        (N, 3) colours and (N,) glow, 0 for a surface that only reflects.
    """
    colour = snapshot.colours[box].astype(_F)
    glow = np.zeros(len(box), _F)
    half = (snapshot.boxes[:, 3:6] / 2).astype(_F)
    class_ids = snapshot.class_ids[box]
    for members, painter in ((_VEHICLES, _vehicle), ((_ID['barrier'],), _barrier),
                             ((_ID['motorcycle'], _ID['bicycle']), _cycle),
                             ((_ID['pedestrian'],), _pedestrian),
                             ((_ID['traffic_cone'],), _cone), ((SCENERY,), _building)):
        chosen = np.flatnonzero(np.isin(class_ids, members))
        if len(chosen):
            patch = _Patch(where=where[:, chosen], half=half[box[chosen]].T, face=face[chosen],
                           box=box[chosen])
            colour[chosen], glow[chosen] = painter(patch, colour[chosen], class_ids[chosen])
    return colour, glow


def _vehicle(patch: _Patch, body: np.ndarray, class_ids: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    colour, (x, y, z), face = body.copy(), patch.where, patch.face
    metres, side = patch.metres, patch.face // 2 == 1
    cargo = (class_ids == _ID['truck']) & (x < 0.45)
    colour[cargo] = 0.45 * colour[cargo] + 0.55 * WHITE
    hatched = (class_ids == _ID['construction_vehicle']) & (z < -0.3)
    colour[hatched & ((metres[0] + metres[1] + metres[2]) % 0.8 < 0.4)] = TYRE
    colour[metres[2] < 0.28] *= _F(0.45)

    low_x, high_x, low_z, high_z, front, back = _WINDOWS[class_ids].T
    across = np.where(side, (x > low_x) & (x < high_x), np.abs(y) < 0.85)
    glazed = side | ((face == FRONT) & (front > 0)) | ((face == BACK) & (back > 0))
    colour[glazed & across & (z > low_z) & (z < high_z)] = GLASS
    wheel = np.square((np.abs(x) - 0.62) * patch.half[0]) + np.square(metres[2] - _WHEEL_RADIUS)
    colour[side & (wheel < _WHEEL_RADIUS ** 2)] = TYRE

    lamp = (np.abs(y) > 0.5) & (np.abs(y) < 0.92) & (z > -0.55) & (z < -0.2)
    head = lamp & (face == FRONT) & (class_ids != _ID['trailer'])
    tail = lamp & (face == BACK)
    colour[head], colour[tail] = HEADLIGHT, TAIL_LIGHT
    return colour, (head | tail).astype(_F)


def _barrier(patch: _Patch, body: np.ndarray, class_ids: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    colour, metres = body.copy(), patch.metres
    colour[(metres[0] + metres[1]) % 0.8 < 0.4] = WHITE
    return colour, np.zeros(len(colour), _F)


def _cone(patch: _Patch, body: np.ndarray, class_ids: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    colour, z = body.copy(), patch.where[2]
    colour[(z > -0.05) & (z < 0.4)] = WHITE
    colour[z < -0.85] = TYRE
    return colour, np.zeros(len(colour), _F)


def _pedestrian(patch: _Patch, body: np.ndarray,
                class_ids: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    colour, z = body.copy(), patch.where[2]
    colour[z < -0.1] *= _F(0.4)
    colour[z > 0.72] = SKIN
    return colour, np.zeros(len(colour), _F)


def _cycle(patch: _Patch, body: np.ndarray, class_ids: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    colour, (x, _, z) = body.copy(), patch.where
    frame = np.where(class_ids == _ID['motorcycle'], 0.35, 0.08)
    wheels = (z < -0.1) & (np.abs(z + 0.35) > frame)
    colour[wheels] = TYRE
    colour[(z > 0.65) & (np.abs(x) < 0.5)] = SKIN
    return colour, np.zeros(len(colour), _F)


def _building(patch: _Patch, body: np.ndarray,
              class_ids: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    colour, metres = body.copy(), patch.metres
    along = np.where(patch.face // 2 == 0, metres[1], metres[0]) / _F(_BAY)
    up = metres[2] / _F(_STOREY)
    bay, storey = np.floor(along), np.floor(up)
    wall = patch.face < BOTTOM
    colour[wall & (up - storey < 0.08)] *= _F(0.75)
    pane = (np.abs(along - bay - 0.5) < 0.26) & (up - storey > 0.35) & (up - storey < 0.8) & wall
    colour[pane] = WINDOW
    # A cheap hash: every window of every building is dark or lit, for good.
    lit = np.sin(bay * 12.9898 + storey * 78.233 + patch.box * 37.719) * 43758.547 % 1 < 0.3
    return colour, (pane & lit) * _F(1.2)
