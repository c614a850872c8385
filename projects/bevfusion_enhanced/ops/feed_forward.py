"""The two layers of a transformer's feed-forward network on a CPU, forward and backward in pieces.

y = W2 gelu(W1 x + b1) + b2, as in Vaswani et al., 'Attention Is All You Need', 2017, with the GELU
of Hendrycks and Gimpel, 2016. Tokens pass in pieces whose hidden features stay in the cache. Only
what enters the activation is kept for the backward pass: it is computed anew there, which costs
less than to write and read it.

Shapes: T tokens, C channels, H hidden features.
"""
from typing import Any, Iterator, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bevfusion_enhanced.ops.precision import full_precision

TOKENS_AT_ONCE = 4096


def _pieces(tokens: int) -> Iterator[slice]:
    return (slice(first, first + TOKENS_AT_ONCE) for first in range(0, tokens, TOKENS_AT_ONCE))


class _FeedForward(torch.autograd.Function):

    @staticmethod
    @full_precision
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        into, bias_in, out_of, bias_out = (value.to(x.dtype) for value in (w1, b1, w2, b2))
        hidden = x.new_empty(len(x), len(w1))                                        # (T, H)
        y = x.new_empty(len(x), len(w2))                                             # (T, C)
        for part in _pieces(len(x)):
            torch.addmm(bias_in, x[part], into.t(), out=hidden[part])
            torch.addmm(bias_out, F.gelu(hidden[part]), out_of.t(), out=y[part])
        ctx.save_for_backward(x, hidden, w1, w2)
        return y

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, ...]:
        x, hidden, w1, w2 = ctx.saved_tensors
        into, out_of = w1.to(x.dtype), w2.to(x.dtype)
        for_w1, for_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
        for_b1 = w1.new_zeros(len(w1))
        for_x = torch.empty_like(x)
        for part in _pieces(len(x)):
            towards = gradient[part]
            _add_product(for_w2, towards.t(), F.gelu(hidden[part]))
            towards = torch.ops.aten.gelu_backward(towards @ out_of, hidden[part])
            _add_product(for_w1, towards.t(), x[part])
            for_b1 += towards.sum(0)
            torch.mm(towards, into, out=for_x[part])
        return for_x, for_w1, for_b1, for_w2, gradient.sum(0, dtype=w2.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, whose precision may be the higher one."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Two linear layers with a GELU between them.

    Args:
        x: (T, C); the result is in its precision.
        w1: (H, C), in the precision of `x` or a higher one, as all that follow.
        b1: (H,).
        w2: (C, H).
        b2: (C,).

    Returns:
        (T, C).
    """
    return _FeedForward.apply(x, w1, b1, w2, b2)
