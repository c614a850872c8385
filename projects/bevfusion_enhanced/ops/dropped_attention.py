"""Attention with dropout that never holds the weights of all heads.

Shapes: B samples, h heads, P queries, L keys, d channels of a head.
"""
import math
from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEVELS = 1 << 16  # what a draw of 16 bits tells apart
FEW_WEIGHTS = 1 << 20  # of a head: below, all heads at once are as fast


def dropped_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """`scaled_dot_product_attention` with dropout, on a CPU a head at a time.

    With dropout, PyTorch's for CPUs keeps scores, weights, the drawn mask and their product for
    the backward pass: 0.8 GB for 200 proposals that look at 180 x 180 cells with 8 heads. Here the
    weights of one head live at a time, in memory that the heads share, and are computed anew in the
    backward pass (Dao et al., 'FlashAttention', NeurIPS 2022, without its tiles). What is kept is a
    byte a weight, drawn from 16 random bits each, so that `dropout` is met to 1 in 65,536.

    Args:
        query: (B, h, P, d).
        key: (B, h, L, d).
        value: (B, h, L, d).
        dropout: probability of a weight to become zero; the others grow in turn.

    Returns:
        (B, h, P, d).
    """
    weights = query.shape[-2] * key.shape[-2]
    if query.device.type != 'cpu' or not 0 < dropout < 1 or weights <= FEW_WEIGHTS:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    lost = round(dropout * LEVELS)
    given, exact = query.dtype, torch.promote_types(query.dtype, torch.float32)
    with torch.autocast('cpu', enabled=False):  # casting the weights would cost more than it saves
        query = query.to(exact) / math.sqrt(query.shape[-1])
        value = value.to(exact) * (LEVELS / (LEVELS - lost))
        seen = _MaskedAttention.apply(query, key.to(exact), value, _kept(query, key, lost))
        return seen.to(given)


def _kept(query: Tensor, key: Tensor, lost: int) -> Tensor:
    """Which weights (h, B, P, L) stay: all but `lost` in LEVELS."""
    B, h, P, L = *query.shape[:3], key.shape[2]
    kept = torch.empty(h, B, P, L, dtype=torch.bool)
    draws = torch.empty(-(-B * P * L // 4), dtype=torch.int64)
    for head in kept:
        draws.random_(torch.iinfo(torch.int64).min, None)                          # 64 random bits
        sixteen = draws.view(torch.int16)[:head.numel()].view(head.shape)
        torch.ge(sixteen, lost - LEVELS // 2, out=head)
    return kept


class _MaskedAttention(torch.autograd.Function):
    """softmax(query key^T), masked, times value; two buffers (B, P, L) serve all heads."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> Tensor:
        seen = query.new_empty(*query.shape[:3], value.shape[-1])
        buffers = _buffers(query, key)
        for i in range(query.shape[1]):
            weights = _weights(query[:, i], key[:, i], buffers)
            seen[:, i] = weights.mul_(kept[i]) @ value[:, i]
        ctx.save_for_backward(query, key, value, kept, seen)
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        query, key, value, kept, seen = ctx.saved_tensors
        for_query, for_key, for_value = (torch.empty_like(x) for x in (query, key, value))
        buffers = _buffers(query, key)
        # the sum over the keys in the derivative of a softmax
        mean = (gradient * seen).sum(dim=-1, keepdim=True)                         # (B, h, P, 1)
        for i in range(query.shape[1]):
            weights = _weights(query[:, i], key[:, i], buffers)
            scores = torch.bmm(gradient[:, i], value[:, i].transpose(1, 2), out=buffers[0])
            scores.mul_(kept[i]).sub_(mean[:, i]).mul_(weights)
            for_query[:, i] = scores @ key[:, i]
            for_key[:, i] = scores.transpose(1, 2) @ query[:, i]
            for_value[:, i] = weights.mul_(kept[i]).transpose(1, 2) @ gradient[:, i]
        return for_query, for_key, for_value, None


def _buffers(query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
    B, _, P, _ = query.shape
    return query.new_empty(B, P, key.shape[2]), query.new_empty(B, P, key.shape[2])


def _weights(query: Tensor, key: Tensor, buffers: Tuple[Tensor, Tensor]) -> Tensor:
    """Weights (B, P, L) of a head, in the second buffer."""
    scores = torch.bmm(query, key.transpose(1, 2), out=buffers[0])
    return torch.softmax(scores, dim=-1, out=buffers[1])
