import pytest
import torch
from mmdet3d.registry import MODELS
from torch.testing import assert_close

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.fusers import AddFuser, ConvFuser


def maps(*channels, size=(6, 5)):
    torch.manual_seed(0)
    return [torch.randn(2, c, *size) for c in channels]


@pytest.mark.parametrize('name', ['ConvFuser', 'AddFuser'])
def test_builds_and_fuses(name):
    fuser = MODELS.build(dict(type=name, in_channels=[4, 7], out_channels=3))
    assert fuser(maps(4, 7)).shape == (2, 3, 6, 5)


def test_names_of_the_state_dict():
    conv, add = (kind(in_channels=[4, 7], out_channels=3) for kind in (ConvFuser, AddFuser))
    assert {k.rsplit('.', 1)[0] for k in conv.state_dict()} == {'0', '1'}
    assert {k.rsplit('.', 1)[0] for k in add.state_dict()} == {
        'transforms.0.0', 'transforms.0.1', 'transforms.1.0', 'transforms.1.1'}


def test_conv_fuser_adds_what_each_map_gives():
    fuser = ConvFuser(in_channels=[4, 7], out_channels=3)[0]  # the convolution is linear
    a, b = maps(4, 7)
    parts = [torch.cat([a, 0 * b], 1), torch.cat([0 * a, b], 1)]
    assert_close(fuser(parts[0]) + fuser(parts[1]), fuser(torch.cat([a, b], 1)))


def test_add_fuser_is_the_mean_and_drops_only_in_training():
    fuser = AddFuser(in_channels=[4, 4], out_channels=3, dropout=0.999).eval()
    inputs = maps(4, 4)
    each = [t(x) for t, x in zip(fuser.transforms, inputs, strict=True)]
    assert_close(fuser(inputs), (each[0] + each[1]) / 2)
    for transform in fuser.transforms:
        transform[1].momentum = 0.0
    fuser.train()
    each = [t(x) for t, x in zip(fuser.transforms, inputs, strict=True)]
    fused = fuser(inputs)
    assert any(torch.allclose(fused, one) for one in each)


@pytest.mark.parametrize('fuser', [ConvFuser, AddFuser])
def test_refuses_maps_it_was_not_made_for(fuser):
    fuser = fuser(in_channels=[4, 7], out_channels=3)
    with pytest.raises(ConfigError, match=r'expects maps of \[4, 7\].*give \[7, 4\]'):
        fuser(maps(7, 4))
    with pytest.raises(ConfigError, match='expects maps'):
        fuser(maps(4))
    with pytest.raises(ConfigError, match='differ in size'):
        fuser([maps(4)[0], maps(7, size=(3, 3))[0]])


def test_dropout_out_of_range():
    with pytest.raises(ConfigError, match='dropout'):
        AddFuser(in_channels=[4], out_channels=3, dropout=1.0)
