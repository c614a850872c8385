"""A pinhole camera: every pixel's ray meets the nearest box, the ground plane z = 0, or the sky.

Frames: camera x right, y down, z forward; global z up; metres. Pixel (row i, column j) looks
along the ray through (j + 0.5, i + 0.5) of the intrinsic matrix, written so that the ray's
parameter is its depth (camera z). Boxes stand on or above the ground, so a box always hides it.

Shapes: H, W image, K boxes, P (pixel, box) pairs.
"""
from dataclasses import dataclass
from typing import Iterator, NamedTuple, Tuple

import cv2
import numpy as np

from bevfusion_enhanced.synthetic import shading
from bevfusion_enhanced.synthetic.light import Light
from bevfusion_enhanced.synthetic.raycast import BoxFrames, box_frames, expand_ranges, slab_interval
from bevfusion_enhanced.synthetic.scene import Ground, Snapshot

GROUND = -1
SKY = -2
NEAR = 0.1
"""Depth in metres in front of which nothing is drawn."""
FAR = 300.0
"""Depth in metres beyond which boxes are not drawn."""

_SHADOW_RIM = 0.25
_PAIRS_AT_ONCE = 1 << 15
_EDGES = np.array([[a, a + step] for step in (1, 2, 4) for a in range(8) if not a & step])
_NOISE = np.random.default_rng(20).standard_normal(1 << 21, np.float32)


class CameraImage(NamedTuple):
    """One exposure.

    Attributes:
        rgb: (H, W, 3) uint8.
        box_index: (H, W) int32 index into the snapshot's boxes, or `GROUND`, or `SKY`.
        covered: (K,) int64 pixels of the image that each box would fill if it stood alone.
        visible: (K,) int64 pixels that it does fill.
    """
    rgb: np.ndarray
    box_index: np.ndarray
    covered: np.ndarray
    visible: np.ndarray


class _Hits(NamedTuple):
    """(pixel, box) pairs that meet: flat pixel index, box index, depth; (P,) each."""
    pixel: np.ndarray
    box: np.ndarray
    depth: np.ndarray


def render(*, snapshot: Snapshot, ground: Ground, cam2global: np.ndarray, intrinsic: np.ndarray,
           width: int, height: int, light: Light, rng: np.random.Generator) -> CameraImage:
    """Takes one picture.

    Args:
        snapshot: The boxes at the time of the exposure.
        ground: Material of the plane z = 0.
        cam2global: (4, 4) pose of the camera at the time of the exposure.
        intrinsic: (3, 3) pinhole matrix for an image of this width and height.
        light: Sun, sky and lamps.
        rng: Source of the sensor noise; the only randomness.

    Returns:
        The picture, what each pixel shows, and how much of each box is in sight.
    """
    view = _View(cam2global=cam2global, intrinsic=intrinsic, width=width, height=height)
    depth, surface, covered = _draw_boxes(snapshot.boxes, view)
    shadowed = _draw_mask(_contact_shadows(snapshot), view)

    rgb = np.empty((3, height * width), np.float32)
    pixels = np.flatnonzero(surface == SKY)
    depth[pixels] = 0
    _set(rgb, pixels, shading.sky_colours(view.rays(pixels), light))
    pixels = np.flatnonzero(surface == GROUND)
    depth[pixels] = -view.origin[2] / view.rays(pixels)[2]
    looks = [shading.ground_colours(ground, view.origin, view.rays(pixels, shift),
                                    shadowed[pixels], light)
             for shift in (-0.25, 0.25)]  # two places in a pixel smooth the edges of thin lines
    _set(rgb, pixels, (looks[0] + looks[1]) / 2)
    pixels = np.flatnonzero(surface >= 0)
    box = surface[pixels]
    where = view.on_boxes(snapshot.boxes, box, pixels, depth[pixels])
    _set(rgb, pixels, shading.box_colours(snapshot, box, where, depth[pixels], light))
    shading.add_haze(rgb, depth, light)
    _add_noise(rgb, light.noise, rng)
    visible = np.bincount(box, minlength=len(snapshot.boxes))
    return CameraImage(rgb=cv2.merge(list(rgb.astype(np.uint8).reshape(3, height, width))),
                       box_index=surface.reshape(height, width), covered=covered, visible=visible)


@dataclass(frozen=True)
class _View:
    """One camera at one instant; pixels are flat indices row * width + column."""
    cam2global: np.ndarray
    intrinsic: np.ndarray
    width: int
    height: int

    @property
    def origin(self) -> np.ndarray:
        return self.cam2global[:3, 3]

    def frames(self, boxes: np.ndarray) -> BoxFrames:
        """Box frames whose rotation takes (column, row, 1), in pixels, in place of a direction."""
        frames = box_frames(boxes, self.cam2global)
        rotation = frames.rotation @ np.linalg.inv(self.intrinsic)
        return frames._replace(rotation=rotation.astype(np.float32))

    def rays(self, pixels: np.ndarray, shift: float = 0.0) -> np.ndarray:
        """(3, N) float32 global directions of depth one through these pixels.

        `shift` moves the place inside the pixel from its middle, right and up by that many pixels.
        """
        turn = (self.cam2global[:3, :3] @ np.linalg.inv(self.intrinsic)).astype(np.float32)
        row, column = np.divmod(pixels.astype(np.int32), np.int32(self.width))
        x = column.astype(np.float32) + np.float32(0.5 + shift)
        y = row.astype(np.float32) + np.float32(0.5 - shift)
        return np.stack([turn[i, 0] * x + (turn[i, 1] * y + turn[i, 2]) for i in range(3)])

    def on_boxes(self, boxes: np.ndarray, box: np.ndarray, pixels: np.ndarray,
                 depth: np.ndarray) -> np.ndarray:
        """(3, N) float32 places on boxes, in their unit frames, that pixels show."""
        frames = self.frames(boxes)
        row, column = np.divmod(pixels.astype(np.int32), np.int32(self.width))
        x, y = (column.astype(np.float32) + 0.5) * depth, (row.astype(np.float32) + 0.5) * depth
        turn = np.take(np.moveaxis(frames.rotation, 0, -1).copy(), box, axis=2)        # (3, 3, N)
        where = np.take(frames.origin.T.copy(), box, axis=1)
        for place, (a, b, c) in zip(where, turn, strict=True):
            place += a * x + b * y + c * depth
        return where

    def may_see(self, boxes: np.ndarray) -> np.ndarray:
        """(K,) whether the sphere around each box reaches into the wedge of the image's columns."""
        centre = (boxes[:, :3] - self.origin) @ self.cam2global[:3, :3]
        radius = np.linalg.norm(boxes[:, 3:6], axis=1) / 2
        edges = np.linalg.inv(self.intrinsic) @ [[0, self.width], [self.height / 2] * 2, [1, 1]]
        left, right = edges[0]
        return ((centre[:, 2] > NEAR - radius) & (centre[:, 2] < FAR + radius)
                & (centre[:, 0] - left * centre[:, 2] > -radius * np.hypot(1, left))
                & (centre[:, 0] - right * centre[:, 2] < radius * np.hypot(1, right)))

    def falling(self) -> np.ndarray:
        """(H * W,) which rays meet the ground, less than a kilometre away."""
        turn = self.cam2global[2, :3] @ np.linalg.inv(self.intrinsic)
        column, row = np.arange(self.width) + 0.5, np.arange(self.height) + 0.5
        rise = turn[0] * column + (turn[1] * row + turn[2])[:, None]
        return (rise < -1e-3 * self.origin[2]).reshape(-1)


def _draw_boxes(boxes: np.ndarray, view: _View) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth (float32) and surface (int32) of every pixel, and pixels covered by each box."""
    depth = np.full(view.height * view.width, np.inf, np.float32)
    surface = np.where(view.falling(), np.int32(GROUND), np.int32(SKY))
    covered = np.zeros(len(boxes), np.int64)
    for hits in _cast(boxes, view):
        covered += np.bincount(hits.box, minlength=len(boxes))
        np.minimum.at(depth, hits.pixel, hits.depth)
        nearest = np.flatnonzero(hits.depth == depth[hits.pixel])
        surface[hits.pixel[nearest]] = hits.box[nearest]
    return depth, surface, covered


def _draw_mask(boxes: np.ndarray, view: _View) -> np.ndarray:
    """(H * W,) which pixels any of the boxes covers."""
    mask = np.zeros(view.height * view.width, bool)
    for hits in _cast(boxes, view):
        mask[hits.pixel] = True
    return mask


def _set(rgb: np.ndarray, pixels: np.ndarray, colour: np.ndarray) -> None:
    for channel, values in zip(rgb, colour, strict=True):
        channel[pixels] = values


def _add_noise(rgb: np.ndarray, strength: float, rng: np.random.Generator) -> None:
    """Adds noise and clips, in place; a stretch of a fixed long record is faster than new noise."""
    spare = len(_NOISE) - rgb.shape[1]
    for channel in rgb:
        start = rng.integers(spare) if spare > 0 else 0
        noise = _NOISE[start:start + rgb.shape[1]]
        channel += np.float32(strength) * np.resize(noise, channel.shape)
    np.clip(rgb, 0, 255, out=rgb)


def _contact_shadows(snapshot: Snapshot) -> np.ndarray:
    """(K, 7) thin slabs on the ground under the boxes, a rim wider than these."""
    slabs = snapshot.boxes.copy()
    slabs[:, 2] = 0
    slabs[:, 3:5] += 2 * _SHADOW_RIM
    slabs[:, 5] = 0.02
    return slabs


def _pixel_windows(frames: BoxFrames, view: _View) -> Tuple[np.ndarray, ...]:
    """First row, rows, first column and columns, (K,) each, of the image that hold each box.

    The part of a box in front of the near plane is the hull of its edges, cut off there.
    """
    start, stop = frames.corners[:, _EDGES[:, 0]], frames.corners[:, _EDGES[:, 1]]    # (K, 12, 3)
    reach = stop[..., 2] - start[..., 2]
    cut = (NEAR - start[..., 2]) / np.where(np.abs(reach) < 1e-9, 1e-9, reach)
    seen = np.maximum(start[..., 2], stop[..., 2]) > NEAR
    crosses = seen & (np.minimum(start[..., 2], stop[..., 2]) < NEAR)
    border = (start + cut[..., None] * (stop - start))
    behind = start[..., 2] < NEAR
    start, stop = (np.where((crosses & cond)[..., None], border, end)
                   for end, cond in ((start, behind), (stop, ~behind)))
    ends = np.concatenate([start, stop], 1)                                            # (K, 24, 3)
    seen = np.concatenate([seen, seen], 1)
    pixels = ends @ view.intrinsic.T
    pixels = pixels[..., :2] / np.where(seen, pixels[..., 2], 1.0)[..., None]
    low = np.where(seen[..., None], pixels, np.inf).min(1)
    high = np.where(seen[..., None], pixels, -np.inf).max(1)
    drawn = np.any(seen, 1) & (frames.corners[..., 2].min(1) < FAR)
    size = np.array([view.width, view.height])
    first = np.ceil(np.clip(low, 0, size) - 0.5 - 1e-3).astype(np.int64)
    last = np.floor(np.clip(high, 0, size) - 0.5 + 1e-3).astype(np.int64)
    counts = np.where(drawn[:, None], np.maximum(np.minimum(last, size - 1) - first + 1, 0), 0)
    return first[:, 1], counts[:, 1], first[:, 0], counts[:, 0]


def _cast(boxes: np.ndarray, view: _View) -> Iterator[_Hits]:
    """Tests every pixel of every box's window, a bounded number of pairs at a time."""
    near = np.flatnonzero(view.may_see(boxes))
    frames = view.frames(boxes[near])
    first_row, rows, first_column, columns = _pixel_windows(frames, view)
    line_box, line_row = expand_ranges(first_row, rows)
    line_columns, line_first = columns[line_box], first_column[line_box]
    row = line_row.astype(np.float32) + 0.5
    turn, origin = frames.rotation[line_box], frames.origin[line_box]
    for lines in _portions(line_columns):
        counts = line_columns[lines]
        line, column = expand_ranges(line_first[lines], counts)
        x = column.astype(np.float32) + 0.5
        along = turn[lines, :, 0]
        across = turn[lines, :, 1] * row[lines, None] + turn[lines, :, 2]
        steps = tuple(np.repeat(along[:, i], counts) * x + np.repeat(across[:, i], counts)
                      for i in range(3))
        starts = tuple(np.repeat(origin[lines, i], counts) for i in range(3))
        enter, leave = slab_interval(starts, steps)
        met = np.flatnonzero((enter < leave) & (enter > NEAR))
        line = line[met]
        yield _Hits(pixel=(line_row[lines] * view.width)[line] + column[met],
                    box=near[line_box[lines][line]], depth=enter[met])


def _portions(counts: np.ndarray) -> Iterator[slice]:
    """Splits lines into runs of about `_PAIRS_AT_ONCE` pairs each."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_PAIRS_AT_ONCE, total, _PAIRS_AT_ONCE)) + 1
    bounds = np.unique([0, *cuts, len(counts)])
    return (slice(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True))
