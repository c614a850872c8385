"""The colours of classes, map layers and figures, and how masks become a painted map.

Shape legend: C classes, X cells to the right, Y cells forward. Colours are RGB, uint8.
"""
from typing import Dict, Sequence, Tuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb

BACKGROUND = '#14171c'
FOREGROUND = '#e8eaed'
MUTED = '#5d6672'
TRUTH = '#ffffff'

OBJECT_COLOURS: Dict[str, str] = {
    'car': '#ff9f1c',
    'truck': '#ff4d4d',
    'construction_vehicle': '#f5d90a',
    'bus': '#ff6ec7',
    'trailer': '#b388ff',
    'barrier': '#e3cfa4',
    'motorcycle': '#2ee59d',
    'bicycle': '#b6f23c',
    'pedestrian': '#4d9fff',
    'traffic_cone': '#19e3e3',
}
"""By detection class: bright enough for a photograph and for the dark BEV."""

MAP_COLOURS: Dict[str, str] = {
    'drivable_area': '#56657a',
    'carpark_area': '#9a7bd0',
    'walkway': '#4caf7a',
    'ped_crossing': '#4da3ff',
    'stop_line': '#ff5252',
    'divider': '#ffd54a',
}
"""By map layer, in the order in which they are painted: areas first, lines last."""


def class_colours(names: Sequence[str], known: Dict[str, str] = OBJECT_COLOURS) -> np.ndarray:
    """The colours of `names`, (C, 3) uint8; a name outside `known` gets one of tab20's."""
    spare = colormaps['tab20'].colors
    colours = [to_rgb(known.get(name, spare[i % len(spare)])) for i, name in enumerate(names)]
    return np.rint(255 * np.array(colours).reshape(-1, 3)).astype(np.uint8)


def paint_order(names: Sequence[str]) -> np.ndarray:
    """The rank of each layer, (C,) int64: a higher is painted over a lower; unknown ones last."""
    order: Tuple[str, ...] = tuple(MAP_COLOURS)
    ranks = [order.index(name) if name in order else len(order) + i
             for i, name in enumerate(names)]
    return np.array(ranks, dtype=np.int64)


def paint_map(masks: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Paint overlapping layers into one picture, the finest on top.

    Args:
        masks: (C, X, Y) nonzero where the layer is.
        names: The C layers.

    Returns:
        (Y, X, 3) uint8 with row 0 at the FAR end, so that forward is up and right is right.

    Raises:
        ValueError: If there is not one mask for each name.
    """
    if masks.ndim != 3 or len(masks) != len(names):
        raise ValueError(f'masks must have shape ({len(names)}, X, Y) for {tuple(names)}, '
                         f'not {tuple(masks.shape)}')
    ranks = paint_order(names)
    table = np.zeros((ranks.max(initial=-1) + 2, 3), dtype=np.uint8)  # row 0: nothing here
    table[0] = np.rint(255 * np.array(to_rgb(BACKGROUND)))
    table[ranks + 1] = class_colours(names, MAP_COLOURS)
    top = np.where(masks.astype(bool), ranks[:, None, None] + 1, 0).max(axis=0, initial=0)  # X Y
    return table[top.T[::-1]]                                                               # Y X 3
