"""Group normalization with a gradient of its own, against PyTorch's."""
import pytest
import torch
from torch import nn

from bevfusion_enhanced.ops import group_norm
from bevfusion_enhanced.ops.group_norm import GroupNorm


def both(shape, groups, dtype=torch.float32):
    """A map channels last, and the two layers with the same weights."""
    torch.manual_seed(0)
    layers = [kind(groups, shape[1]) for kind in (GroupNorm, nn.GroupNorm)]
    nn.init.normal_(layers[0].weight)
    nn.init.normal_(layers[0].bias)
    layers[1].load_state_dict(layers[0].state_dict())
    x = (3 + 2 * torch.randn(shape)).to(dtype)
    return x.to(memory_format=torch.channels_last), layers


def gradients(layer, x, towards):
    x = x.detach().requires_grad_()
    out = layer(x)
    return out, *torch.autograd.grad(out, (x, layer.weight, layer.bias), towards)


@pytest.mark.parametrize('at_once', [1, 50, 2 ** 19])
@pytest.mark.parametrize('shape, groups', [
    ((1, 8, 7, 5), 4), ((3, 6, 4, 9), 1), ((2, 6, 5, 5), 6), ((2, 64, 30, 20), 32)])
def test_outputs_and_gradients_are_pytorchs(shape, groups, at_once, monkeypatch):
    monkeypatch.setattr(group_norm, 'VALUES_AT_ONCE', at_once)
    x, layers = both(shape, groups)
    towards = torch.randn(shape)
    for mine, theirs in zip(*(gradients(layer, x, towards) for layer in layers)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_gradient_is_rounded_once():
    x, layers = both((2, 64, 40, 30), 32, torch.bfloat16)
    towards = torch.randn(2, 64, 40, 30).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        ours = gradients(layers[0], x, towards)
    assert [value.dtype for value in ours] == [torch.bfloat16] * 2 + [torch.float32] * 2
    layers[1].double()
    for mine, exact in zip(ours, gradients(layers[1], x.double(), towards.double())):
        error = (mine.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < 0.004


def test_gradients_of_the_output_in_any_layout():
    x, layers = both((2, 8, 6, 5), 2)
    towards = torch.randn(5, 6, 8, 2).permute(3, 2, 1, 0)
    for mine, theirs in zip(*(gradients(layer, x, towards) for layer in layers)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('x', [
    torch.randn(2, 8, 6, 5), torch.randn(2, 8), torch.randn(3, 8, 4)],
    ids=['channels first', 'vectors', 'sequences'])
def test_what_it_is_not_for_runs_as_ever(x, monkeypatch):
    monkeypatch.setattr(group_norm, '_GroupNorm', None)
    torch.manual_seed(0)
    assert torch.equal(GroupNorm(2, 8)(x), nn.GroupNorm(2, 8)(x))


def test_no_samples_give_zero_gradients():
    x, layers = both((0, 8, 6, 5), 2)
    out, for_x, *rest = gradients(layers[0], x, torch.zeros(0, 8, 6, 5))
    assert out.shape == for_x.shape == x.shape and all((value == 0).all() for value in rest)
