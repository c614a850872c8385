"""Lean Swin blocks against MMDetection's own."""
import copy

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from mmdet.models.backbones.swin import SwinBlock

from bevfusion_enhanced.models.camera.window_attention import (
    LeanSwinBlock,
    lean_blocks,
    windows_of,
)


@pytest.fixture
def backbone() -> SwinTransformer:
    torch.manual_seed(0)
    model = SwinTransformer(embed_dims=16, depths=(2, 2), num_heads=(1, 2), strides=(4, 2),
                            window_size=7, out_indices=(0, 1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    return model


# 7 divides neither, one, or both sides of the first level; the last is smaller than a window
@pytest.mark.parametrize('size', [(64, 176), (56, 96), (56, 112), (16, 20)])
def test_equals_the_blocks_it_replaces(backbone, size):
    lean = copy.deepcopy(backbone)
    lean_blocks(lean)
    assert all(type(block) is LeanSwinBlock for stage in lean.stages for block in stage.blocks)
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        for ours, theirs in zip(lean(images), backbone(images)):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_training_runs_as_mmdetection_wrote_it(backbone):
    lean = copy.deepcopy(backbone)
    lean_blocks(lean)
    images = torch.randn(2, 3, 32, 48)
    for model in (lean, backbone):
        torch.manual_seed(1)
        model.train()
        sum(level.square().sum() for level in model(images)).backward()
    for ours, theirs in zip(lean.parameters(), backbone.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


def test_keeps_the_state_dict(backbone):
    names = list(backbone.state_dict())
    lean_blocks(backbone)
    assert list(backbone.state_dict()) == names
    assert isinstance(backbone.stages[0].blocks[0], SwinBlock)


@pytest.mark.parametrize('shift', [0, 3])
def test_every_token_has_one_place(shift):
    windows = windows_of(10, 17, window=7, shift=shift, device=torch.device('cpu'))
    assert len(windows.source) == 14 * 21
    assert windows.source[windows.place].tolist() == list(range(170))
    assert int((windows.source == 170).sum()) == 14 * 21 - 170
