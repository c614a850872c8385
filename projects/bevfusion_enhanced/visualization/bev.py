"""Bird's-eye views: LiDAR points with boxes, and painted maps.

Frame: LIDAR_TOP, x right, y forward, metres. In every view FORWARD IS UP and right is right, the
sensor at (0, 0). A `view` is (x_min, y_min, x_max, y_max). Map tensors are (C, X, Y): dim 1 along
x, dim 2 along y; cell 0 begins at x_min or y_min.

Shape legend: P points, K boxes, C classes, X cells to the right, Y cells forward.
"""
from typing import Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from bevfusion_enhanced.visualization.boxes import BOTTOM, FRONT_BOTTOM, DrawnBoxes
from bevfusion_enhanced.visualization.canvas import new_figure, to_image
from bevfusion_enhanced.visualization.palette import BACKGROUND, FOREGROUND, MUTED, TRUTH, paint_map

View = Tuple[float, float, float, float]
DEFAULT_VIEW: View = (-50., -50., 50., 50.)
TITLE_HEIGHT = 40
"""Pixels above a panel's square, for its title."""
MARGIN = 8
"""Pixels between the square's edge and what it shows."""

_HEIGHT_RANGE = (-2.5, 2.0)
_POINT_COLOURS = LinearSegmentedColormap.from_list('points', ['#354152', '#62768f', '#93a7bf'])


def _new_panel(size: int, title: str, view: View) -> Tuple[Figure, Axes]:
    """A square panel of `size` pixels below its title, its axes in metres."""
    figure = new_figure(width=size, height=size + TITLE_HEIGHT)
    inner, height = size - 2 * MARGIN, size + TITLE_HEIGHT
    axes = figure.add_axes((MARGIN / size, MARGIN / height, inner / size, inner / height),
                           facecolor=BACKGROUND)
    axes.set(xlim=(view[0], view[2]), ylim=(view[1], view[3]), xticks=[], yticks=[])
    axes.set_aspect('equal', adjustable='box', anchor='C')
    axes.set_title(title, color=FOREGROUND, fontsize=11, pad=9)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
    return figure, axes


def _draw_ego(axes: Axes, view: View) -> None:
    """A triangle at the sensor that points forward."""
    unit = (view[3] - view[1]) / 100.
    triangle = unit * np.array([(-1., -1.6), (0., -0.9), (1., -1.6), (0., 1.9)])
    axes.add_collection(PolyCollection([triangle], facecolors=FOREGROUND, edgecolors='black',
                                       linewidths=0.8, zorder=6))


def _draw_rings(axes: Axes, view: View) -> None:
    """Range rings every 10 m, labelled every 20 m on the right."""
    reach = min(max(abs(view[0]), abs(view[2])), max(abs(view[1]), abs(view[3])))
    for radius in np.arange(10., reach + 1e-6, 10.):
        axes.add_patch(Circle((0., 0.), radius, fill=False, edgecolor=MUTED, linewidth=0.5,
                              alpha=0.55, zorder=1))
        if radius % 20 == 0 and radius < view[2]:
            axes.text(radius, 0., f'{radius:.0f} m', color=FOREGROUND, alpha=0.75, fontsize=7,
                      ha='right', va='bottom', zorder=5)


def _draw_points(axes: Axes, points: np.ndarray, view: View) -> None:
    """Points coloured by height, the highest on top."""
    inside = ((points[:, 0] > view[0]) & (points[:, 0] < view[2])
              & (points[:, 1] > view[1]) & (points[:, 1] < view[3]))
    shown = points[inside]
    shown = shown[np.argsort(shown[:, 2], kind='stable')]
    axes.scatter(shown[:, 0], shown[:, 1], c=shown[:, 2], s=0.9, cmap=_POINT_COLOURS, marker='o',
                 vmin=_HEIGHT_RANGE[0], vmax=_HEIGHT_RANGE[1], linewidths=0, zorder=2)


def box_outlines(corners: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Footprints (K, 4, 2) of boxes and heading marks (K, 2, 2) from middle to front, metres."""
    footprints = corners[:, BOTTOM, :2]
    middle, front = footprints.mean(axis=1), corners[:, FRONT_BOTTOM, :2].mean(axis=1)
    return footprints, np.stack([middle, front], axis=1)


def draw_bev(*, points: Optional[np.ndarray], predicted: DrawnBoxes, truth: DrawnBoxes,
             colours: np.ndarray, view: View = DEFAULT_VIEW, size: int = 640,
             title: str = 'LiDAR, predicted and true boxes') -> np.ndarray:
    """Draw points, predicted boxes (solid, class colour) and true boxes (dashed, white).

    Args:
        points: (P, >= 3) x, y, z in the LiDAR frame, or None without a LiDAR.
        predicted: Drawn with a mark from the middle to the front.
        truth: Drawn dashed, below the predictions, with the same mark.
        colours: (C, 3) uint8 by class.
        view: The part of the ground that is shown.
        size: Side of the square in pixels.
        title: The text above it.

    Returns:
        (size + TITLE_HEIGHT, size, 3) uint8.
    """
    figure, axes = _new_panel(size, title, view)
    _draw_rings(axes, view)
    if points is not None:
        _draw_points(axes, points, view)
    for boxes, style, width, edge, order in (
            (truth, (0, (3, 1.5)), 0.9, TRUTH, 3),
            (predicted, 'solid', 1.5, colours[predicted.labels] / 255., 4)):
        footprints, headings = box_outlines(boxes.corners)
        axes.add_collection(PolyCollection(footprints, facecolors='none', edgecolors=edge,
                                           linewidths=width, linestyles=[style], zorder=order))
        axes.add_collection(LineCollection(headings, colors=edge, linewidths=width, zorder=order))
    _draw_ego(axes, view)
    return to_image(figure)


def draw_map(masks: np.ndarray, *, names: Sequence[str], title: str, view: View = DEFAULT_VIEW,
             size: int = 640) -> np.ndarray:
    """Draw map layers.

    Args:
        masks: (C, X, Y) nonzero where the layer is, over the whole `view`.
        names: The C layers.
        title: The text above it.
        view: What the masks cover.
        size: Side of the square in pixels.

    Returns:
        (size + TITLE_HEIGHT, size, 3) uint8.
    """
    figure, axes = _new_panel(size, title, view)
    axes.imshow(paint_map(masks, names), extent=(view[0], view[2], view[1], view[3]),
                interpolation='nearest', aspect='equal', zorder=0)
    _draw_rings(axes, view)
    _draw_ego(axes, view)
    return to_image(figure)
