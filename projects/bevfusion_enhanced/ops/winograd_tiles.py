"""Tiles of an image as values at points, and outputs from such values: sums of rows.

What the tiles are for, and the names of the axes, stands in `winograd`. A value at a point is the
sum of a few cells of a tile, each times a constant, and an output the sum of a few values.
"""
from functools import lru_cache
from typing import Iterator, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bevfusion_enhanced.ops.row_sums import RowSums, row_sums

Rows = Tuple[Tuple[float, ...], ...]


class Scheme(NamedTuple):
    """Where tiles are evaluated, and how: rows of an axis' transforms.

    Attributes:
        inputs: (points, cells of a patch) evaluates inputs.
        weights: (points, taps) evaluates weights.
        outputs: (cells of a tile, points) goes back.
        by_point: whether products need the values of a point side by side in memory.
        tiles_at_once: about; their values of 512 channels take 44 MB in float32, 15 in bfloat16.
        fewest_channels: below which the transforms cost more than the products that they save.
        smallest_saving: products taken directly for each of these, below which the same is true.
    """

    inputs: Rows
    weights: Rows
    outputs: Rows
    by_point: bool
    tiles_at_once: int
    fewest_channels: int
    smallest_saving: float

    @property
    def tile(self) -> int:
        """Outputs along an axis."""
        return len(self.outputs)

    @property
    def points(self) -> int:
        """Points of a plane."""
        return len(self.inputs) ** 2

    @property
    def one(self) -> int:
        """The point (1, 1) of the plane, which reaches all outputs of a tile alike."""
        return len(self.inputs) + 1

    @property
    def gradients(self) -> Rows:
        """(points, cells of a tile), the way back through `outputs`."""
        return tuple(zip(*self.outputs))


# Evaluation at 0, 1, -1, (2, -2) and infinity.
F4 = Scheme(
    inputs=((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
    weights=((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
             (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
    outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    by_point=False, tiles_at_once=600, fewest_channels=64, smallest_saving=2.5)
F2 = Scheme(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    weights=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, 1)),
    by_point=True, tiles_at_once=900, fewest_channels=128, smallest_saving=1.5)


def on_planes(rows: Rows) -> Tensor:
    """The transform of a tile in a row, from that of an axis; float64."""
    axis = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(axis, axis)


class _Band(NamedTuple):
    """Rows of tiles that are worked on together: their values stay in the cache."""

    first: int
    last: int


class Tiling:
    """Where the tiles of a convolution lie in its input and output."""

    def __init__(self, *, scheme: Scheme, batch: int, size: Tuple[int, int],
                 dilation: int) -> None:
        self.scheme = scheme
        self.batch = batch
        self.size = size
        self.dilation = dilation
        self.stride = scheme.tile * dilation
        self.down, self.across = (-(-cells // self.stride) for cells in size)
        self.count = batch * self.down * self.across * dilation ** 2

    def bands(self) -> Iterator[_Band]:
        """All rows of tiles, some at a time."""
        rows = -(-self.down // max(1, round(self.count / self.scheme.tiles_at_once)))
        return (_Band(first, min(first + rows, self.down))
                for first in range(0, self.down, rows))

    def evaluate(self, x: Tensor, band: _Band, transform: Rows, *, padding: int) -> Tensor:
        """The tiles of a band at all points.

        Args:
            x: (B, H, W, C), which zeros go on around.
            band: rows of tiles.
            transform: (points, cells) of a tile along an axis.
            padding: rows of zeros before the first tile.

        Returns:
            (points ** 2, T, C), in float32 a view.
        """
        B, H, W, C = x.shape
        tile, by_point = self.scheme.tile, self.scheme.by_point
        first = self.stride * band.first - padding
        last = self.stride * band.last - padding + self.dilation * (len(transform[0]) - tile)
        low = max(first, 0)
        sums = _cells_of_points(
            transform, by_point=by_point, tile=tile, rows=band.last - band.first,
            across=self.across, dilation=self.dilation, batch=B, width=W, height=H,
            above=low - first, left=padding, below=min(H, last) - low)
        values = sums.of(x.reshape(-1, C)[low * W:])
        points = len(transform) ** 2
        if by_point:
            return values.view(points, -1, C)
        return values.view(-1, points, C).transpose(0, 1)

    def restore(self, values: Tensor, band: _Band) -> Tensor:
        """The outputs (B, X', Y, O) of a band from its values (points, T, O)."""
        X, Y = self.size
        rows = min(X, self.stride * band.last) - self.stride * band.first
        sums = _points_of_outputs(
            self.scheme.outputs, rows=rows, width=Y, batch=self.batch, across=self.across,
            dilation=self.dilation, tiles=values.shape[1])
        return sums.of(values.flatten(0, 1)).view(self.batch, rows, Y, -1)

    def rows(self, band: _Band) -> slice:
        """The rows of the output that a band covers."""
        return slice(self.stride * band.first, self.stride * band.last)


@lru_cache(maxsize=64)
def _cells_of_points(transform: Rows, *, by_point: bool, tile: int, rows: int, across: int,
                     dilation: int, batch: int, width: int, height: int, above: int, below: int,
                     left: int) -> RowSums:
    """For every tile and point, the cells of the image that it is summed from.

    Args:
        transform: (points, cells) of a tile along an axis.
        by_point: all tiles at the first point, then all at the second, rather than by tile.
        tile: outputs of a tile along an axis.
        rows: of tiles, in order of row, sample, residue of row, column, residue of column.
        across: tiles in a row.
        dilation: d.
        batch: B.
        width: W.
        height: H, rows of cells from one sample to the next.
        above: rows of zeros before the first row of cells.
        below: rows of cells there are.
        left: columns of zeros before the first column of cells.
    """
    planes = on_planes(transform)
    side = len(transform[0])
    point, cell = planes.nonzero(as_tuple=True)
    i, b, ry, j, rx = torch.meshgrid(*(torch.arange(n) for n in (
        rows, batch, dilation, across, dilation)), indexing='ij')
    stride = tile * dilation
    y = (stride * i + ry - above).reshape(-1, 1) + dilation * (cell // side)   # (T, nonzero)
    x = (stride * j + rx - left).reshape(-1, 1) + dilation * (cell % side)
    inside = (0 <= y) & (y < below) & (0 <= x) & (x < width)
    place = (b.reshape(-1, 1) * height + y) * width + x
    tiles = torch.arange(len(place)).unsqueeze(1)
    value = point * len(place) + tiles if by_point else tiles * len(planes) + point
    return row_sums(sums=value[inside], rows=place[inside], num_sums=len(place) * len(planes),
                    factors=planes[point, cell].expand(len(place), -1)[inside])


@lru_cache(maxsize=64)
def _points_of_outputs(transform: Rows, *, rows: int, width: int, batch: int, across: int,
                       dilation: int, tiles: int) -> RowSums:
    """For every output of some rows, the values (point, tile) that it is summed from."""
    tile = len(transform)
    planes = on_planes(transform)
    counts = (planes != 0).sum(1)
    output, point = planes.nonzero(as_tuple=True)
    factor = planes[output, point].float()
    b, y, x = torch.meshgrid(*(torch.arange(n) for n in (batch, rows, width)), indexing='ij')
    stride = tile * dilation
    row, column = y // stride * batch + b, x // stride
    place = ((row * dilation + y % dilation) * across + column) * dilation + x % dilation
    kind = (y % stride // dilation * tile + x % stride // dilation).flatten()
    starts = _starts(counts[kind])
    terms = torch.arange(int(starts[-1])) + torch.repeat_interleave(
        (counts.cumsum(0) - counts)[kind] - starts[:-1], counts[kind])
    return RowSums(rows=(point[terms] * tiles + torch.repeat_interleave(
        place.flatten(), counts[kind])).int(), factors=factor[terms], starts=starts)


def _starts(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0)).int()
