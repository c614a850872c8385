"""Colours of what a camera's rays meet: ground by material, boxes by class, sky.

Everything is drawn from positions, so that two cameras, or two instants, see the same pattern on
the same thing. Colours are float32 RGB in 0..255, (3, N) for N pixels; the camera adds haze and
clips.

A box's unit frame is the cube [-1, 1]^3 with x along its length (+1 is the front), z up.
"""
import numpy as np

from bevfusion_enhanced.synthetic import liveries
from bevfusion_enhanced.synthetic.light import Light
from bevfusion_enhanced.synthetic.raycast import material_at
from bevfusion_enhanced.synthetic.scene import Ground, Material, Snapshot

_F = np.float32

MATERIAL_COLOURS = np.zeros((len(Material), 3), np.float32)
"""RGB of each `Material` before texture and light."""
MATERIAL_COLOURS[Material.TERRAIN] = 104, 116, 72
MATERIAL_COLOURS[Material.ROAD] = 86, 87, 90
MATERIAL_COLOURS[Material.CARPARK] = 112, 92, 92
MATERIAL_COLOURS[Material.WALKWAY] = 158, 148, 132
MATERIAL_COLOURS[Material.PED_CROSSING] = 190, 190, 186
MATERIAL_COLOURS[Material.STOP_LINE] = 232, 232, 228
MATERIAL_COLOURS[Material.LANE_DIVIDER] = 222, 222, 218
MATERIAL_COLOURS[Material.ROAD_DIVIDER] = 226, 186, 62

_TEXTURE_STRENGTH = np.zeros(len(Material), np.float32)
_TEXTURE_STRENGTH[[Material.TERRAIN, Material.ROAD, Material.CARPARK, Material.WALKWAY]] = \
    0.16, 0.07, 0.07, 0.06
_TEXTURE_STRENGTH[Material.PED_CROSSING:] = 0.05

_TILE = 256
_GRAIN = np.random.default_rng(11).uniform(-1, 1, (_TILE, _TILE)).astype(np.float32).reshape(-1)
_SHADOW = _F(0.5)
_FACE_NORMALS = np.kron(np.eye(3), [[-1.0], [1.0]])


def ground_colours(ground: Ground, origin: np.ndarray, rays: np.ndarray, shadowed: np.ndarray,
                   light: Light) -> np.ndarray:
    """Colours (3, N) where falling rays meet the plane z = 0.

    Args:
        ground: Material of the plane.
        origin: (3,) global position of the camera.
        rays: (3, N) global directions of depth one.
        shadowed: (N,) which pixels lie in the contact shadow of a box.
        light: The light of the scene.
    """
    depth = _F(-origin[2]) / np.minimum(rays[2], _F(-1e-3 * origin[2]))
    x, y = rays[0] * depth + _F(origin[0]), rays[1] * depth + _F(origin[1])
    material = material_at(ground, x, y)
    detail = 1 / (1 + (depth * _F(1 / 25)) ** 2)
    factor = 1 + _TEXTURE_STRENGTH[material] * (_grain(x, y, 6.0) * detail + _grain(x, y, 0.37))
    factor *= 1 - detail * _pattern(material, x, y)
    factor *= _F(light.on_normals(np.array([[0.0, 0.0, 1.0]]))[0]) + light.from_lamps(depth)
    factor[shadowed] *= _SHADOW
    return np.take(MATERIAL_COLOURS.T, material, axis=1) * factor


def sky_colours(rays: np.ndarray, light: Light) -> np.ndarray:
    """Colours (3, N) of rays (3, N) that meet nothing: a gradient with faint clouds."""
    steepness = rays[2] / np.sqrt(np.square(rays).sum(0))
    blend = np.sqrt(np.clip(steepness, 0, 1))
    reach = 40 / (np.maximum(steepness, 0) + _F(0.08))
    blend *= 1 + 0.08 * _grain(rays[0] * reach, rays[1] * reach, 0.25)
    horizon, zenith = light.horizon.astype(_F)[:, None], light.zenith.astype(_F)[:, None]
    return horizon + blend * (zenith - horizon)


def box_colours(snapshot: Snapshot, box: np.ndarray, where: np.ndarray, depth: np.ndarray,
                light: Light) -> np.ndarray:
    """Colours (3, N) where rays meet boxes.

    Args:
        snapshot: The boxes.
        box: (N,) index of the box that each pixel shows.
        where: (3, N) the place on it, in its unit frame.
        depth: (N,) depth in metres.
        light: The light of the scene.
    """
    face = liveries.faces(where)
    paint = liveries.paints(snapshot, box, where, face)
    colours = liveries.palette(snapshot)                                        # (K, C, 3)
    factors = np.maximum(_face_light(snapshot, light)[:, None], light.glow * liveries.GLOW[:, None])
    lit = (colours[:, :, None] * factors[..., None]).reshape(-1, 3)             # (K * C * 6, 3)
    painted = box * np.int32(len(liveries.Paint)) + paint
    colour = np.take(lit.T.copy(), painted * np.int32(6) + face, axis=1)
    if light.lamps:
        body = np.take(colours.reshape(-1, 3).T.copy(), painted, axis=1)
        colour += body * light.from_lamps(depth)
    return colour


def add_haze(colour: np.ndarray, depth: np.ndarray, light: Light) -> None:
    """Blends colours (3, N) in place with the horizon's, the more the deeper they lie."""
    clear = np.exp(depth * _F(-1 / light.visibility))
    for channel, horizon in zip(colour, light.horizon.astype(_F), strict=True):
        channel -= horizon
        channel *= clear
        channel += horizon


def _face_light(snapshot: Snapshot, light: Light) -> np.ndarray:
    """(K, 6) light on each face of each box, in the order of `liveries`' faces."""
    yaw = snapshot.boxes[:, 6]
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x, y, z = _FACE_NORMALS.T
    normals = np.stack([cos * x - sin * y, sin * x + cos * y, z + 0 * cos], -1)
    return light.on_normals(normals.reshape(-1, 3)).reshape(-1, 6).astype(_F)


def _grain(x: np.ndarray, y: np.ndarray, cells_per_metre: float) -> np.ndarray:
    """Random values in -1..1 on a square grid that repeats every 256 cells."""
    scale = _F(cells_per_metre)
    column = np.floor(x * scale).astype(np.int32) & (_TILE - 1)
    row = np.floor(y * scale).astype(np.int32) & (_TILE - 1)
    return _GRAIN[row * _TILE + column]


def _pattern(material: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of its light that regular marking takes from each place: bars of a crossing, slabs."""
    dark = np.zeros(len(x), _F)
    bars = np.flatnonzero(material == Material.PED_CROSSING)
    # Diagonal bars look alike on crossings of streets of any direction.
    dark[bars] = 0.35 * ((x[bars] + y[bars]) * _F(0.7) % 1 < 0.5)
    slabs = np.flatnonzero(material == Material.WALKWAY)
    dark[slabs] = 0.2 * ((x[slabs] * _F(0.8) % 1 < 0.1) | (y[slabs] * _F(0.8) % 1 < 0.1))
    return dark
