"""Computing anew what lies between convolutions."""
import torch
from torch import nn

from bevfusion_enhanced.models.recompute import keep_convolutions_only, recomputed
from bevfusion_enhanced.ops.group_norm import GroupNorm


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), GroupNorm(2, 8), nn.ReLU(inplace=True), nn.Dropout2d(0.4),
        nn.Conv2d(8, 8, 3, padding=1), GroupNorm(2, 8), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 1))


def run(function, x):
    x = x.clone().requires_grad_()
    kept = []

    def keep(value):
        kept.append((value.untyped_storage().data_ptr(), value.untyped_storage().nbytes(), value))
        return value

    torch.manual_seed(1)  # the same channels are dropped
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = function(x)
    size = sum(dict((place, size) for place, size, _ in kept).values())
    out.square().sum().backward()
    return out, x.grad, size


def test_numbers_stay_and_less_is_kept():
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    plain, lean = layers(), layers()
    out, gradient, kept = run(plain, x)
    out_lean, gradient_lean, kept_lean = run(lambda x: keep_convolutions_only(lean, x), x)
    assert torch.equal(out, out_lean) and torch.equal(gradient, gradient_lean)
    for mine, theirs in zip(lean.parameters(), plain.parameters()):
        assert torch.equal(mine.grad, theirs.grad)
    cells = 2 * 16 * 16 * 4
    assert kept - kept_lean >= 2 * 8 * cells  # the outputs of both activations


def test_no_convolution_runs_twice():
    calls = []
    model = layers()

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    with Counted():
        keep_convolutions_only(model, x).sum().backward()
    assert calls.count('aten.convolution.default') == 3
    assert calls.count('aten.relu_.default') == 4


def test_without_gradients_it_is_the_function_itself():
    function = torch.relu
    with torch.no_grad():
        assert recomputed(function) is function
