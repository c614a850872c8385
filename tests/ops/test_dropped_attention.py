"""Attention with dropout, a head at a time."""
import pytest
import torch
from torch.nn import functional as F

from bevfusion_enhanced.ops import dropped_attention as module
from bevfusion_enhanced.ops.dropped_attention import dropped_attention


@pytest.fixture(autouse=True)
def a_head_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(module, 'FEW_WEIGHTS', 0)


def inputs(*, samples=2, heads=3, queries=5, keys=40, width=4):
    torch.manual_seed(0)
    return [torch.randn(samples, heads, count, width, dtype=torch.float64, requires_grad=True)
            for count in (queries, keys, keys)]


def test_without_loss_it_is_pytorchs_with_its_gradients():
    tensors = inputs()
    ours = dropped_attention(*tensors, dropout=1e-9)
    theirs = F.scaled_dot_product_attention(*tensors)
    torch.testing.assert_close(ours, theirs)
    towards = torch.randn_like(theirs)
    for mine, expected in zip(torch.autograd.grad(ours, tensors, towards),
                              torch.autograd.grad(theirs, tensors, towards)):
        torch.testing.assert_close(mine, expected)


def test_the_mask_of_the_forward_is_that_of_the_backward():
    """With the values as unit vectors the outputs are the weights: zero where dropped."""
    query, key, _ = inputs(keys=40)
    value = torch.eye(40, dtype=torch.float64).repeat(2, 3, 1, 1).requires_grad_()
    weights = dropped_attention(query, key, value, dropout=0.5)
    plain = F.scaled_dot_product_attention(query, key, value)
    kept = weights != 0
    assert 0.4 < kept.double().mean() < 0.6
    torch.testing.assert_close(weights, 2 * plain * kept)
    towards = torch.randn_like(weights)
    ours = torch.autograd.grad(weights, (query, key, value), towards)
    theirs = torch.autograd.grad(2 * plain * kept, (query, key), towards)
    torch.testing.assert_close(ours[:2], theirs)
    # the gradient of the values is the weights, transposed, times what comes in
    torch.testing.assert_close(ours[2], (2 * plain * kept).transpose(2, 3) @ towards)


@pytest.mark.parametrize('dropout', [0.1, 0.75])
def test_as_many_are_dropped_as_asked_for_and_the_mean_stays(dropout):
    query, key, _ = inputs(samples=1, queries=50, keys=4000)
    value = torch.ones(1, 3, 4000, 1, dtype=torch.float64)
    torch.testing.assert_close(
        dropped_attention(query, key, value, dropout=dropout).mean(),
        torch.ones((), dtype=torch.float64), rtol=0.01, atol=0)
    kept = module._kept(query, key, round(dropout * module.LEVELS))
    assert abs(kept.double().mean() - (1 - dropout)) < 0.005


def test_draws_follow_the_seed_and_differ_between_heads():
    query, key, value = (torch.ones_like(x[:, :1]).expand_as(x) for x in inputs(keys=200))
    value = torch.arange(200.).double()[:, None].expand(2, 3, 200, 4)
    torch.manual_seed(3)
    first, other = (dropped_attention(query, key, value, dropout=0.3) for _ in range(2))
    torch.manual_seed(3)
    again = dropped_attention(query, key, value, dropout=0.3)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[:, 0], first[:, 1])


@pytest.mark.parametrize('dropout', [0.0, 1.0])
def test_none_or_all_dropped(dropout):
    tensors = inputs()
    torch.testing.assert_close(dropped_attention(*tensors, dropout=dropout),
                               F.scaled_dot_product_attention(*tensors, dropout_p=dropout))


def test_in_half_precision_it_computes_in_float32_and_returns_what_it_was_given():
    tensors = [x.detach().bfloat16() for x in inputs()]
    with torch.autocast('cpu', torch.bfloat16):
        ours = dropped_attention(*tensors, dropout=1e-9)
    theirs = F.scaled_dot_product_attention(*(x.float() for x in tensors))
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs.bfloat16(), rtol=0.02, atol=1e-3)
