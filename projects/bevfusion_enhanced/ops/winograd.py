"""3x3 convolutions on a CPU with a quarter of the multiplications, or half of them in bfloat16.

A tile of 4 x 4 outputs needs 6 x 6 inputs and, taken directly, 144 products for every pair of
channels. Evaluated as a polynomial at six points it needs 36: F(4x4, 3x3) of Lavin and Gray, 'Fast
Algorithms for Convolutional Neural Networks', CVPR 2016, after Winograd. Libraries for GPUs do so
unasked; oneDNN, which convolves for PyTorch on CPUs, does not. A dilated convolution is as many
plain ones as there are residues of row and column, which stand side by side here.

In bfloat16 the tiles are of 2 x 2 outputs, 16 products in place of 36: the values at the points of
larger ones differ too much in size for its eight bits.

A value at a point is the sum of a few cells, each times a constant, and an output the sum of a few
values: sums of rows.

The sums are rounded differently: against float64 the largest error of 512 channels is 1e-5 of the
largest output in place of 3e-6. In bfloat16 the typical error is 0.4 % of the outputs' deviation in
place of 0.17 %.

Shapes: B samples, C input channels, O output channels, H x W inputs, X x Y outputs, T tiles, d the
dilation. Tiles of the input overlap by two, tiles of the output do not.
"""
from functools import lru_cache
from typing import Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bevfusion_enhanced.ops.precision import computed_dtype, full_precision
from bevfusion_enhanced.ops.row_sums import RowSums, row_sums, runs_eagerly_on_cpu

# Below these the transforms cost more than the products that they save (measured).
FEWEST_CHANNELS = 64
FEWEST_OUTPUTS = 4096

Rows = Tuple[Tuple[float, ...], ...]


class _Scheme(NamedTuple):
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
_F4 = _Scheme(
    inputs=((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
    weights=((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
             (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
    outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    by_point=False, tiles_at_once=600, fewest_channels=FEWEST_CHANNELS, smallest_saving=2.5)
_F2 = _Scheme(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    weights=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, 1)),
    by_point=True, tiles_at_once=900, fewest_channels=128, smallest_saving=1.5)


def _scheme(dtype: torch.dtype) -> _Scheme:
    return _F2 if dtype == torch.bfloat16 else _F4


def _on_planes(rows: Rows) -> Tensor:
    """The transform of a tile in a row, from that of an axis; float64."""
    axis = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(axis, axis)


class _Band(NamedTuple):
    """Rows of tiles that are worked on together: their values stay in the cache."""

    first: int
    last: int


class _Tiling:
    """Where the tiles of a convolution lie in its input and output."""

    def __init__(self, *, scheme: _Scheme, batch: int, size: Tuple[int, int],
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
    planes = _on_planes(transform)
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
    planes = _on_planes(transform)
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


def _channels_innermost(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _forward(x: Tensor, weight: Tensor, bias: Optional[Tensor], *, scheme: _Scheme, padding: int,
             dilation: int) -> Tensor:
    X, Y = (cells + 2 * (padding - dilation) for cells in x.shape[2:])
    tiling = _Tiling(scheme=scheme, batch=len(x), size=(X, Y), dilation=dilation)
    outputs, inputs = weight.shape[:2]
    taps = _on_planes(scheme.weights).to(weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    taps = taps.to(x.dtype).view(-1, inputs, outputs)                         # (points, C, O)
    cells = _channels_innermost(x)
    y = torch.empty((len(x), outputs, X, Y), dtype=x.dtype, memory_format=torch.channels_last)
    for band in tiling.bands():
        values = tiling.evaluate(cells, band, scheme.inputs, padding=padding)
        products = torch.bmm(values, taps)                                    # (points, T, O)
        if bias is not None:
            products[scheme.one] += bias
        y.permute(0, 2, 3, 1)[:, tiling.rows(band)] = tiling.restore(products, band)
    return y


def _weight_gradient(x: Tensor, gradient: Tensor, *, scheme: _Scheme, padding: int, dilation: int,
                     dtype: torch.dtype) -> Tensor:
    tiling = _Tiling(scheme=scheme, batch=len(x), size=gradient.shape[2:], dilation=dilation)
    inputs, outputs = x.shape[1], gradient.shape[1]
    taps = x.new_zeros(scheme.points, inputs, outputs, dtype=dtype)
    cells, gradient = _channels_innermost(x), _channels_innermost(gradient)
    for band in tiling.bands():
        values = tiling.evaluate(cells, band, scheme.inputs, padding=padding)
        products = tiling.evaluate(gradient, band, scheme.gradients, padding=0)
        if dtype == x.dtype:
            taps.baddbmm_(values.transpose(1, 2), products)
        else:
            taps += torch.bmm(values.transpose(1, 2), products)
    weight = _on_planes(scheme.weights).to(taps).t() @ taps.flatten(1)        # (9, C * O)
    return weight.view(3, 3, inputs, outputs).permute(3, 2, 0, 1).contiguous()


class _Winograd(torch.autograd.Function):
    """The gradient for the input is a convolution, too, and computed as one.

    `x` may be in half precision and the weight not: its transform is rounded, not itself.
    """

    @staticmethod
    @full_precision
    def forward(ctx, x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: int,
                dilation: int, scheme: _Scheme) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation, ctx.scheme = padding, dilation, scheme
        return _forward(x, weight, bias, scheme=scheme, padding=padding, dilation=dilation)

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = _forward(
                gradient, weight.flip(2, 3).transpose(0, 1), None, scheme=ctx.scheme,
                padding=2 * ctx.dilation - ctx.padding, dilation=ctx.dilation)
        if ctx.needs_input_grad[1]:
            for_weight = _weight_gradient(
                x, gradient, scheme=ctx.scheme, padding=ctx.padding, dilation=ctx.dilation,
                dtype=weight.dtype)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum(dim=(0, 2, 3), dtype=weight.dtype)
        return for_x, for_weight, for_bias, None, None, None


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *, padding: int = 0,
                    dilation: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d` of a 3x3 kernel without strides.

    Args:
        x: (B, C, H, W) in any layout; the result is in its precision.
        weight: (O, C, 3, 3), in the precision of `x` or a higher one.
        bias: (O,), as the weight.
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
    return _Winograd.apply(x, weight, bias, padding, dilation, _scheme(x.dtype))


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
    dtype = computed_dtype(x)
    if _saves(x, weight, dtype=dtype, padding=padding, dilation=dilation):
        return winograd_conv2d(x.to(dtype), weight, bias, padding=padding, dilation=dilation)
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)


def _saves(x: Tensor, weight: Tensor, *, dtype: torch.dtype, padding: int, dilation: int) -> bool:
    if (not runs_eagerly_on_cpu(x) or not _is_for(dtype)
            or weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < _scheme(dtype).fewest_channels
            or padding > 2 * dilation):
        return False
    scheme = _scheme(dtype)
    X, Y = (cells + 2 * (padding - dilation) for cells in x.shape[2:])
    tiles = _Tiling(scheme=scheme, batch=len(x), size=(X, Y), dilation=dilation).count
    return (tiles * scheme.tile ** 2 >= FEWEST_OUTPUTS
            and 9 * len(x) * X * Y >= scheme.smallest_saving * scheme.points * tiles)


def _is_for(dtype: torch.dtype) -> bool:
    """Whether products in a precision are slow enough here for the transforms to be worth it."""
    if dtype == torch.bfloat16:
        return not torch.cpu.get_capabilities().get('amx_bf16', False)
    return dtype == torch.float32


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
