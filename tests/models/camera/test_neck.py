import pytest
import torch
from mmdet3d.registry import MODELS

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.camera.neck import GeneralizedLSSFPN


def levels(channels=(6, 10, 14), sizes=((8, 22), (4, 11), (2, 6))):
    torch.manual_seed(0)
    return [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]


def test_merges_levels_of_odd_sizes():
    neck = MODELS.build(dict(
        type='GeneralizedLSSFPN', in_channels=[6, 10, 14], out_channels=8, start_level=0,
        num_outs=3, norm_cfg=dict(type='BN2d', requires_grad=True),
        act_cfg=dict(type='ReLU', inplace=True),
        upsample_cfg=dict(mode='bilinear', align_corners=False)))
    outs = neck(levels())
    assert [tuple(o.shape) for o in outs] == [(2, 8, 8, 22), (2, 8, 4, 11)]


def test_names_and_shapes_of_the_weights():
    neck = GeneralizedLSSFPN(in_channels=[6, 10, 14], out_channels=8)
    shapes = {k: tuple(v.shape) for k, v in neck.state_dict().items() if v.dim() == 4}
    assert shapes == {
        'lateral_convs.0.conv.weight': (8, 14, 1, 1), 'lateral_convs.1.conv.weight': (8, 24, 1, 1),
        'fpn_convs.0.conv.weight': (8, 8, 3, 3), 'fpn_convs.1.conv.weight': (8, 8, 3, 3)}


def test_the_coarsest_level_reaches_the_finest_output():
    neck = GeneralizedLSSFPN(in_channels=[6, 10, 14], out_channels=8).eval()
    inputs = levels()
    inputs[2].requires_grad_()
    neck(inputs)[0].sum().backward()
    assert inputs[2].grad.abs().sum() > 0


def test_inputs_are_not_modified():
    neck, inputs = GeneralizedLSSFPN(in_channels=[6, 10, 14], out_channels=8), levels()
    kept = [x.clone() for x in inputs]
    neck(inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_start_level_skips_the_finest():
    neck = GeneralizedLSSFPN(in_channels=[6, 10, 14], out_channels=8, start_level=1)
    assert [tuple(o.shape) for o in neck(levels())] == [(2, 8, 4, 11)]


def test_mismatches_are_named():
    with pytest.raises(ConfigError, match='at least two levels'):
        GeneralizedLSSFPN(in_channels=[6], out_channels=8)
    with pytest.raises(ConfigError, match='expects 3 levels.*gives 2'):
        GeneralizedLSSFPN(in_channels=[6, 10, 14], out_channels=8)(levels()[:2])
