"""Damage to weights shows; running statistics are put back."""
import math

import pytest
import torch
from torch import nn

from bevfusion_enhanced.monitoring.weights import BufferGuard, statistics_of, weight_changes


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def test_statistics():
    network = model()
    found = statistics_of(network)
    weight = network[0].weight.detach()
    assert found['0.weight'] == pytest.approx(
        [float(weight.square().mean().sqrt()), float(weight.abs().max())], rel=1e-5)
    assert '1.num_batches_tracked' not in found and '1.running_var' in found


def damaged(change):
    network = model()
    before = statistics_of(network)
    with torch.no_grad():
        change(network)
    return [(c.name, c.kind) for c in weight_changes(before, statistics_of(network))]


@pytest.mark.parametrize('change, found', [
    (lambda m: m[0].weight[0, 0].fill_(math.nan), [('0.weight', 'not finite')]),
    (lambda m: m[1].running_mean[3].fill_(math.inf), [('1.running_mean', 'not finite')]),
    (lambda m: m[2].weight.zero_(), [('2.weight', 'zeroed')]),
    (lambda m: m[2].weight.mul_(20), [('2.weight', 'jumped')]),
    (lambda m: m[2].weight.div_(20), [('2.weight', 'jumped')]),
    (lambda m: m[2].weight.mul_(1.5), []),
    (lambda m: m[1].running_var.mul_(50), []),
    (lambda m: m[1].bias.fill_(1.0), []),  # from zero
])
def test_changes(change, found):
    assert damaged(change) == found


def test_the_same_weights_must_be_the_same():
    network = model()
    before = statistics_of(network)
    with torch.no_grad():
        network[0].weight.mul_(1.01)
    now = statistics_of(network)
    assert not weight_changes(before, now)
    assert [str(c).split(':')[0] for c in weight_changes(before, now, same=True)] == [
        '0.weight differs']
    assert not weight_changes(now, now, same=True)


def test_poisoned_running_statistics_are_put_back():
    network = model()
    guard = BufferGuard(network)
    network(torch.randn(16, 4))
    guard.keep()
    good = network[1].running_mean.clone()
    network(torch.full((4, 4), math.nan))
    assert not guard.finite()
    assert guard.restore() == ['1.running_mean', '1.running_var']
    assert torch.equal(network[1].running_mean, good) and guard.finite()
    assert guard.restore() == []


def test_a_model_without_norms():
    guard = BufferGuard(nn.Linear(2, 2))
    guard.keep()
    assert guard.finite() and guard.restore() == []
