"""3x3 convolutions with fewer multiplications, against PyTorch's."""
import copy
from typing import Tuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bevfusion_enhanced.ops import winograd, winograd_tiles
from bevfusion_enhanced.ops.winograd import conv2d, use_fewer_multiplications, winograd_conv2d
from bevfusion_enhanced.ops.winograd_tiles import F2, F4

SHAPES = [  # of the input, padding, dilation: whole tiles, ragged ones, narrow, several samples
    ((1, 3, 8, 8), 1, 1), ((2, 4, 9, 7), 1, 1), ((1, 2, 3, 3), 0, 1), ((3, 2, 5, 14), 2, 1),
    ((1, 3, 1, 1), 1, 1), ((1, 2, 26, 11), 2, 2), ((2, 3, 13, 30), 3, 3), ((1, 2, 20, 20), 6, 6),
    ((1, 2, 7, 9), 0, 2), ((1, 2, 7, 9), 5, 3), ((1, 2, 4, 9), 4, 2)]


@pytest.fixture
def large() -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, 128, 64, 72), 0.05 * torch.randn(128, 128, 3, 3), torch.randn(128)


@pytest.mark.parametrize('scheme', [F4, F2], ids=['F4', 'F2'])
@pytest.mark.parametrize('at_once', [1, 7, 10_000])
@pytest.mark.parametrize('shape, padding, dilation', SHAPES)
def test_it_is_the_convolution_with_its_gradients(shape, padding, dilation, at_once, scheme,
                                                  monkeypatch):
    monkeypatch.setattr(winograd, '_scheme',
                        lambda dtype: scheme._replace(tiles_at_once=at_once))
    torch.manual_seed(1)
    inputs = [torch.randn(shape), torch.randn(5, shape[1], 3, 3), torch.randn(5)]
    inputs = [value.double().requires_grad_() for value in inputs]
    ours = winograd_conv2d(*inputs, padding=padding, dilation=dilation)
    theirs = F.conv2d(*inputs, padding=padding, dilation=dilation)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    towards = torch.randn_like(theirs)
    for mine, expected in zip(torch.autograd.grad(ours, inputs, towards),
                              torch.autograd.grad(theirs, inputs, towards)):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_layout_in_memory_does_not_matter(large):
    x, weight, bias = large
    side_by_side = x.contiguous(memory_format=torch.channels_last)
    part = torch.cat([x, x], dim=1)[:, 5:133]
    torch.testing.assert_close(winograd_conv2d(x, weight, bias, padding=1),
                               winograd_conv2d(side_by_side, weight, bias, padding=1),
                               rtol=0, atol=0)
    torch.testing.assert_close(
        winograd_conv2d(part, weight, padding=1),
        F.conv2d(part, weight, padding=1), rtol=1e-4, atol=1e-4)


def test_in_float32_the_error_stays_a_hundred_thousandth_of_the_output(large):
    x, weight, bias = large
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    error = (winograd_conv2d(x, weight, bias, padding=1) - exact).abs().max() / exact.abs().max()
    assert 0 < error < 2e-5


def test_in_bfloat16_the_typical_error_stays_half_a_percent(large):
    x, weight, bias = large
    x = x.bfloat16()
    towards = torch.randn(1, 128, 64, 72).bfloat16()

    def run(convolve, *inputs):
        inputs = [value.clone().requires_grad_() for value in inputs]
        out = convolve(*inputs, padding=1)
        return out.detach(), *torch.autograd.grad(out, inputs, towards.to(out))

    ours = run(winograd_conv2d, x, weight, bias)
    assert [value.dtype for value in ours] == [torch.bfloat16] * 2 + [torch.float32] * 2
    exact = run(F.conv2d, x.double(), weight.double(), bias.double())
    for mine, expected in zip(ours, exact):
        error = (mine.double() - expected).square().mean().sqrt() / expected.std()
        assert 0 < error < 0.006


def test_inputs_stay_as_they_were(large):
    before = [value.clone() for value in large]
    winograd_conv2d(*large, padding=1)
    assert all(torch.equal(a, b) for a, b in zip(large, before))


@pytest.mark.parametrize('kernel, padding', [((5, 5), 1), ((1, 1), 0), ((3, 3), 3)])
def test_what_it_is_not_for_is_refused_in_one_line(kernel, padding):
    with pytest.raises(ValueError, match='3x3 kernels padded by at most 2'):
        winograd_conv2d(torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, *kernel), padding=padding)


class TestChoice:
    """`conv2d` takes the faster algorithm where there is one."""

    @staticmethod
    def taken(monkeypatch, *arguments, **options) -> bool:
        calls = []
        monkeypatch.setattr(winograd, 'winograd_conv2d', lambda *a, **k: calls.append(a))
        conv2d(*arguments, **options)
        return bool(calls)

    def test_many_channels_and_tiles(self, large, monkeypatch):
        assert self.taken(monkeypatch, *large, padding=1)

    def test_few_channels(self, large, monkeypatch):
        x, weight, _ = large
        assert not self.taken(monkeypatch, x[:, :48], weight[:, :48], padding=1)

    def test_few_tiles(self, large, monkeypatch):
        x, weight, _ = large
        assert not self.taken(monkeypatch, x[:, :, :16, :16], weight, padding=1)

    def test_dilation_that_leaves_tiles_half_empty(self, large, monkeypatch):
        x, weight, _ = large
        assert not self.taken(monkeypatch, x, weight, padding=12, dilation=12)

    @pytest.mark.parametrize('amx_bf16', [True, False])
    def test_bfloat16_where_there_are_no_matrix_units(self, large, amx_bf16, monkeypatch):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'amx_bf16': amx_bf16})
        assert self.taken(monkeypatch, *(value.bfloat16() for value in large),
                          padding=1) != amx_bf16
        with torch.autocast('cpu', torch.bfloat16):
            assert self.taken(monkeypatch, *large, padding=1) != amx_bf16

    @pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
    def test_other_precision(self, large, dtype, monkeypatch):
        assert not self.taken(monkeypatch, *(value.to(dtype) for value in large), padding=1)

    def test_autocast_gives_its_precision(self, large, monkeypatch):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {})
        with torch.autocast('cpu', torch.bfloat16):
            assert conv2d(*large, padding=1).dtype == torch.bfloat16

    def test_no_samples(self, large):
        x, weight, _ = large
        assert conv2d(x[:0], weight, padding=1).shape == (0, 128, 64, 72)


class TestModules:
    """The layers of a model compute the same under the same names."""

    def test_only_layers_that_gain_change(self):
        model = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1, stride=2),
            nn.Conv2d(48, 128, 3), nn.Conv2d(128, 128, 3, groups=2), nn.Conv2d(128, 128, 1),
            nn.Conv2d(128, 128, 3, padding='same'), nn.Conv2d(128, 128, 3, padding=(1, 0)),
            nn.Conv2d(128, 128, 3, padding=1, padding_mode='reflect'))
        names = list(model.state_dict())
        use_fewer_multiplications(model)
        assert [type(part) is winograd.Conv2d for part in model] == [True] + 7 * [False]
        assert list(model.state_dict()) == names

    def test_outputs_agree_also_after_a_copy(self, large):
        layer = nn.Conv2d(128, 128, 3, padding=1)
        expected = layer(large[0])
        use_fewer_multiplications(layer)
        for ours in (layer, copy.deepcopy(layer)):
            torch.testing.assert_close(ours(large[0]), expected, rtol=1e-4, atol=1e-4)

    def test_a_traced_layer_holds_the_convolution(self, large):
        layer = nn.Conv2d(128, 128, 3, padding=1)
        use_fewer_multiplications(layer)
        traced = torch.jit.trace(layer, large[0], check_trace=False)
        assert 'aten::_convolution' in str(traced.inlined_graph)


def test_what_a_prediction_left_behind_serves_training(large):
    winograd_tiles._cells_of_points.cache_clear()
    winograd_tiles._points_of_outputs.cache_clear()
    with torch.inference_mode():
        expected = winograd_conv2d(*large, padding=1)
    inputs = [value.clone().requires_grad_() for value in large]
    out = winograd_conv2d(*inputs, padding=1)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(value.grad.isfinite().all() for value in inputs)


@pytest.mark.parametrize('wanted', [0, 1], ids=['input', 'weight'])
def test_either_gradient_alone_is_what_it_is_beside_the_other(wanted):
    torch.manual_seed(2)
    inputs = [torch.randn(2, 3, 9, 14), torch.randn(5, 3, 3, 3)]
    both = [value.clone().requires_grad_() for value in inputs]
    winograd_conv2d(*both, padding=1).square().sum().backward()
    inputs[wanted].requires_grad_()
    winograd_conv2d(*inputs, padding=1).square().sum().backward()
    assert torch.equal(inputs[wanted].grad, both[wanted].grad)
