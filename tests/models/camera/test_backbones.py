import pytest
import torch
from mmdet3d.registry import MODELS
from torch import nn

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.camera.backbones import TimmBackbone, forget_geometry


@pytest.mark.parametrize('name, out_indices, sizes', [
    ('swin_tiny_patch4_window7_224', (1, 2, 3), [(8, 22), (4, 11), (2, 6)]),
    ('resnet18', (2, 3, 4), [(8, 22), (4, 11), (2, 6)]),
    ('convnext_tiny', (1, 2, 3), [(8, 22), (4, 11), (2, 5)]),
])
def test_levels(name, out_indices, sizes):
    backbone = MODELS.build(dict(type='TimmBackbone', model_name=name, out_indices=out_indices,
                                 pretrained=False)).eval()
    assert backbone.strides == [8, 16, 32]
    backbone.init_weights()  # no network: nothing is pretrained
    with torch.no_grad():
        levels = backbone(torch.zeros(2, 3, 64, 176))
    assert isinstance(levels, tuple)
    expected = [(2, c, *size) for c, size in zip(backbone.out_channels, sizes, strict=True)]
    assert [tuple(level.shape) for level in levels] == expected


def test_swin_depends_on_where_not_only_on_what():
    """NHWC read as NCHW would have the right number of elements and the wrong places."""
    backbone = TimmBackbone(model_name='swin_tiny_patch4_window7_224', out_indices=(1,)).eval()
    image = torch.zeros(1, 3, 64, 176)
    lit = image.clone()
    lit[..., :56, :56] = 1.0  # a corner of the image changes that corner of the map most
    with torch.no_grad():
        change = (backbone(lit)[0] - backbone(image)[0]).abs().sum(1)[0]         # (8, 22)
    assert change[:7, :7].mean() > 10 * change[:, 14:].mean()


def test_drop_path_reaches_the_model():
    backbone = TimmBackbone(model_name='convnext_tiny', out_indices=(3,), drop_path_rate=0.3)
    rates = [m.drop_prob for m in backbone.modules() if hasattr(m, 'drop_prob')]
    assert max(rates) > 0.1


@pytest.mark.parametrize('changes, message', [
    (dict(model_name='resnet_no_such'), 'timm has no model'),
    (dict(out_indices=(7,)), 'out_indices'),
])
def test_bad_arguments(changes, message):
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(**{**dict(model_name='resnet18', out_indices=(1,)), **changes})


def test_forget_geometry_leaves_weights_alone():
    module = nn.Sequential(nn.BatchNorm2d(2))
    module[0].register_buffer('relative_position_index', torch.arange(3))
    before = set(module.state_dict())
    forget_geometry(module)
    assert before - set(module.state_dict()) == {'0.relative_position_index'}
    assert module[0].relative_position_index.tolist() == [0, 1, 2]
