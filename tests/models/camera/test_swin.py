"""Lean Swin blocks against MMDetection's own."""
import copy

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from mmdet.models.backbones.swin import SwinBlock

from bevfusion_enhanced.models.camera.swin import (
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


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('size', [(64, 176), (56, 96), (56, 112), (16, 20)])
def test_trains_as_the_blocks_it_replaces(backbone, size, with_cp):
    lean = copy.deepcopy(backbone)
    lean_blocks(lean)
    images = torch.randn(2, 3, *size)
    for model in (lean, backbone):
        for block in model.modules():
            if hasattr(block, 'with_cp'):
                block.with_cp = with_cp
        torch.manual_seed(1)  # both drop the same branches
        model.train()
        sum(level.square().mean() for level in model(images)).backward()
    for (name, ours), theirs in zip(lean.named_parameters(), backbone.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize('option', [dict(drop_rate=0.3), dict(attn_drop_rate=0.3),
                                    dict(act_cfg=dict(type='ReLU'))])
def test_what_it_is_not_for_trains_as_mmdetection_wrote_it(option, monkeypatch):
    torch.manual_seed(0)
    model = SwinTransformer(embed_dims=16, depths=(2,), num_heads=(1,), strides=(4,),
                            out_indices=(0,), **option)
    model.train()
    lean = copy.deepcopy(model)
    lean_blocks(lean)
    monkeypatch.setattr(LeanSwinBlock, '_train', None)
    outputs = []
    for each in (lean, model):
        torch.manual_seed(1)
        outputs += each(torch.ones(1, 3, 32, 32))
    assert torch.equal(*outputs)


def test_what_a_prediction_left_behind_serves_training(backbone):
    lean_blocks(backbone)
    images = torch.randn(1, 3, 52, 68)
    windows_of.cache_clear()
    with torch.inference_mode():
        predicted = backbone(images)
    levels = backbone(images)
    for ours, expected in zip(levels, predicted):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    sum(level.sum() for level in levels).backward()
    assert all(p.grad.isfinite().all() for p in backbone.stages.parameters())


def test_without_a_bias_of_queries_and_keys(backbone):
    torch.manual_seed(0)
    model = SwinTransformer(embed_dims=16, depths=(2,), num_heads=(1,), strides=(4,),
                            out_indices=(0,), qkv_bias=False)
    model.train()
    lean = copy.deepcopy(model)
    lean_blocks(lean)
    torch.manual_seed(1)
    ours, = lean(torch.ones(1, 3, 32, 40))
    torch.manual_seed(1)
    theirs, = model(torch.ones(1, 3, 32, 40))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


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
