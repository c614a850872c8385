"""Attention within windows, against the same written with PyTorch's own."""
import pytest
import torch
from torch.nn import functional as F

from bevfusion_enhanced.models.camera.window_attention import windows_of
from bevfusion_enhanced.ops import window_attention
from bevfusion_enhanced.ops.window_attention import attend_in_windows

HEADS, CHANNELS, WINDOW = 2, 8, 3
CPU = torch.device('cpu')


def plain(qkv, padding, bias, windows, *, scale):
    """All windows of all images at once."""
    B, L, _ = qkv.shape
    rows = torch.cat([qkv, padding.expand(B, 1, -1)], dim=1)[:, windows.source]
    rows = rows.view(B, -1, bias.shape[1], 3, HEADS, CHANNELS // HEADS)
    query, key, value = rows.permute(3, 0, 1, 4, 2, 5)                        # (B, V, h, N, d)
    mask = bias if windows.mask is None else bias + windows.mask              # (V, h, N, N)
    seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return seen.transpose(2, 3).reshape(B, -1, CHANNELS)[:, windows.place]


def inputs(images: int, tokens: int, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = ((images, tokens, 3 * CHANNELS), (3 * CHANNELS,), (HEADS, WINDOW ** 2, WINDOW ** 2))
    qkv, padding, bias = (torch.randn(shape) for shape in shapes)
    return [value.requires_grad_() for value in (qkv.to(dtype), padding.to(dtype), bias)]


@pytest.mark.parametrize('at_once', [1, 40, 4096])
@pytest.mark.parametrize('images, size, shift', [
    (1, (6, 9), 0), (2, (6, 9), 1), (2, (7, 5), 0), (3, (7, 5), 1), (2, (1, 2), 0)])
def test_it_is_attention_with_its_gradients(images, size, shift, at_once, monkeypatch):
    monkeypatch.setattr(window_attention, 'TOKENS_AT_ONCE', at_once)
    windows = windows_of(*size, window=WINDOW, shift=shift, device=CPU)
    values = inputs(images, size[0] * size[1])
    towards = torch.randn(images, size[0] * size[1], CHANNELS)
    results = []
    for function in (attend_in_windows, plain):
        out = function(*values, windows, scale=0.4)
        results.append((out, *torch.autograd.grad(out, values, towards, allow_unused=True)))
    for mine, expected in zip(*results):
        expected = torch.zeros_like(mine) if expected is None else expected
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_error_is_at_most_half_more_than_of_pytorchs_kernel():
    windows = windows_of(30, 31, window=WINDOW, shift=1, device=CPU)
    values = inputs(2, 930, torch.bfloat16)
    towards = torch.randn(2, 930, CHANNELS).bfloat16()
    exact = [value.detach().double().requires_grad_() for value in values]
    results = []
    for function, arguments in ((attend_in_windows, values),
                                (plain, [values[0], values[1], values[2].bfloat16()]),
                                (plain, exact)):
        mask = windows._replace(mask=windows.mask.to(arguments[2].dtype))
        out = function(*arguments, mask, scale=0.4)
        leaves = exact if arguments is exact else values
        results.append((out, *torch.autograd.grad(out, leaves, towards.to(out.dtype))))
    assert [value.dtype for value in results[0]] == [torch.bfloat16] * 3 + [torch.float32]
    for mine, other, truth in zip(*results):
        errors = [(value.double() - truth).norm() for value in (mine, other)]
        assert errors[0] < 1.5 * errors[1]
