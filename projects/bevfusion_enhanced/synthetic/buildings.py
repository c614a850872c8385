"""Buildings: boxes in rows behind the walkways, facing the streets, with gaps between them.

Frame: town frame. Shapes: B buildings, (B, 7) x, y, z of the centre, length, width, height, yaw;
length runs along the street.
"""
from typing import List

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

FRONTAGE = (8.0, 20.0)
DEPTH = (7.0, 15.0)
HEIGHT = (5.0, 20.0)
SETBACK = (0.8, 3.0)
"""From the border of what is taken to the front."""
CLEARANCE = 0.3
"""Least distance from what is taken."""
GAP = (2.5, 9.0)
"""Between neighbours in a row."""
SEARCH_STEP = 3.0
ROW_DISTANCES = (0.0, 22.0)
"""Distance of the rows from the walkways and car parks."""


def make_buildings(rng: np.random.Generator, *, land: Polygon,
                   taken: shapely.Geometry) -> np.ndarray:
    """(B, 7) buildings on free land; none overlap.

    Args:
        land: Where buildings may stand.
        taken: Roads, walkways and car parks: where they may not, and what they stand along.
    """
    free = land.difference(taken.buffer(CLEARANCE))
    shapely.prepare(free)
    boxes: List[np.ndarray] = []
    footprints: List[Polygon] = []
    for distance in ROW_DISTANCES:
        for part in shapely.get_parts(taken.buffer(distance)):
            part = shapely.normalize(shapely.simplify(part, 0.3))
            for ring in [part.exterior, *part.interiors]:
                _build_row(rng, ring=ring, free=free, boxes=boxes, footprints=footprints)
    return np.array(boxes).reshape(-1, 7)


def _build_row(rng: np.random.Generator, *, ring: LineString, free: shapely.Geometry,
               boxes: List[np.ndarray], footprints: List[Polygon]) -> None:
    """Walks along a border and adds a building wherever one fits.

    Rings of a normalised polygon run clockwise outside and counter-clockwise around holes: the free
    land lies to the left.
    """
    at = 0.0
    while at < ring.length:
        box = _candidate(rng, ring=ring, at=at, side=1.0)
        footprint = footprint_of(box)
        if free.contains(footprint) and _stands_free(footprint, footprints):
            boxes.append(box)
            footprints.append(footprint)
            at += box[3] + float(rng.uniform(*GAP))
        else:
            at += SEARCH_STEP


def _stands_free(footprint: Polygon, others: List[Polygon]) -> bool:
    return not others or bool((shapely.distance(footprint, np.array(others)) > GAP[0]).all())


def _candidate(rng: np.random.Generator, *, ring: LineString, at: float,
               side: float) -> np.ndarray:
    """(7,) a building whose front starts at length `at` of the ring; side +1 is left of it."""
    frontage, depth, height, setback = (float(rng.uniform(*bounds)) for bounds in
                                        (FRONTAGE, DEPTH, HEIGHT, SETBACK))
    ends = shapely.get_coordinates(shapely.line_interpolate_point(
        ring, [at, min(at + frontage, ring.length)]))
    yaw = float(np.arctan2(*(ends[1] - ends[0])[::-1]))
    left = np.array([-np.sin(yaw), np.cos(yaw)])
    x, y = ends.mean(axis=0) + side * (setback + depth / 2.0) * left
    return np.array([x, y, height / 2.0, frontage, depth, height, yaw])


def footprint_of(box: np.ndarray) -> Polygon:
    """The ground rectangle of a (7,) box."""
    x, y, _, length, width, _, yaw = box
    corners = 0.5 * np.array([[-length, -width], [length, -width], [length, width],
                              [-length, width]])
    c, s = np.cos(yaw), np.sin(yaw)
    return Polygon(corners @ np.array([[c, s], [-s, c]]) + (x, y))
