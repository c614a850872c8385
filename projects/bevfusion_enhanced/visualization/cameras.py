"""Camera images with 3D boxes projected into them.

Frames: boxes in LIDAR_TOP (x right, y forward, z up, metres); `lidar2img` (4, 4) maps a column
vector (x, y, z, 1) to (u d, v d, d, 1) with u right and v down in pixels of the original image
(before any augmentation) and d the depth in metres. An edge is clipped in those homogeneous
coordinates, before the division: against the near plane and the four image borders. So a box that
is partly behind the camera shows only its part in front; none is mirrored or smeared.

Shape legend: N cameras, K boxes, E = 13 segments of a box (12 edges and the heading mark), H, W
pixels.
"""
import re
from pathlib import Path
from typing import NamedTuple, Sequence, Tuple

import cv2
import numpy as np
from matplotlib.collections import LineCollection
from PIL import Image

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.visualization.boxes import BOTTOM, FRONT_BOTTOM, DrawnBoxes
from bevfusion_enhanced.visualization.canvas import new_figure, pixel_axes, to_image

LAYOUT: Tuple[Tuple[str, ...], ...] = (('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
                                       ('CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'))
"""Where each camera stands in the picture, as in nuScenes' own."""
NEAR = 0.1
"""Depth of the near plane, metres."""

_SEGMENTS = np.array([(0, 1), (1, 2), (2, 3), (3, 0),      # rear face
                      (0, 4), (1, 5), (2, 6), (3, 7),      # sides
                      (4, 5), (5, 6), (6, 7), (7, 4),      # front face
                      (8, 9)])                             # heading: middle of the bottom to front
_FIRST_FRONT = 8
_NAME = re.compile(r'CAM_(?:FRONT|BACK)(?:_LEFT|_RIGHT)?(?=__|/|\\|$)')


class Segments(NamedTuple):
    """Straight pieces in image pixels.

    Attributes:
        pixels: (..., 2, 2) start and end as (u, v), inside the image where visible.
        visible: (...,) bool; the pixels of an invisible segment mean nothing.
    """
    pixels: np.ndarray
    visible: np.ndarray


def clip_segments(ends: np.ndarray, *, size: np.ndarray, near: float = NEAR) -> Segments:
    """Clip segments to the part of space that a camera sees (Liang and Barsky 1984).

    Args:
        ends: (..., 2, 3) start and end as (u d, v d, d).
        size: (..., 2) image width and height in pixels, or one for all.
        near: Depth of the near plane in metres, above 0.
    """
    scaled, depth = ends[..., :2], ends[..., 2:]
    room = size[..., None, :] * depth - scaled
    # ... 2 5, not negative on the seen side of each plane
    inside = np.concatenate([depth - near, scaled, room], axis=-1)
    start, end = inside[..., 0, :], inside[..., 1, :]
    with np.errstate(divide='ignore', invalid='ignore'):
        crossing = start / (start - end)
    enters = np.where((start < 0) & (end >= 0), crossing, 0.).max(axis=-1)
    leaves = np.where((start >= 0) & (end < 0), crossing, 1.).min(axis=-1)
    visible = ~((start < 0) & (end < 0)).any(axis=-1) & (enters < leaves)
    where = np.stack([enters, leaves], axis=-1)[..., None]                           # ... 2 1
    clipped = ends[..., :1, :] * (1 - where) + ends[..., 1:, :] * where              # ... 2 3
    pixels = clipped[..., :2] / np.maximum(clipped[..., 2:], near)
    return Segments(pixels, visible)


def project_boxes(corners: np.ndarray, lidar2img: np.ndarray, *, sizes: np.ndarray) -> Segments:
    """The edges of boxes and their heading marks, as each camera sees them.

    Args:
        corners: (K, 8, 3) box corners, LiDAR frame.
        lidar2img: (N, 4, 4).
        sizes: (N, 2) width and height of each image.

    Returns:
        Segments with pixels (N, K, E, 2, 2) and visible (N, K, E).

    Raises:
        ValueError: If a shape is another.
    """
    if corners.ndim != 3 or corners.shape[1:] != (8, 3):
        raise ValueError(f'corners must have shape (K, 8, 3), not {corners.shape}')
    if lidar2img.ndim != 3 or lidar2img.shape[1:] != (4, 4):
        raise ValueError(f'lidar2img must have shape (N, 4, 4), not {lidar2img.shape}')
    bottom = corners[:, BOTTOM].mean(axis=1, keepdims=True)
    front = corners[:, FRONT_BOTTOM].mean(axis=1, keepdims=True)
    points = np.concatenate([corners, bottom, front], axis=1).astype(np.float64)     # K 10 3
    matrix = lidar2img.astype(np.float64)
    seen = np.einsum('nij,kpj->nkpi', matrix[:, :3, :3], points)                     # N K 10 3
    seen = seen + matrix[:, None, None, :3, 3]
    return clip_segments(seen[:, :, _SEGMENTS], size=sizes[:, None, None].astype(np.float64))


def camera_name(path: str) -> str:
    """The camera's channel, read from the file's name or its folder; '' where neither says it."""
    found = _NAME.findall(path)
    return found[-1] if found else ''


def grid_cells(names: Sequence[str]) -> np.ndarray:
    """The (row, column) of each camera, (N, 2) int64: nuScenes' layout, else the given order."""
    places = {name: (row, column) for row, line in enumerate(LAYOUT)
              for column, name in enumerate(line)}
    if len(set(names)) == len(names) and set(names) <= set(places):
        return np.array([places[name] for name in names])
    return np.stack(np.divmod(np.arange(len(names)), 3), axis=-1)


def read_image(path: str) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB.

    Raises:
        DataError: If it is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert('RGB'))
    except OSError as error:
        raise DataError(f'cannot read the image {path}: {error}; '
                        'check the data root and the file') from None


def draw_cameras(images: Sequence[np.ndarray], *, names: Sequence[str], lidar2img: np.ndarray,
                 boxes: DrawnBoxes, colours: np.ndarray, width: int = 1920) -> np.ndarray:
    """Draw all cameras as a grid with the boxes in them.

    Args:
        images: N images (H, W, 3) uint8, as they lie on the disk.
        names: N channels, e.g. 'CAM_FRONT'.
        lidar2img: (N, 4, 4), before augmentation.
        boxes: What to draw; a colour for each class.
        colours: (C, 3) uint8 by class.
        width: Of the picture, in pixels.

    Returns:
        (H', width, 3) uint8, H' from the first image's shape.
    """
    cells = grid_cells(names)
    tile_width = width // 3
    tile_height = round(tile_width * images[0].shape[0] / images[0].shape[1])
    height = int(cells[:, 0].max() + 1) * tile_height
    mosaic = np.zeros((height, 3 * tile_width, 3), dtype=np.uint8)
    for image, (row, column) in zip(images, cells, strict=True):
        top, left = row * tile_height, column * tile_width
        mosaic[top:top + tile_height, left:left + tile_width] = cv2.resize(
            image, (tile_width, tile_height), interpolation=cv2.INTER_AREA)
    lines = _tile_lines(images, cells, lidar2img, boxes, (tile_width, tile_height))
    return _draw_over(mosaic, lines, colours=colours, names=names,
                      corners=cells * (tile_height, tile_width))


class _Lines(NamedTuple):
    pixels: np.ndarray    # (S, 2, 2) in the mosaic, far boxes first
    labels: np.ndarray    # (S,)
    widths: np.ndarray    # (S,) points


def _tile_lines(images: Sequence[np.ndarray], cells: np.ndarray, lidar2img: np.ndarray,
                boxes: DrawnBoxes, tile: Tuple[int, int]) -> _Lines:
    """Project into each image, and move every line to its camera's place in the mosaic."""
    boxes = boxes.nearest_last()
    sizes = np.array([image.shape[1::-1] for image in images], dtype=np.float64)     # N 2
    segments = project_boxes(boxes.corners, lidar2img, sizes=sizes)
    scale = (np.array(tile) / sizes)[:, None, None, None]
    offset = (cells[:, ::-1] * tile)[:, None, None, None]
    pixels = segments.pixels * scale + offset                                        # N K E 2 2
    labels = np.broadcast_to(boxes.labels[None, :, None], segments.visible.shape)
    widths = np.where(np.arange(len(_SEGMENTS)) >= _FIRST_FRONT, 1.5, 0.9)
    widths = np.broadcast_to(widths, segments.visible.shape)
    seen = segments.visible
    return _Lines(pixels[seen], labels[seen], widths[seen])


def _draw_over(mosaic: np.ndarray, lines: _Lines, *, colours: np.ndarray, names: Sequence[str],
               corners: np.ndarray) -> np.ndarray:
    height, width = mosaic.shape[:2]
    figure = new_figure(width=width, height=height)
    axes = pixel_axes(figure, width=width, height=height)
    axes.imshow(mosaic, extent=(0, width, height, 0), interpolation='nearest', aspect='auto')
    axes.add_collection(LineCollection(lines.pixels, colors=(0, 0, 0, 0.45),
                                       linewidths=lines.widths + 1.2, capstyle='round'))
    axes.add_collection(LineCollection(lines.pixels, colors=colours[lines.labels] / 255.,
                                       linewidths=lines.widths, capstyle='round'))
    for name, (top, left) in zip(names, corners, strict=True):
        axes.text(left + 10, top + 12, name, color='white', fontsize=9, va='top',
                  bbox=dict(facecolor='black', alpha=0.55, edgecolor='none', pad=3))
    return to_image(figure)


def image_files(img_path: object) -> Tuple[str, ...]:
    """The image files that a sample names: one path, a list of them, or none."""
    if img_path is None:
        return ()
    if isinstance(img_path, (str, Path)):
        return (str(img_path), )
    return tuple(str(path) for path in img_path)
