"""Matplotlib figures as images (H, W, 3) uint8 RGB, without pyplot's global state."""
from pathlib import Path
from typing import Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.visualization.palette import BACKGROUND

DPI = 100


def new_figure(*, width: int, height: int) -> Figure:
    """An empty dark figure of `width` x `height` pixels."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def pixel_axes(figure: Figure, *, width: int, height: int) -> Axes:
    """Axes over the whole figure, in pixels: x to the right, y down, (0, 0) the top left corner."""
    axes = figure.add_axes((0., 0., 1., 1.))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis('off')
    return axes


def to_image(figure: Figure) -> np.ndarray:
    """The figure as an array (H, W, 3) uint8 RGB."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def pad_to_width(image: np.ndarray, *, width: int) -> np.ndarray:
    """Centre an image on a background of `width` pixels; one that is as wide is returned itself."""
    missing = width - image.shape[1]
    if missing <= 0:
        return image
    background = to_image(new_figure(width=width, height=len(image)))
    left = missing // 2
    background[:, left:left + image.shape[1]] = image
    return background


def stack_rows(rows: Tuple[np.ndarray, ...]) -> np.ndarray:
    """Put images below each other, narrower ones centred."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([pad_to_width(row, width=width) for row in rows])


def save_picture(image: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 RGB as PNG, or as JPEG where the name ends so.

    Raises:
        ConfigError: If the file exists: nothing of an earlier run is overwritten.
    """
    form = 'JPEG' if path.suffix.lower() in ('.jpg', '.jpeg') else 'PNG'
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open('xb') as stream:
            Image.fromarray(image).save(stream, format=form)
    except FileExistsError:
        raise ConfigError(f'{path} exists already and is not overwritten; '
                          'choose another folder for the pictures') from None
