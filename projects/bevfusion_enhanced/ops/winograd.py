"""3x3 convolutions on a CPU with a quarter of the multiplications.

A tile of 4 x 4 outputs needs 6 x 6 inputs and, taken directly, 144 products for every pair of
channels. Evaluated as a polynomial at six points it needs 36: F(4x4, 3x3) of Lavin and Gray, 'Fast
Algorithms for Convolutional Neural Networks', CVPR 2016, after Winograd. Libraries for GPUs do so
unasked; oneDNN, which convolves for PyTorch on CPUs, does not. A dilated convolution is as many
plain ones as there are residues of row and column, which stand side by side here.

The sums are rounded differently: against float64 the largest error of 512 channels is 1e-5 of the
largest output in place of 3e-6.

Shapes: B samples, C input channels, O output channels, X x Y outputs, T tiles, d the dilation.
Tiles of the input overlap by two, tiles of the output do not.
"""
from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TILE = 4           # outputs along an axis
PATCH = TILE + 2   # inputs that they need
# Below these the transforms cost more than the products that they save (measured).
FEWEST_CHANNELS = 128
FEWEST_TILES = 256
SMALLEST_SAVING = 2.5
TILES_AT_ONCE = 500  # 37 MB for 512 channels

# Evaluation at 0, 1, -1, 2, -2 and infinity: of the inputs, of the weights, and back.
_INPUTS = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
           (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_WEIGHTS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_OUTPUTS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_ONE = PATCH + 1  # the point (1, 1) of the plane, which reaches all outputs of a tile alike


def _on_planes(rows: Tuple[Tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The transform of a tile in a row, from that of an axis."""
    axis = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(axis, axis).to(like)


class _Tiling:
    """Where the tiles of a convolution lie in its input and output.

    They are worked on in bands, some rows of tiles at a time: a band's values stay in the cache,
    and neither the padded input nor all tiles exist at once.
    """

    def __init__(self, *, batch: int, size: Tuple[int, int], dilation: int) -> None:
        self.dilation = dilation
        self.stride = TILE * dilation
        self.down, self.across = (-(-cells // self.stride) for cells in size)
        in_a_row = batch * self.across * dilation ** 2
        self.count = self.down * in_a_row
        self._rows = max(1, TILES_AT_ONCE // max(1, in_a_row))

    def bands(self) -> Iterator[Tuple[int, int]]:
        """First row of tiles of every band, and the one after its last."""
        return ((first, min(first + self._rows, self.down))
                for first in range(0, self.down, self._rows))

    def read(self, x: Tensor, band: Tuple[int, int], *, side: int, padding: int) -> Tensor:
        """Tiles of `side` cells of `x` (B, C, H, W), which zeros go on: (side * side, T * C)."""
        H, W = x.shape[2:]
        margin = self.dilation * (side - TILE)
        first, last = self.stride * band[0] - padding, self.stride * band[1] + margin - padding
        low, high = max(first, 0), min(last, H)
        right = self.stride * self.across + margin - W - padding
        slab = F.pad(x[:, :, low:high].permute(0, 2, 3, 1),
                     (0, 0, padding, right, low - first, last - high))        # (B, H', W', C)
        return self._split(slab, rows=band[1] - band[0], side=side).reshape(side ** 2, -1)

    def write(self, values: Tensor, y: Tensor, band: Tuple[int, int]) -> None:
        """Put the tiles (16, T * O) into `y` (B, X', Y', O)."""
        rows = slice(self.stride * band[0], self.stride * band[1])
        tiles = self._split(y[:, rows], rows=band[1] - band[0], side=TILE)
        tiles.copy_(values.view(tiles.shape))

    def _split(self, x: Tensor, *, rows: int, side: int) -> Tensor:
        """`x` (B, H', W', C) as (side, side, rows, B, d, across, d, C), a view."""
        sample, row, column, channel = x.stride()
        d = self.dilation
        return x.as_strided(
            (side, side, rows, len(x), d, self.across, d, x.shape[3]),
            (d * row, d * column, self.stride * row, sample, row, self.stride * column, column,
             channel))


def _forward(x: Tensor, weight: Tensor, bias: Optional[Tensor], *, padding: int,
             dilation: int) -> Tensor:
    X, Y = (cells + 2 * (padding - dilation) for cells in x.shape[2:])
    tiling = _Tiling(batch=len(x), size=(X, Y), dilation=dilation)
    outputs, inputs = weight.shape[:2]
    taps = _on_planes(_WEIGHTS, weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    taps = taps.view(-1, inputs, outputs)                                     # (36, C, O)
    analyse, restore = _on_planes(_INPUTS, x), _on_planes(_OUTPUTS, x)
    y = x.new_empty(len(x), tiling.stride * tiling.down, tiling.stride * tiling.across,
                    outputs)
    for band in tiling.bands():
        values = analyse @ tiling.read(x, band, side=PATCH, padding=padding)
        products = torch.bmm(values.view(PATCH ** 2, -1, inputs), taps)       # (36, T, O)
        if bias is not None:
            products[_ONE] += bias
        tiling.write(restore @ products.flatten(1), y, band)
    return y[:, :X, :Y].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _weight_gradient(x: Tensor, gradient: Tensor, *, padding: int, dilation: int) -> Tensor:
    tiling = _Tiling(batch=len(x), size=gradient.shape[2:], dilation=dilation)
    analyse, restore = _on_planes(_INPUTS, x), _on_planes(_OUTPUTS, x).t()
    inputs, outputs = x.shape[1], gradient.shape[1]
    taps = x.new_zeros(PATCH ** 2, inputs, outputs)
    for band in tiling.bands():
        values = analyse @ tiling.read(x, band, side=PATCH, padding=padding)
        products = restore @ tiling.read(gradient, band, side=TILE, padding=0)
        taps.baddbmm_(values.view(PATCH ** 2, -1, inputs).transpose(1, 2),
                      products.view(PATCH ** 2, -1, outputs))
    weight = _on_planes(_WEIGHTS, x).t() @ taps.flatten(1)                    # (9, C * O)
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
