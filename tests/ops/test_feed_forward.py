"""The feed-forward network in pieces, against the layers one after the other."""
import pytest
import torch
from torch.nn import functional as F

from bevfusion_enhanced.ops import feed_forward as module
from bevfusion_enhanced.ops.feed_forward import feed_forward


def layers(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def inputs(tokens: int, dtype=torch.float32):
    torch.manual_seed(0)
    x, *weights = (torch.randn(shape) for shape in ((tokens, 6), (10, 6), (10,), (6, 10), (6,)))
    return [x.to(dtype).requires_grad_(), *(weight.requires_grad_() for weight in weights)]


@pytest.mark.parametrize('at_once', [1, 7, 4096])
@pytest.mark.parametrize('tokens', [0, 1, 20])
def test_it_is_the_layers_with_their_gradients(tokens, at_once, monkeypatch):
    monkeypatch.setattr(module, 'TOKENS_AT_ONCE', at_once)
    values = inputs(tokens)
    towards = torch.randn(6, tokens).t()
    results = []
    for function in (feed_forward, layers):
        out = function(*values)
        results.append((out, *torch.autograd.grad(out, values, towards)))
    for mine, expected in zip(*results):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_rounds_as_autocast_does_and_keeps_the_weights_gradients_in_float32():
    values = inputs(3000, torch.bfloat16)
    towards = torch.randn(3000, 6).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        out, plain = feed_forward(*values), layers(*values)
    assert out.dtype == torch.bfloat16 and torch.equal(out, plain)
    ours, theirs = (torch.autograd.grad(y, values, towards) for y in (out, plain))
    exact = [value.detach().double().requires_grad_() for value in values]
    best = torch.autograd.grad(layers(*exact), exact, towards.double())
    for mine, other, truth in zip(ours, theirs, best):
        assert mine.dtype == other.dtype
        errors = [(value.double() - truth).norm() for value in (mine, other)]
        assert errors[0] < 1.2 * errors[1]
