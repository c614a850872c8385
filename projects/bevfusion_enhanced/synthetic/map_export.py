"""Files of a town's map: the vector map expansion and the two images that nuScenes ships.

Images are 8 bit PNG with north up (row 0 = largest y).
"""
import json
from pathlib import Path
from typing import Dict, Tuple, Union

import cv2
import numpy as np

from bevfusion_enhanced.synthetic.map_records import map_records
from bevfusion_enhanced.synthetic.raster import DRIVABLE
from bevfusion_enhanced.synthetic.scene import Material, Town

SEMANTIC_PRIOR_NAMES: Dict[str, str] = {
    'singapore-onenorth': '53992ee3023e5494b90c316c183be829.png',
    'singapore-hollandvillage': '37819e65e09e5547b8a3ceaefba56bb2.png',
    'singapore-queenstown': '93406b464a165eaba6d9de76ca09f5da.png',
    'boston-seaport': '36092f0b03a857c6a3403e25b4b7aab3.png'}
"""File names that the devkit expects in maps/, by location."""

COLOURS: Dict[Material, Tuple[int, int, int]] = {
    Material.TERRAIN: (168, 190, 150), Material.ROAD: (90, 92, 96),
    Material.CARPARK: (122, 120, 130), Material.WALKWAY: (196, 190, 180),
    Material.PED_CROSSING: (240, 240, 236), Material.STOP_LINE: (214, 74, 62),
    Material.LANE_DIVIDER: (250, 250, 250), Material.ROAD_DIVIDER: (240, 196, 60)}
"""RGB of the base map."""

BASEMAP_STEP = 2
"""The base map keeps every second pixel of the ground raster: viewers stretch it to the canvas."""

PathLike = Union[str, Path]


def write_map_files(town: Town, root: PathLike) -> None:
    """Everything under `maps/` of a nuScenes root that belongs to a town's location."""
    maps = Path(root) / 'maps'
    write_map_expansion(town, maps / 'expansion' / f'{town.location}.json')
    write_semantic_prior(town, maps / SEMANTIC_PRIOR_NAMES[town.location])
    write_basemap(town, maps / 'basemap' / f'{town.location}.png')


def write_map_expansion(town: Town, path: PathLike) -> None:
    """The vector map as map expansion JSON, version 1.3."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        json.dump(map_records(town), file, separators=(',', ':'))


def write_semantic_prior(town: Town, path: PathLike) -> None:
    """The drivable area as a mask: one channel, 255 = drivable, one pixel a raster cell (0.1 m)."""
    mask = np.isin(town.ground.labels, DRIVABLE).astype(np.uint8) * 255
    _write_png(path, mask[::-1])


def write_basemap(town: Town, path: PathLike) -> None:
    """The ground in colour, for the devkit's renderings."""
    palette = np.array([COLOURS[material] for material in Material], np.uint8)
    rgb = palette[town.ground.labels[::-BASEMAP_STEP, ::BASEMAP_STEP]]
    _write_png(path, rgb[..., ::-1])


def _write_png(path: PathLike, image: np.ndarray) -> None:
    """Writes (H, W) grey or (H, W, 3) BGR pixels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode('.png', np.ascontiguousarray(image),
                           [cv2.IMWRITE_PNG_COMPRESSION, 6])
    path.write_bytes(data.tobytes())
