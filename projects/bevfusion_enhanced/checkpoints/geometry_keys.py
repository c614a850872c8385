"""Geometry that the references keep among their weights, compared with the config's.

`dx`, `bx` and `nx` (3) are the step, the centre of the first cell and the number of cells of the
camera's BEV grid along x, y, z; `frustum` (D, h, w, 3) holds the pixel (u, v) and the depth d of
every cell of a feature map; `relative_position_index` (w*w, w*w) says which row of the bias table
belongs to a pair of places in a window of w x w. Lengths are metres, pixels are of the input
image. Here all of it follows from the config, so a checkpoint's is only compared.
"""
import math
from collections import OrderedDict
from typing import Any, Collection, Dict, List, Mapping, NamedTuple, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .explain import Change
from .geometry import config_keys
from .state_dict import StateDict

VTRANSFORM = 'encoders.camera.vtransform.'
_GRID = ('dx', 'bx', 'nx')
_GRID_KEYS = tuple(VTRANSFORM + name for name in (*_GRID, 'frustum'))
_INDEX, _TABLE, _MASK = 'relative_position_index', 'relative_position_bias_table', 'attn_mask'
_BOUNDS = ('xbound', 'ybound', 'zbound')
_DIGITS = 5  # that are shown of a bound; 32-bit arithmetic on metres leaves as many
_TOLERANCE, _TOLERANCE_HALF = 2e-5, 1e-3  # relative; the latter in a file of 16-bit numbers
_CONSEQUENCE = {
    'xbound': 'the camera map covers other ground than the weights have learned',
    'dbound': 'depth bins mean other distances than the weights have learned',
    'image_size': 'objects have another size in pixels than the weights have learned',
    'feature_size': 'image features are taken at another stride',
    'window_size': 'attention reaches another distance than the weights have learned',
}


class Split(NamedTuple):
    """A checkpoint's weights, and its geometry under our names."""

    weights: StateDict
    geometry: StateDict


def split_geometry(weights: Mapping[str, Tensor]) -> Split:
    """Take the geometry out of weights under our names."""
    split = Split(weights=OrderedDict(), geometry=OrderedDict())
    for name, value in weights.items():
        part = split.geometry if _is_geometry(name) and torch.is_tensor(value) else split.weights
        part[name] = value
    return split


def has_geometry(names: Collection[str]) -> bool:
    """Whether any name is one of geometry that the references save."""
    return any(_is_geometry(name) for name in names)


def stored_geometry(stored: Mapping[str, Tensor]) -> Dict[str, Any]:
    """What the tensors say, under the names of `geometry.config_keys`."""
    found: Dict[str, Any] = {}
    dx, bx, nx = (stored.get(VTRANSFORM + name) for name in _GRID)
    if dx is not None and bx is not None and nx is not None:
        for axis, name in enumerate(_BOUNDS):
            found[name] = _bound(dx, bx, nx, axis)
    frustum = stored.get(VTRANSFORM + 'frustum')
    if frustum is not None and frustum.dim() == 4 and min(frustum.shape) > 1:
        found.update(_of_frustum(frustum))
    windows = {math.isqrt(value.shape[0]) for name, value in stored.items()
               if name.endswith(_INDEX)}
    if len(windows) == 1:
        found['window_size'] = windows.pop()
    return found


def compare_geometry(stored: Mapping[str, Tensor], geometry: Mapping[str, Any]
                     ) -> Tuple[Change, ...]:
    """What a checkpoint was trained with that the config says otherwise.

    Args:
        stored: The checkpoint's geometry under our names, from `split_geometry`.
        geometry: The config's, from `geometry.geometry_of`. What it lacks is not compared.
    """
    changes: List[Change] = []
    half = any(value.dtype in (torch.float16, torch.bfloat16) for value in stored.values())
    for name, old in stored_geometry(stored).items():
        new = geometry.get(name)
        if new is not None and not _equal(old, new, half=half):
            consequence = _CONSEQUENCE['xbound' if name in _BOUNDS else name]
            changes.append(Change(kind='meaning', key=config_keys[name], old=old, new=new,
                                  consequence=consequence))
    for name, value in stored.items():
        if name.endswith(_INDEX) and not _is_usual_index(value):
            changes.append(Change(
                kind='meaning', key=name, old='another order of places', new='row by row',
                consequence='rows of the bias table mean other pairs of places'))
    return tuple(changes)


def add_geometry(weights: Mapping[str, Tensor], geometry: Mapping[str, Any]) -> StateDict:
    """Weights under our names with the geometry that the references expect among them.

    Args:
        weights: Ours, without geometry.
        geometry: The config's, from `geometry.geometry_of`; read where the weights have a camera.

    Raises:
        CheckpointError: The camera's geometry is needed, and not all of it is there.
    """
    complete: StateDict = OrderedDict()
    for name, value in weights.items():
        if name.startswith(VTRANSFORM) and _GRID_KEYS[0] not in complete:
            complete.update(zip(_GRID_KEYS, _make_grid(geometry), strict=True))
        complete[name] = value
        if name.endswith('.w_msa.' + _TABLE):
            window = (math.isqrt(value.shape[0]) + 1) // 2
            complete[name[:-len(_TABLE)] + _INDEX] = position_index(window)
    return complete


def position_index(window: int) -> Tensor:
    """The row of the bias table for each pair of places in a window, (w*w, w*w) int64.

    A row is (dy + w - 1) * (2 * w - 1) + dx + w - 1 for a pair dy rows and dx columns apart.
    """
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def _is_geometry(name: str) -> bool:
    return name in _GRID_KEYS or name.rsplit('.', 1)[-1] in (_INDEX, _MASK)


def _is_usual_index(value: Tensor) -> bool:
    return torch.equal(value.long(), position_index(math.isqrt(value.shape[0])))


def _bound(dx: Tensor, bx: Tensor, nx: Tensor, axis: int) -> List[float]:
    step, count = float(f'{float(dx[axis]):.7g}'), int(nx[axis])  # 0.3, not 0.30000001
    low = float(bx[axis]) - step / 2
    return [_short(low), _short(low + count * step), _short(step)]


def _of_frustum(frustum: Tensor) -> Dict[str, Any]:
    """Image size, feature size and depth bins out of three of a frustum's corners."""
    bins, rows, columns = frustum.shape[:3]
    first, step = float(frustum[0, 0, 0, 2]), float(frustum[1, 0, 0, 2] - frustum[0, 0, 0, 2])
    last_u, last_v = frustum[0, -1, -1, :2].tolist()
    return {
        'image_size': [round(last_v) + 1, round(last_u) + 1],
        'feature_size': [rows, columns],
        'dbound': [_short(first), _short(first + bins * step), _short(step)],
    }


def _make_grid(geometry: Mapping[str, Any]) -> Tuple[Tensor, ...]:
    """dx, bx, nx and frustum as the references build them."""
    needed = (*_BOUNDS, 'dbound', 'image_size', 'feature_size')
    missing = [config_keys[name] for name in needed if name not in geometry]
    if missing:
        raise CheckpointError('the camera\'s geometry goes into a checkpoint of the references: '
                              f'give a config with {", ".join(missing)}')
    bounds = [[float(number) for number in geometry[name]] for name in _BOUNDS]
    depth = torch.arange(*map(float, geometry['dbound']), dtype=torch.float32)
    (height, width), (rows, columns) = geometry['image_size'], geometry['feature_size']
    d, v, u = torch.meshgrid(depth, torch.linspace(0, height - 1, rows),
                             torch.linspace(0, width - 1, columns), indexing='ij')
    return (torch.tensor([step for _, _, step in bounds]),
            torch.tensor([low + step / 2.0 for low, _, step in bounds]),
            torch.tensor([round((high - low) / step) for low, high, step in bounds]),
            torch.stack([u, v, d], dim=-1))


def _short(number: float) -> float:
    return round(number, _DIGITS) + 0.0  # and no negative zero


def _equal(old: Any, new: Any, *, half: bool) -> bool:
    """Whether two numbers, or lists of them, agree to the digits that the file kept."""
    if isinstance(old, list):
        return (isinstance(new, (list, tuple)) and len(old) == len(new)
                and all(_equal(a, b, half=half) for a, b in zip(old, new, strict=True)))
    if not isinstance(new, (int, float)):
        return False
    tolerance = _TOLERANCE_HALF if half else _TOLERANCE
    return abs(old - new) <= tolerance * max(1.0, abs(old))
