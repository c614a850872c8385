"""3x3 convolutions on a CPU with a quarter of the multiplications, or half of them in bfloat16.

A tile of 4 x 4 outputs needs 6 x 6 inputs and, taken directly, 144 products for every pair of
channels. Evaluated as a polynomial at six points it needs 36: F(4x4, 3x3) of Lavin and Gray, 'Fast
Algorithms for Convolutional Neural Networks', CVPR 2016, after Winograd. Libraries for GPUs do so
unasked; oneDNN, which convolves for PyTorch on CPUs, does not. A dilated convolution is as many
plain ones as there are residues of row and column, which stand side by side here.

In bfloat16 the tiles are of 2 x 2 outputs, 16 products in place of 36: the values at the points of
larger ones differ too much in size for its eight bits.

The sums are rounded differently: against float64 the largest error of 512 channels is 1e-5 of the
largest output in place of 3e-6. In bfloat16 the typical error is 0.4 % of the outputs' deviation in
place of 0.17 %.

Shapes: B samples, C input channels, O output channels, H x W inputs, X x Y outputs, T tiles, d the
dilation. Tiles of the input overlap by two, tiles of the output do not.
"""
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bevfusion_enhanced.ops.precision import computed_dtype, full_precision
from bevfusion_enhanced.ops.row_sums import runs_eagerly_on_cpu
from bevfusion_enhanced.ops.winograd_tiles import F2, F4, Scheme, Tiling, on_planes

FEWEST_OUTPUTS = 4096  # below which the transforms cost more than the products that they save


def _scheme(dtype: torch.dtype) -> Scheme:
    return F2 if dtype == torch.bfloat16 else F4


def _channels_innermost(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _taps(weight: Tensor, *, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """Weights (O, C, 3, 3) at all points, (points, C, O)."""
    outputs, inputs = weight.shape[:2]
    taps = on_planes(scheme.weights).to(weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    return taps.to(dtype).view(-1, inputs, outputs)


def _weight_of_taps(taps: Tensor, *, scheme: Scheme) -> Tensor:
    """The gradient for weights (O, C, 3, 3) from that for their values (points, C, O)."""
    weight = on_planes(scheme.weights).to(taps).t() @ taps.flatten(1)        # (9, C * O)
    return weight.view(3, 3, *taps.shape[1:]).permute(3, 2, 0, 1)


def _new_output(x: Tensor, channels: int, size: Tuple[int, int]) -> Tensor:
    return torch.empty((len(x), channels, *size), dtype=x.dtype,
                       memory_format=torch.channels_last)


def _turned(weight: Tensor) -> Tensor:
    """The weight of the convolution that leads back from the outputs to the inputs."""
    return weight.flip(2, 3).transpose(0, 1)


def _forward(x: Tensor, weight: Tensor, bias: Optional[Tensor], *, scheme: Scheme, padding: int,
             dilation: int) -> Tensor:
    X, Y = (cells + 2 * (padding - dilation) for cells in x.shape[2:])
    tiling = Tiling(scheme=scheme, batch=len(x), size=(X, Y), dilation=dilation)
    taps = _taps(weight, scheme=scheme, dtype=x.dtype)
    cells = _channels_innermost(x)
    y = _new_output(x, len(weight), (X, Y))
    for band in tiling.bands():
        values = tiling.evaluate(cells, band, scheme.inputs, padding=padding)
        products = torch.bmm(values, taps)                                    # (points, T, O)
        if bias is not None:
            products[scheme.one] += bias
        y.permute(0, 2, 3, 1)[:, tiling.rows(band)] = tiling.restore(products, band)
    return y


class _Gradients(NamedTuple):
    """Of a convolution without bias: (B, C, H, W) and (O, C, 3, 3), where they were asked for."""

    x: Optional[Tensor]
    weight: Optional[Tensor]


def _both_gradients(x: Tensor, weight: Tensor, gradient: Tensor, *, scheme: Scheme, padding: int,
                    dilation: int, for_x: bool, for_weight: bool) -> _Gradients:
    """Both gradients from one evaluation of that of the outputs.

    The way back is a convolution, too, of `gradient` with weights that are turned. Its product
    with `x` is that of the outputs with `gradient`, so its weights have the gradient that is asked
    for: that of a convolution of `gradient`, with `x` in place of its outputs' gradient.
    """
    tiling = Tiling(scheme=scheme, batch=len(x), size=x.shape[2:], dilation=dilation)
    outputs, inputs = weight.shape[:2]
    taps = _taps(_turned(weight), scheme=scheme, dtype=x.dtype)               # (points, O, C)
    sums = x.new_zeros(scheme.points, outputs, inputs, dtype=weight.dtype)
    back = _new_output(x, inputs, x.shape[2:]) if for_x else None
    cells, gradient = _channels_innermost(x), _channels_innermost(gradient)
    for band in tiling.bands():
        values = tiling.evaluate(gradient, band, scheme.inputs, padding=2 * dilation - padding)
        if back is not None:
            products = torch.bmm(values, taps)                                # (points, T, C)
            back.permute(0, 2, 3, 1)[:, tiling.rows(band)] = tiling.restore(products, band)
        if for_weight:
            products = tiling.evaluate(cells, band, scheme.gradients, padding=0)
            if weight.dtype == x.dtype:
                sums.baddbmm_(values.transpose(1, 2), products)
            else:
                sums += torch.bmm(values.transpose(1, 2), products)
    return _Gradients(x=back, weight=_turned(
        _weight_of_taps(sums, scheme=scheme)).contiguous() if for_weight else None)


class _Winograd(torch.autograd.Function):
    """The gradient for the input is a convolution, too, and computed as one: see `_both_gradients`.

    `x` may be in half precision and the weight not: its transform is rounded, not itself.
    """

    @staticmethod
    @full_precision
    def forward(ctx, x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: int,
                dilation: int, scheme: Scheme) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation, ctx.scheme = padding, dilation, scheme
        return _forward(x, weight, bias, scheme=scheme, padding=padding, dilation=dilation)

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        found = _both_gradients(
            x, weight, gradient, scheme=ctx.scheme, padding=ctx.padding, dilation=ctx.dilation,
            for_x=ctx.needs_input_grad[0], for_weight=ctx.needs_input_grad[1])
        for_bias = None
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum(dim=(0, 2, 3), dtype=weight.dtype)
        return found.x, found.weight, for_bias, None, None, None


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
    tiles = Tiling(scheme=scheme, batch=len(x), size=(X, Y), dilation=dilation).count
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
                and min(part.in_channels, part.out_channels) >= F4.fewest_channels):
            part.__class__ = Conv2d
