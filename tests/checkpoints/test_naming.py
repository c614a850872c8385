"""Whose checkpoint is this, and does an image backbone of another code base give its outputs."""
import re
from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
from mmdet.models.backbones import SwinTransformer
from torch import nn
from torch.testing import assert_close

from bevfusion_enhanced.checkpoints.geometry_keys import position_index
from bevfusion_enhanced.checkpoints.naming import convert, recognise, translate
from bevfusion_enhanced.checkpoints.state_dict import unwrap
from bevfusion_enhanced.errors import CheckpointError
from bevfusion_enhanced.models.camera.backbones import TimmBackbone, forget_geometry

CAMERA, LIDAR = 'encoders.camera.', 'encoders.lidar.backbone.'
SWIN = dict(depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
SIZE = 448  # so that the last stage's 14 x 14 cells are more than one window


def names(*keys):
    return OrderedDict((key, torch.zeros(2)) for key in keys)


def sparse(*shape):
    return torch.zeros(shape)


OURS = names('fuser.0.weight', 'heads.map.classifier.0.weight', 'task_gca.object.fc.0.weight')
MMDET3D = names('pts_backbone.blocks.0.0.weight', 'fusion_layer.0.weight',
                'bbox_head.shared_conv.weight')


@pytest.mark.parametrize('weights, origin', [
    (OURS, 'native'),
    ({**OURS, LIDAR + 'a.weight': sparse(16, 3, 3, 3, 16)}, 'native'),
    ({**OURS, LIDAR + 'a.weight': sparse(3, 3, 3, 16, 16)}, 'mit'),
    (names(CAMERA + 'vtransform.dx', CAMERA + 'neck.a.weight'), 'mit'),
    (MMDET3D, 'mmdet3d'),
    (names('pts_middle_encoder.encoder_layers.encoder_layer1.0.conv1.weight'), 'mmdet3d'),
    (names('backbone.stages.0.blocks.0.attn.w_msa.qkv.weight', 'neck.a', 'roi_head.b'), 'mmdet'),
    (names('stages.0.blocks.0.attn.w_msa.qkv.weight'), 'mmdet'),
    (names('layers.0.blocks.0.attn.relative_position_bias_table',
           'layers.0.downsample.reduction.weight', 'layers.1.downsample.reduction.weight'), 'swin'),
    (names('backbone.layers.0.blocks.0.attn.relative_position_bias_table'), 'swin'),
    (names('layers.0.blocks.0.attn.relative_position_bias_table',
           'layers.1.downsample.reduction.weight', 'head.fc.weight'), 'timm'),
    (names('conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'), 'unknown'),
    (names('pts_backbone.blocks.0.0.weight', 'pts_neck.a', 'pts_bbox_head.b'), 'unknown'),
])
def test_origins(weights, origin):
    assert recognise(weights).name == recognise({'state_dict': weights, 'meta': {}}).name == origin


def test_our_own_record_settles_it():
    weights = names(CAMERA + 'vtransform.dx')
    assert recognise({'state_dict': weights, 'meta': {'bevfusion_enhanced': {}}}).name == 'native'


@pytest.mark.parametrize('shape', [(128, 3, 1, 1, 128), (3, 1, 1, 128, 128)])
def test_a_detector_with_other_axes_is_left_alone(shape):
    """Its sparse encoder indexes voxels z, y, x: the shapes of its inner layers would all fit."""
    inner = 'pts_middle_encoder.encoder_layers.encoder_layer1.0.conv1.weight'
    weights = {inner: sparse(16, 3, 3, 3, 16),
               'pts_middle_encoder.conv_out.0.weight': sparse(*shape)}
    translation = translate(weights, model={LIDAR + 'x': sparse(16, 3, 3, 3, 16)}, geometry={})
    assert translation.origin.name == 'unknown' and 'z, y, x' in translation.origin.note
    assert list(translation.weights) == list(weights)


def test_unknown_names_are_left_as_they_are():
    weights = names('a.weight', 'layer1.0.b')
    translation = translate(weights, model=OURS, geometry={})
    assert translation.weights == weights and translation.notes == () == translation.meaning
    assert 'taken as they are' in translation.origin.note


# What was around the weights.

@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', 'module.module.', '_orig_mod.',
                                    'model.module.', 'module._orig_mod.model.'])
@pytest.mark.parametrize('entry', [None, 'state_dict', 'model', 'model_state', 'ema_state_dict',
                                   'state_dict_ema', 'model_ema'])
@pytest.mark.parametrize('weights', [OURS, MMDET3D], ids=['native', 'mmdet3d'])
def test_prefixes_and_entries(prefix, entry, weights):
    wrapped = {prefix + key: value for key, value in weights.items()}
    checkpoint = {entry: wrapped, 'meta': {}} if entry else wrapped
    plain, found = (translate(c, model={}, geometry={}) for c in (weights, checkpoint))
    assert found.weights == plain.weights and found.origin.name == plain.origin.name
    parts = [f'{part}.' for part in prefix.split('.') if part]
    assert list(found.origin.wrappers) == ([entry] if entry else []) + parts


def test_what_lightning_saves_beside_the_model_stays_apart():
    weights = {**{'model.' + key: value for key, value in OURS.items()},
               'criterion.weight': torch.ones(2)}
    translation = translate({'state_dict': weights, 'pytorch-lightning_version': '2.0'}, model={},
                            geometry={})
    assert list(translation.weights) == [*OURS, 'criterion.weight']
    assert translation.origin.name == 'native'


def test_a_prefix_is_kept_where_names_would_meet():
    weights = names('model.a', 'model.b', 'a')
    assert list(unwrap(weights).weights) == list(weights)


RAW = {key: value + 1 for key, value in OURS.items()}


@pytest.mark.parametrize('checkpoint, source', [
    ({'state_dict': OURS, 'ema_state_dict': {'steps': torch.tensor(7), **{
        f'module.{k}': v for k, v in RAW.items()}}}, 'from state_dict, where MMEngine puts them'),
    ({'state_dict': RAW, 'state_dict_ema': OURS}, 'from state_dict_ema; the raw weights under'),
    ({'model': RAW, 'model_ema': OURS}, 'from model_ema; the raw weights under model are not used'),
    ({'state_dict': RAW, 'message_hub': {'runtime_info': {'iter': 3, 'averaged': {
        'n_averaged': torch.tensor(7), **{f'module.{k}': v for k, v in OURS.items()}}}}},
     'from message_hub.runtime_info.averaged'),
    ({'ema_state_dict': {'steps': torch.tensor(7), **{f'module.{k}': v for k, v in OURS.items()}}},
     'from ema_state_dict'),
    ({'n_averaged': torch.tensor(7), **{f'module.{k}': v for k, v in OURS.items()}},
     'those of an averaged model'),
])
def test_averaged_weights_are_preferred_and_named(checkpoint, source):
    translation = translate(checkpoint, model=OURS, geometry={})
    assert translation.weights.keys() == OURS.keys()
    assert all(torch.equal(translation.weights[k], v) for k, v in OURS.items())
    assert len(translation.notes) == 1 and source in translation.notes[0]


def test_other_values_in_a_message_hub_are_no_weights():
    hub = {'runtime_info': {'window': {'loss': torch.tensor(1.0)}, 'n_averaged': 3}}
    translation = translate({'state_dict': OURS, 'message_hub': hub}, model=OURS, geometry={})
    assert translation.weights == OURS and not translation.notes


def test_no_weights_at_all():
    with pytest.raises(CheckpointError, match='a.pth holds no weights'):
        translate({'state_dict': {}, 'meta': {}}, model=OURS, geometry={}, source='a.pth')


# Image backbones.

class CameraModel(nn.Module):
    """Nothing but an image backbone, at its place in the whole model."""

    def __init__(self, backbone):
        super().__init__()
        self.encoders = nn.ModuleDict({'camera': nn.ModuleDict({'backbone': backbone})})
        forget_geometry(self)  # as the camera encoder does

    def forward(self, x):
        return self.encoders['camera']['backbone'](x)


@pytest.fixture(scope='module')
def whole_timm():
    """The state dict of a small timm Swin Transformer with its classifier, and its levels."""
    torch.manual_seed(0)
    kwargs = dict(embed_dim=12, img_size=SIZE, **SWIN)
    model = timm.create_model('swin_tiny_patch4_window7_224', num_classes=5, **kwargs).eval()
    for name, parameter in model.named_parameters():
        if 'norm' in name:  # so that the order of merged channels matters
            nn.init.normal_(parameter, mean=1.0, std=0.3)
        elif name.endswith('bias_table'):
            nn.init.normal_(parameter)
    state = model.state_dict()
    return state, image_levels(model, state)


def image():
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def image_levels(model, state):
    """What each stage gives, before the next one merges patches: (1, C, h, w)."""
    x, levels = model.patch_embed(image()), []
    for stage in model.layers:
        x = stage(x)
        levels.append(x.permute(0, 3, 1, 2))
    return levels


def as_official(state):
    """timm's names as Swin's authors publish them: merging closes a stage; masks are saved."""
    official = OrderedDict()
    for name, value in state.items():
        name = re.sub(r'layers\.(\d)\.downsample',
                      lambda m: f'layers.{int(m[1]) - 1}.downsample', name)
        official[name.replace('head.fc.', 'head.')] = value
    for stage, depth in enumerate(SWIN['depths']):
        for block in range(depth):
            prefix = f'layers.{stage}.blocks.{block}.'
            official[prefix + 'attn.relative_position_index'] = position_index(7)
        official[prefix + 'attn_mask'] = torch.zeros(1, 49, 49)
    return official


def mmdet_model(**changes):
    torch.manual_seed(1)
    arguments = dict(embed_dims=12, out_indices=(1, 2, 3), **SWIN)
    return CameraModel(SwinTransformer(**{**arguments, **changes})).eval()


@pytest.mark.parametrize('rename, origin', [(OrderedDict, 'timm'), (as_official, 'swin')])
def test_timm_and_official_swin_give_their_outputs_in_mmdet_s(rename, origin, whole_timm):
    state, levels = whole_timm
    model = mmdet_model()
    translation = translate({'model': rename(state)}, model=model.state_dict(),
                            geometry={'window_size': 7})
    assert translation.origin.name == origin and not translation.meaning
    missing, unexpected = model.load_state_dict(translation.weights, strict=False)
    assert not unexpected  # and the norms of the levels are ours alone, so they are fresh
    assert set(missing) == {f'{CAMERA}backbone.norm{i}.{p}' for i in (1, 2, 3)
                            for p in ('weight', 'bias')}
    assert 'left out: the classifier (norm.*, head.*; 4 tensors)' in translation.notes
    with torch.no_grad():
        for out, level in zip(model(image()), levels[1:], strict=True):
            expected = F.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2])
            assert_close(out, expected.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('rename, origin', [(OrderedDict, 'timm'), (as_official, 'swin')])
def test_timm_and_official_swin_give_their_outputs_in_timm_s(rename, origin, whole_timm):
    state, levels = whole_timm
    backbone = TimmBackbone(model_name='swin_tiny_patch4_window7_224', out_indices=(1, 2, 3),
                            model_kwargs=dict(embed_dim=12, img_size=SIZE, **SWIN))
    model = CameraModel(backbone).eval()
    translation = translate(rename(state), model=model.state_dict(), geometry={})
    assert translation.origin.name == origin
    model.load_state_dict(translation.weights, strict=True)
    with torch.no_grad():
        for out, level in zip(model(image()), levels[1:], strict=True):
            assert_close(out, level, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name, levels', [('resnet18', (1, 2, 3, 4)),
                                          ('convnext_atto', (0, 1, 2, 3))])
def test_any_network_of_timm(name, levels):
    whole = timm.create_model(name, num_classes=5)
    model = CameraModel(TimmBackbone(model_name=name, out_indices=levels))
    state = model.state_dict()
    translation = translate(whole.state_dict(), model=state, geometry={})
    assert translation.origin.name == recognise(whole.state_dict(), model=state).name == 'timm'
    assert translation.weights.keys() == state.keys()
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in whole.state_dict().items()
               if k in translation.weights)
    model.load_state_dict(translation.weights, strict=True)
    assert len(translation.notes) == 1 and 'left out: the classifier' in translation.notes[0]
    assert recognise(whole.state_dict(), model=mmdet_model().state_dict()).name == 'unknown'


def test_a_level_that_the_model_does_not_use_is_unexpected_under_our_name():
    model = CameraModel(TimmBackbone(model_name='resnet18', out_indices=(1, 2, 3)))
    state = model.state_dict()
    translation = translate(timm.create_model('resnet18').state_dict(), model=state, geometry={})
    extra = translation.weights.keys() - state.keys()
    assert extra and all(k.startswith(f'{CAMERA}backbone.model.layer4.') for k in extra)


def test_an_image_detector_gives_its_backbone():
    """As swint-nuimages-pretrained.pth: a detector of MMDetection over all four levels."""
    model = mmdet_model()
    donor = SwinTransformer(embed_dims=12, out_indices=(0, 1, 2, 3), **SWIN)
    weights = {f'backbone.{k}': v for k, v in donor.state_dict().items()}
    weights.update(names('neck.lateral_convs.0.conv.weight', 'rpn_head.rpn_conv.weight',
                         'roi_head.bbox_head.fc_cls.weight', 'roi_head.mask_head.0.weight'))
    translation = translate({'meta': {}, 'state_dict': weights}, model=model.state_dict(),
                            geometry={'window_size': 7})
    assert translation.origin.name == 'mmdet' and not translation.meaning
    model.load_state_dict(translation.weights, strict=True)
    for name, value in model.encoders['camera']['backbone'].state_dict().items():
        assert torch.equal(value, donor.state_dict()[name]), name
    assert 'left out: what only an image detector has (neck.*, rpn_head.*, roi_head.*; ' \
        '4 tensors)' in translation.notes
    assert any('norms of levels that this model does not use' in n for n in translation.notes)


# MMDetection3D's names, and other numbers of layers.

LAYER = {
    'self_attn.attn.in_proj_weight': 'self_attn.in_proj_weight',
    'cross_attn.attn.out_proj.bias': 'multihead_attn.out_proj.bias',
    'ffn.layers.0.0.weight': 'linear1.weight', 'ffn.layers.1.bias': 'linear2.bias',
    'norms.2.weight': 'norm3.weight', 'self_posembed.position_embedding_head.0.bias':
    'self_posembed.position_embedding_head.0.bias'}


def test_every_decoder_layer_is_renamed_there_and_back():
    theirs = names('bbox_head.heatmap_head.0.conv.weight', *(
        f'bbox_head.decoder.{i}.{name}' for i in (0, 11) for name in LAYER))
    translation = translate(theirs, model={}, geometry={})
    assert list(translation.weights) == ['heads.object.heatmap_head.0.conv.weight', *(
        f'heads.object.decoder.{i}.{name}' for i in (0, 11) for name in LAYER.values())]
    assert list(convert(translation.weights, to='mmdet3d', geometry={})) == list(theirs)


def test_names_of_mmdetection3d_that_ours_lack_stay():
    weights = {**MMDET3D, **names('seg_head.a', 'pts_voxel_encoder.b')}
    found = translate(weights, model={}, geometry={}).weights
    assert {'seg_head.a', 'pts_voxel_encoder.b', 'decoder.backbone.blocks.0.0.weight'} <= set(found)
