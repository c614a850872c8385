"""Attention within windows on a CPU, forward and backward some windows at a time.

softmax(scale q k^T + bias + mask) v within each window, as in Liu et al., 'Swin Transformer', ICCV
2021. Tokens are read where they are in the image and written back there; the attention of some
windows stays in the cache and is computed anew for the backward pass rather than kept, as in Dao et
al., 'FlashAttention', 2022, whose form of the softmax's gradient is used, too.

Shapes: B images, L tokens of an image, C channels, h heads, V windows of an image, N tokens of a
window, n windows that are worked on at a time.
"""
from typing import Any, Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bevfusion_enhanced.ops.precision import full_precision

TOKENS_AT_ONCE = 4096


class Windows(NamedTuple):
    """How the tokens of one image fall into windows.

    Attributes:
        source: (V * N) token at each place of a window, L where the place is padding.
        place: (L) place of each token.
        mask: (V, 1, N, N) what is added to the attention, or None where nothing is.
    """

    source: Tensor
    place: Tensor
    mask: Optional[Tensor]


class _Piece(NamedTuple):
    """Some windows: their places, and for each the row of the images' tokens or where it has none.

    Attributes:
        places: the range of them.
        rows: (n * N) of B * L tokens, any where there is none.
        empty: positions among `rows` of padding.
        mask: (n, 1, N, N) or None.
    """

    places: slice
    rows: Tensor
    empty: Tensor
    mask: Optional[Tensor]

    def read(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Rows of `tokens` (B * L, D), or `padding` (D,): (n * N, D)."""
        return tokens.index_select(0, self.rows).index_copy_(
            0, self.empty, padding.expand(len(self.empty), -1))


def _pieces(windows: Windows, *, images: int, side: int) -> Iterator[_Piece]:
    tokens, places = len(windows.place), len(windows.source)
    of_image = torch.arange(0, images * tokens, tokens).repeat_interleave(places)
    source = windows.source.repeat(images)
    rows = torch.where(source < tokens, source, 0) + of_image
    step = max(1, TOKENS_AT_ONCE // side) * side
    for first in range(0, len(rows), step):
        last = min(first + step, len(rows))
        mask = windows.mask
        if mask is not None:
            mask = mask[torch.arange(first // side, last // side) % len(mask)]
        yield _Piece(slice(first, last), rows[first:last],
                     (source[first:last] == tokens).nonzero().squeeze(1), mask)


class _WindowAttention(torch.autograd.Function):

    @staticmethod
    @full_precision
    def forward(ctx: Any, qkv: Tensor, padding: Tensor, bias: Tensor, windows: Windows,
                scale: float) -> Tensor:
        B, L = qkv.shape[:2]
        heads, side = bias.shape[:2]
        tokens = qkv.flatten(0, 1)                                               # (B * L, 3C)
        channels = tokens.shape[1] // 3
        seen = qkv.new_empty(B * len(windows.source), channels)
        for piece in _pieces(windows, images=B, side=side):
            query, key, value = _by_head(piece.read(tokens, padding), heads=heads, side=side,
                                         kinds=3)
            attention = _attention(query, key, bias, piece.mask, scale=scale)
            seen[piece.places] = _by_token(torch.bmm(attention.to(value.dtype), value),
                                           heads=heads)
        place = _places(windows, images=B)
        seen = seen.index_select(0, place).view(B, L, channels)
        ctx.save_for_backward(qkv, padding, bias, seen)
        ctx.windows, ctx.scale = windows, scale
        return seen

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        qkv, padding, bias, seen = ctx.saved_tensors
        B, L = qkv.shape[:2]
        heads, side = bias.shape[:2]
        tokens, seen, gradient = (value.flatten(0, 1) for value in (qkv, seen, gradient))
        nothing = gradient.new_zeros(gradient.shape[1])
        for_places = qkv.new_empty(B * len(ctx.windows.source), tokens.shape[1])
        for_padding = torch.zeros_like(padding, dtype=bias.dtype)
        for_bias = torch.zeros_like(bias)
        for piece in _pieces(ctx.windows, images=B, side=side):
            query, key, value = _by_head(piece.read(tokens, padding), heads=heads, side=side,
                                         kinds=3)
            out, = _by_head(piece.read(seen, nothing), heads=heads, side=side)
            towards, = _by_head(piece.read(gradient, nothing), heads=heads, side=side)
            attention = _attention(query, key, bias, piece.mask, scale=ctx.scale)
            for_value = torch.bmm(attention.to(value.dtype).transpose(1, 2), towards)
            level = (towards * out).sum(2, keepdim=True, dtype=attention.dtype)
            scores = torch.bmm(towards, value.transpose(1, 2)).to(attention.dtype)
            scores = scores.sub_(level).mul_(attention)
            for_bias += scores.view(-1, *bias.shape).sum(0)
            scores = (ctx.scale * scores).to(value.dtype)
            parts = (torch.bmm(scores, key), torch.bmm(scores.transpose(1, 2), query), for_value)
            for_piece = torch.cat([_by_token(part, heads=heads) for part in parts], dim=1)
            for_padding += for_piece[piece.empty].sum(0)
            for_places[piece.places] = for_piece
        for_qkv = for_places.index_select(0, _places(ctx.windows, images=B))
        return for_qkv.view_as(qkv), for_padding.to(padding.dtype), for_bias, None, None


def _places(windows: Windows, *, images: int) -> Tensor:
    """(B * L) place of each token of all images."""
    first = torch.arange(images).unsqueeze(1) * len(windows.source)
    return (first + windows.place).flatten()


def _by_head(rows: Tensor, *, heads: int, side: int, kinds: int = 1) -> Tensor:
    """(n * N, kinds * C) as (kinds, n * h, N, d)."""
    rows = rows.view(-1, side, kinds, heads, rows.shape[1] // (kinds * heads))
    return rows.permute(2, 0, 3, 1, 4).flatten(1, 2)


def _by_token(values: Tensor, *, heads: int) -> Tensor:
    """(n * h, N, d) as (n * N, C)."""
    _, side, depth = values.shape
    return values.view(-1, heads, side, depth).transpose(1, 2).reshape(-1, heads * depth)


def _attention(query: Tensor, key: Tensor, bias: Tensor, mask: Optional[Tensor], *,
               scale: float) -> Tensor:
    """The softmax (n * h, N, N), in the precision of the bias (h, N, N)."""
    scores = torch.bmm(query, key.transpose(1, 2)).to(bias.dtype)
    scores = scores.view(-1, *bias.shape).mul_(scale).add_(bias)
    if mask is not None:
        scores.add_(mask)
    return F.softmax(scores.flatten(0, 1), dim=-1)


def attend_in_windows(qkv: Tensor, padding: Tensor, bias: Tensor, windows: Windows, *,
                      scale: float) -> Tensor:
    """Attention of tokens to those of their window.

    Args:
        qkv: (B, L, 3C) queries, keys and values, each of h heads.
        padding: (3C,) the same of places that no token fills.
        bias: (h, N, N) added to the attention, in the precision of `qkv` or a higher one.
        windows: which token is where.
        scale: factor of the products of queries and keys.

    Returns:
        (B, L, C).
    """
    return _WindowAttention.apply(qkv, padding, bias, windows, scale)


def attend_at_once(qkv: Tensor, padding: Tensor, bias: Tensor, windows: Windows, *,
                   scale: float) -> Tensor:
    """The same of all windows at once by PyTorch's own kernel, which suits a GPU."""
    B = len(qkv)
    heads, side = bias.shape[:2]
    rows = torch.cat([qkv, padding.expand(B, 1, -1)], dim=1).index_select(1, windows.source)
    rows = rows.view(-1, side, 3, heads, qkv.shape[2] // (3 * heads))              # (B*V, N, ...)
    query, key, value = rows.permute(2, 0, 3, 1, 4)                                # (B*V, h, N, d)
    bias = bias[None]
    if windows.mask is not None:
        bias = (bias + windows.mask).repeat(B, 1, 1, 1)
    seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype),
                                          scale=scale)
    return seen.transpose(1, 2).reshape(B, -1, qkv.shape[2] // 3).index_select(1, windows.place)
