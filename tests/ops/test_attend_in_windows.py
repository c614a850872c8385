"""Attention within some windows at a time, against that of all at once by PyTorch's kernel."""
import pytest
import torch

from bevfusion_enhanced.models.camera.swin import windows_of
from bevfusion_enhanced.ops import window_attention
from bevfusion_enhanced.ops.window_attention import attend_at_once, attend_in_windows

HEADS, CHANNELS, WINDOW = 2, 8, 3
CPU = torch.device('cpu')


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
    for function in (attend_in_windows, attend_at_once):
        out = function(*values, windows, scale=0.4)
        results.append((out, *torch.autograd.grad(out, values, towards, allow_unused=True)))
    for mine, expected in zip(*results):
        expected = torch.zeros_like(mine) if expected is None else expected
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_error_stays_half_a_percent():
    windows = windows_of(30, 31, window=WINDOW, shift=0, device=CPU)
    values = inputs(2, 930, torch.bfloat16)
    towards = torch.randn(2, 930, CHANNELS).bfloat16()
    exact = [value.detach().double().requires_grad_() for value in values]
    results = []
    for function, arguments in ((attend_in_windows, values), (attend_at_once, exact)):
        out = function(*arguments, windows, scale=0.4)
        results.append((out, *torch.autograd.grad(out, arguments, towards.to(out.dtype))))
    assert [value.dtype for value in results[0]] == [torch.bfloat16] * 3 + [torch.float32]
    for mine, truth in zip(*results):
        assert 0 < (mine.double() - truth).norm() < 0.005 * truth.norm()
