"""Losses against their formulas, torchvision's, and what they are meant to do."""
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from bevfusion_enhanced.models.losses import dice_loss, sigmoid_cross_entropy, sigmoid_focal_loss


@pytest.fixture()
def maps():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 9, 7, generator=generator)
    return logits, (torch.rand(2, 4, 9, 7, generator=generator) < 0.3).to(torch.uint8)


@pytest.mark.parametrize('alpha', [-1, 0.25, 0.6])
@pytest.mark.parametrize('gamma', [0.0, 2.0])
def test_focal_is_torchvisions(maps, alpha, gamma):
    logits, target = maps
    expected = torchvision_focal_loss(logits, target.float(), alpha, gamma, reduction='mean')
    loss = sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(loss, expected)


def test_focal_without_focus_is_cross_entropy(maps):
    logits, target = maps
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, alpha=-1, gamma=0.0),
                               sigmoid_cross_entropy(logits, target))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_and_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([[-300.0, 300.0], [300.0, -300.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[1, 0], [1, 0]])
    loss = (sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0)
            + sigmoid_cross_entropy(logits, target) + dice_loss(logits, target))
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    assert logits.grad.isfinite().all()


def test_dice_of_right_wrong_and_empty():
    truth = torch.zeros(1, 20, 20)
    truth[:, 5:15, 5:15] = 1
    sure = 40 * (2 * truth - 1)
    assert dice_loss(sure, truth).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-sure, truth).item() > 0.99
    nothing = torch.zeros_like(truth)
    assert dice_loss(torch.full_like(truth, -40), nothing).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(sure, nothing).item() > 0.9


def test_dice_counts_each_map_alone_and_equally_whatever_its_size(maps):
    logits, target = maps
    loss = dice_loss(logits, target)
    assert loss.shape == (2, 4)
    torch.testing.assert_close(loss[1, 2], dice_loss(logits[1, 2], target[1, 2]))
    # half of a small region missed costs what half of a large region missed does
    missed = []
    for size in (20, 80):
        truth = torch.zeros(100, 100)
        truth[:size, :size] = 1
        found = truth.clone()
        found[:size // 2] = 0
        missed.append(dice_loss(40 * (2 * found - 1), truth))
    torch.testing.assert_close(*missed, rtol=0, atol=2e-3)
