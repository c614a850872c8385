"""The ground as a raster, painted from the vector map.

Frame: pixel (row, column) covers x = column..column + 1, y = row..row + 1 times the resolution in
metres; row 0 is the south edge.
"""
from typing import Dict, Iterable, Sequence, Tuple

import cv2
import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

from bevfusion_enhanced.synthetic.scene import Ground, Material

RESOLUTION = 0.1
LANE_DIVIDER_WIDTH = 0.2
ROAD_DIVIDER_WIDTH = 0.3
LAYERS: Tuple[Tuple[str, Material], ...] = (
    ('drivable_area', Material.ROAD), ('carpark_area', Material.CARPARK),
    ('walkway', Material.WALKWAY), ('ped_crossing', Material.PED_CROSSING),
    ('stop_line', Material.STOP_LINE))
"""Polygon layers and their materials, in painting order; dividers follow."""
DRIVABLE = (Material.ROAD, Material.CARPARK, Material.PED_CROSSING, Material.STOP_LINE,
            Material.LANE_DIVIDER, Material.ROAD_DIVIDER)
"""Materials of which the drivable area is made."""

_SHIFT = 6
"""Fractional bits of the coordinates that OpenCV fills polygons at."""


def draw_ground(*, size: Tuple[float, float], polygons: Dict[str, Sequence[Polygon]],
                lines: Dict[str, Sequence[LineString]]) -> Ground:
    """Paints all layers; the dividers are continuous lines."""
    width, height = (int(round(side / RESOLUTION)) for side in size)
    labels = np.full((height, width), Material.TERRAIN, np.uint8)
    for layer, material in LAYERS:
        _paint(labels, polygons[layer], material)
    _close_kerbs(labels)
    for layer, material, line_width in (
            ('lane_divider', Material.LANE_DIVIDER, LANE_DIVIDER_WIDTH),
            ('road_divider', Material.ROAD_DIVIDER, ROAD_DIVIDER_WIDTH)):
        bands = shapely.buffer(np.array(lines[layer], dtype=object), line_width / 2.0,
                               cap_style='flat')
        _paint(labels, bands, material)
    return Ground(labels=labels, resolution=RESOLUTION)


def _close_kerbs(labels: np.ndarray) -> None:
    """Makes walkway of the single terrain pixels that are left between a road and a walkway."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    paved = np.isin(labels, DRIVABLE).astype(np.uint8)
    walkway = (labels == Material.WALKWAY).astype(np.uint8)
    between = cv2.dilate(paved, cross) & cv2.dilate(walkway, cross)
    labels[(between > 0) & (labels == Material.TERRAIN)] = Material.WALKWAY


def _paint(labels: np.ndarray, polygons: Iterable[Polygon], material: Material) -> None:
    """Fills polygons with holes.

    OpenCV also fills the pixels that the border runs through, so each polygon is shrunk by half a
    pixel first: areas then come out unbiased.
    """
    for part in shapely.get_parts(shapely.buffer(np.array(polygons, dtype=object),
                                                 -RESOLUTION / 2.0, join_style='mitre')):
        rings = [np.asarray(ring.coords) for ring in (part.exterior, *part.interiors)]
        pixels = [np.round((ring / RESOLUTION - 0.5) * (1 << _SHIFT)).astype(np.int32)
                  for ring in rings if len(ring)]
        if pixels:
            cv2.fillPoly(labels, pixels, int(material), shift=_SHIFT)
