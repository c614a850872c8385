"""3x3 convolutions on a CPU with a quarter of the multiplications.

A tile of 4 x 4 outputs needs 6 x 6 inputs and, taken directly, 144 products for every pair of
channels. Evaluated as a polynomial at six points it needs 36: F(4x4, 3x3) of Lavin and Gray, 'Fast
Algorithms for Convolutional Neural Networks', CVPR 2016, after Winograd. Libraries for GPUs do so
unasked; oneDNN, which convolves for PyTorch on CPUs, does not. A dilated convolution is as many
plain ones as there are residues of row and column, which stand side by side here.

A value at a point is the sum of a few cells, each times a constant, and an output the sum of a few
values: bags of rows, for which PyTorch has a kernel that passes over memory once, reads the cells
from the image where they are, and writes the outputs where they belong.

The sums are rounded differently: against float64 the largest error of 512 channels is 1e-5 of the
largest output in place of 3e-6.

Shapes: B samples, C input channels, O output channels, H x W inputs, X x Y outputs, T tiles, d the
dilation. Tiles of the input overlap by two, tiles of the output do not.
"""
from functools import lru_cache
from typing import Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TILE = 4           # outputs along an axis
PATCH = TILE + 2   # inputs that they need
# Below these the transforms cost more than the products that they save (measured).
FEWEST_CHANNELS = 64
FEWEST_TILES = 256
SMALLEST_SAVING = 2.5
TILES_AT_ONCE = 600  # about; 44 MB for 512 channels

Rows = Tuple[Tuple[float, ...], ...]
# Evaluation at 0, 1, -1, 2, -2 and infinity: of the inputs, of the weights, and back.
_INPUTS: Rows = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
                 (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_WEIGHTS: Rows = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
                  (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_OUTPUTS: Rows = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0),
                  (0, 1, -1, 8, -8, 1))
_GRADIENTS: Rows = tuple(zip(*_OUTPUTS))  # the way back through the last
_ONE = PATCH + 1  # the point (1, 1) of the plane, which reaches all outputs of a tile alike


def _on_planes(rows: Rows) -> Tensor:
    """The transform of a tile in a row, from that of an axis; float64."""
    axis = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(axis, axis)


class _Bags(NamedTuple):
    """Which rows are summed, times which factors.

    Attributes:
        rows: (S,) int32, those of the first sum, of the second, ...
        factors: (S,) float32, which holds them exactly: they are small integers.
        starts: (R + 1,) int32, where each sum begins.
    """

    rows: Tensor
    factors: Tensor
    starts: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """Sums (R, C) of rows of `values` (N, C), which no gradient is recorded for."""
        return F.embedding_bag(self.rows, values.detach(), self.starts, mode='sum',
                               per_sample_weights=self.factors.to(values.dtype),
                               include_last_offset=True)


class _Band(NamedTuple):
    """Rows of tiles that are worked on together: their values stay in the cache."""

    first: int
    last: int


class _Tiling:
    """Where the tiles of a convolution lie in its input and output."""

    def __init__(self, *, batch: int, size: Tuple[int, int], dilation: int) -> None:
        self.batch = batch
        self.size = size
        self.dilation = dilation
        self.stride = TILE * dilation
        self.down, self.across = (-(-cells // self.stride) for cells in size)
        self.count = batch * self.down * self.across * dilation ** 2

    def bands(self) -> Iterator[_Band]:
        """All rows of tiles, some at a time."""
        rows = -(-self.down // max(1, round(self.count / TILES_AT_ONCE)))
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
            (points ** 2, T, C), a view.
        """
        B, H, W, C = x.shape
        first = self.stride * band.first - padding
        last = self.stride * band.last - padding + self.dilation * (len(transform[0]) - TILE)
        low = max(first, 0)
        bags = _cells_of_points(
            transform, rows=band.last - band.first, across=self.across, dilation=self.dilation,
            batch=B, width=W, height=H, above=low - first, left=padding,
            below=min(H, last) - low)
        sums = bags.sums(x.reshape(-1, C)[low * W:])
        return sums.view(-1, len(transform) ** 2, C).transpose(0, 1)

    def restore(self, values: Tensor, band: _Band) -> Tensor:
        """The outputs (B, X', Y, O) of a band from its values (points, T, O)."""
        X, Y = self.size
        rows = min(X, self.stride * band.last) - self.stride * band.first
        bags = _points_of_outputs(rows=rows, width=Y, batch=self.batch, across=self.across,
                                  dilation=self.dilation, tiles=values.shape[1])
        return bags.sums(values.flatten(0, 1)).view(self.batch, rows, Y, -1)

    def rows(self, band: _Band) -> slice:
        """The rows of the output that a band covers."""
        return slice(self.stride * band.first, self.stride * band.last)


@lru_cache(maxsize=64)
def _cells_of_points(transform: Rows, *, rows: int, across: int, dilation: int, batch: int,
                     width: int, height: int, above: int, below: int, left: int) -> _Bags:
    """For every tile and point, the cells of the image that it is summed from.

    Args:
        transform: (points, cells) of a tile along an axis.
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
    planes = _on_planes(transform)
    side = len(transform[0])
    point, cell = planes.nonzero(as_tuple=True)
    i, b, ry, j, rx = torch.meshgrid(*(torch.arange(n) for n in (
        rows, batch, dilation, across, dilation)), indexing='ij')
    stride = TILE * dilation
    y = (stride * i + ry - above).reshape(-1, 1) + dilation * (cell // side)   # (T, nonzero)
    x = (stride * j + rx - left).reshape(-1, 1) + dilation * (cell % side)
    inside = (0 <= y) & (y < below) & (0 <= x) & (x < width)
    place = (b.reshape(-1, 1) * height + y) * width + x
    bag = torch.arange(len(place)).unsqueeze(1) * len(planes) + point
    counts = torch.bincount(bag[inside], minlength=len(place) * len(planes))
    return _Bags(rows=place[inside].int(), starts=_starts(counts),
                 factors=planes[point, cell].float().expand(len(place), -1)[inside])


@lru_cache(maxsize=64)
def _points_of_outputs(*, rows: int, width: int, batch: int, across: int, dilation: int,
                       tiles: int) -> _Bags:
    """For every output of some rows, the values (point, tile) that it is summed from."""
    planes = _on_planes(_OUTPUTS)
    counts = (planes != 0).sum(1)
    output, point = planes.nonzero(as_tuple=True)
    factor = planes[output, point].float()
    b, y, x = torch.meshgrid(*(torch.arange(n) for n in (batch, rows, width)), indexing='ij')
    stride = TILE * dilation
    row, column = y // stride * batch + b, x // stride
    tile = ((row * dilation + y % dilation) * across + column) * dilation + x % dilation
    kind = (y % stride // dilation * TILE + x % stride // dilation).flatten()
    starts = _starts(counts[kind])
    terms = torch.arange(int(starts[-1])) + torch.repeat_interleave(
        (counts.cumsum(0) - counts)[kind] - starts[:-1], counts[kind])
    return _Bags(rows=(point[terms] * tiles + torch.repeat_interleave(
        tile.flatten(), counts[kind])).int(), factors=factor[terms], starts=starts)


def _starts(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0)).int()


def _channels_innermost(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _forward(x: Tensor, weight: Tensor, bias: Optional[Tensor], *, padding: int,
             dilation: int) -> Tensor:
    X, Y = (cells + 2 * (padding - dilation) for cells in x.shape[2:])
    tiling = _Tiling(batch=len(x), size=(X, Y), dilation=dilation)
    outputs, inputs = weight.shape[:2]
    taps = _on_planes(_WEIGHTS).to(weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    taps = taps.view(-1, inputs, outputs)                                     # (36, C, O)
    cells = _channels_innermost(x)
    y = torch.empty((len(x), outputs, X, Y), dtype=x.dtype, memory_format=torch.channels_last)
    for band in tiling.bands():
        values = tiling.evaluate(cells, band, _INPUTS, padding=padding)
        products = torch.bmm(values, taps)                                    # (36, T, O)
        if bias is not None:
            products[_ONE] += bias
        y.permute(0, 2, 3, 1)[:, tiling.rows(band)] = tiling.restore(products, band)
    return y


def _weight_gradient(x: Tensor, gradient: Tensor, *, padding: int, dilation: int) -> Tensor:
    tiling = _Tiling(batch=len(x), size=gradient.shape[2:], dilation=dilation)
    inputs, outputs = x.shape[1], gradient.shape[1]
    taps = x.new_zeros(PATCH ** 2, inputs, outputs)
    cells, gradient = _channels_innermost(x), _channels_innermost(gradient)
    for band in tiling.bands():
        values = tiling.evaluate(cells, band, _INPUTS, padding=padding)
        products = tiling.evaluate(gradient, band, _GRADIENTS, padding=0)
        taps.baddbmm_(values.transpose(1, 2), products)
    weight = _on_planes(_WEIGHTS).to(taps).t() @ taps.flatten(1)              # (9, C * O)
    return weight.view(3, 3, inputs, outputs).permute(3, 2, 0, 1).contiguous()


class _Winograd(torch.autograd.Function):
    """The gradient for the input is a convolution, too, and computed as one."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: int,
                dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return _forward(x, weight, bias, padding=padding, dilation=dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = _forward(gradient, weight.flip(2, 3).transpose(0, 1), None,
                             padding=2 * ctx.dilation - ctx.padding, dilation=ctx.dilation)
        if ctx.needs_input_grad[1]:
            for_weight = _weight_gradient(x, gradient, padding=ctx.padding, dilation=ctx.dilation)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum(dim=(0, 2, 3))
        return for_x, for_weight, for_bias, None, None


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *, padding: int = 0,
                    dilation: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d` of a 3x3 kernel without strides.

    Args:
        x: (B, C, H, W) in any layout.
        weight: (O, C, 3, 3).
        bias: (O,).
        padding: rows and columns of zeros on every side, at most twice the dilation.
        dilation: d.

    Returns:
        (B, O, X, Y), channels last in memory.

    Raises:
        ValueError: for another kernel or more padding.
    """
    if weight.shape[2:] != (3, 3) or not 0 <= padding <= 2 * dilation:
        raise ValueError(f'winograd_conv2d is for 3x3 kernels padded by at most {2 * dilation}, '
                         f'got {tuple(weight.shape)} padded by {padding}')
    return _Winograd.apply(x, weight, bias, padding, dilation)


def conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *, padding: int = 0,
           dilation: int = 1) -> Tensor:
    """The convolution of `x` (B, C, H, W) without strides, on a CPU by the faster algorithm.

    Args:
        x: (B, C, H, W).
        weight: (O, C, k, k).
        bias: (O,).
        padding: rows and columns of zeros on every side.
        dilation: cells between the taps.

    Returns:
        (B, O, X, Y).
    """
    if _saves(x, weight, padding=padding, dilation=dilation):
        return winograd_conv2d(x, weight, bias, padding=padding, dilation=dilation)
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)


def _saves(x: Tensor, weight: Tensor, *, padding: int, dilation: int) -> bool:
    if (x.device.type != 'cpu' or x.dtype != torch.float32 or torch.is_autocast_enabled('cpu')
            or torch.jit.is_tracing() or torch.compiler.is_compiling()
            or weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < FEWEST_CHANNELS
            or padding > 2 * dilation):
        return False
    X, Y = (cells + 2 * (padding - dilation) for cells in x.shape[2:])
    tiles = _Tiling(batch=len(x), size=(X, Y), dilation=dilation).count
    return tiles >= FEWEST_TILES and 9 * len(x) * X * Y >= SMALLEST_SAVING * PATCH ** 2 * tiles


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, by the faster algorithm where there is one: see the module."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        return conv2d(input, weight, bias, padding=self.padding[0], dilation=self.dilation[0])


def use_fewer_multiplications(module: nn.Module) -> None:
    """Let the convolutions inside `module` that can run as this module describes."""
    for part in module.modules():
        if type(part) is nn.Conv2d and part.kernel_size == (3, 3) and part.stride == (1, 1) and (
                part.groups == 1 and part.padding_mode == 'zeros'
                and not isinstance(part.padding, str)
                and len(set(part.padding)) == len(set(part.dilation)) == 1
                and min(part.in_channels, part.out_channels) >= FEWEST_CHANNELS):
            part.__class__ = Conv2d
