"""A whole checkpoint in another code base's form, there and back; and the average as a file."""
import json
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config

from bevfusion_enhanced import __version__
from bevfusion_enhanced.checkpoints.conversion import (
    average_checkpoints,
    convert_checkpoint,
    native_fingerprint,
)
from bevfusion_enhanced.checkpoints.explain import explain_change
from bevfusion_enhanced.checkpoints.fingerprint import META_KEY, fingerprint_of, make_fingerprint
from bevfusion_enhanced.checkpoints.geometry import geometry_of
from bevfusion_enhanced.checkpoints.geometry_keys import add_geometry, has_geometry
from bevfusion_enhanced.checkpoints.naming import recognise
from bevfusion_enhanced.checkpoints.source_classes import parse_source_classes
from bevfusion_enhanced.checkpoints.storage import read_checkpoint, write_checkpoint
from bevfusion_enhanced.errors import CheckpointError, ConfigError

GEOMETRY = {'image_size': [32, 64], 'feature_size': [4, 8], 'xbound': [-6.4, 6.4, 0.8],
            'ybound': [-6.4, 6.4, 0.8], 'zbound': [-10.0, 10.0, 20.0], 'dbound': [1.0, 9.0, 1.0],
            'downsample': 2, 'voxel_size': [0.2, 0.2, 0.2]}
VTRANSFORM = 'encoders.camera.vtransform.'
TABLE = ('encoders.camera.backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table')


@pytest.fixture
def ours():
    make = torch.Generator().manual_seed(0)
    state = OrderedDict((name, torch.randn(shape, generator=make)) for name, shape in [
        (TABLE, (49, 3)), (VTRANSFORM + 'depthnet.weight', (16, 8, 1, 1)),
        ('encoders.lidar.backbone.conv_input.0.weight', (16, 3, 3, 3, 5)),
        ('encoders.lidar.backbone.encoder_layers.encoder_layer1.0.conv1.weight',
         (16, 3, 3, 3, 16)), ('fuser.0.weight', (8, 4, 3, 3)),
        ('decoder.backbone.blocks.0.0.weight', (8, 8, 3, 3)),
        ('heads.object.shared_conv.weight', (8, 8, 3, 3)),
        ('heads.map.classifier.0.weight', (8, 8, 3, 3))])
    meta = {'epoch': 2, 'iter': 10, 'cfg': 'x = 1', META_KEY: make_fingerprint(
        state, version=__version__, class_lists={'classes': ['car', 'bus']}, config_text='x = 1',
        geometry=GEOMETRY)}
    return {'meta': meta, 'state_dict': state, 'optimizer': {}, 'message_hub': {'a': 1}}


def through_a_file(checkpoint, path):
    write_checkpoint(checkpoint, path)
    return read_checkpoint(path, mmap=True)


@pytest.mark.parametrize('to', ['mit', 'mmdet3d', 'native'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_there_and_back_is_the_same_bit_for_bit(ours, tmp_path, to, suffix):
    out = convert_checkpoint(ours, to=to, geometry={}, source='a.pth')
    assert 'left out: optimizer, message_hub' in out.notes
    there = through_a_file(out.checkpoint, tmp_path / f'there{suffix}')
    assert recognise(there).name == to
    back = convert_checkpoint(there, to='native', geometry={}, source='there').checkpoint
    assert set(back['state_dict']) == set(ours['state_dict'])
    for name, value in ours['state_dict'].items():
        assert torch.equal(back['state_dict'][name], value), name
    assert back['meta']['epoch'] == 2 and fingerprint_of(back)['classes'] == ['car', 'bus']
    again = convert_checkpoint(back, to=to, geometry={}, source='back').checkpoint
    for name, value in there['state_dict'].items():
        assert torch.equal(again['state_dict'][name], value), name


@pytest.mark.needs_shared
def test_a_full_size_checkpoint_says_its_geometry_by_itself(shared, repo):
    shapes = json.loads((shared / 'parity' / 'mit_det_seg_full_keys.json').read_text())
    config = Config.fromfile(repo / 'configs' / 'phase1_baseline.py', import_custom_modules=False)
    learnt = OrderedDict((name, torch.randn(shape)) for name, shape in shapes.items()
                         if not has_geometry([name]))
    original = add_geometry(learnt, geometry_of(config))
    assert {name: list(value.shape) for name, value in original.items()} == shapes
    ours = convert_checkpoint({'state_dict': original}, to='native', geometry={}, source='a')
    back = convert_checkpoint(ours.checkpoint, to='mit', geometry={}, source='b').checkpoint
    assert set(back['state_dict']) == set(original)
    assert all(torch.equal(back['state_dict'][name], value) for name, value in original.items())


def test_geometry_goes_into_the_weights_and_comes_back_as_metadata(ours, tmp_path):
    there = convert_checkpoint(ours, to='mit', geometry={}, source='a').checkpoint
    assert there['state_dict'][VTRANSFORM + 'frustum'].shape == (8, 4, 8, 3)
    assert META_KEY not in there['meta']
    back = convert_checkpoint(there, to='native', geometry={}, source='a').checkpoint
    assert not any(name.endswith(('frustum', '.dx')) for name in back['state_dict'])
    known = fingerprint_of(back)['geometry']
    assert known['xbound'] == [-6.4, 6.4, 0.8] and known['dbound'] == [1.0, 9.0, 1.0]
    assert known['image_size'] == [32, 64]


def test_a_configs_geometry_counts_and_the_difference_is_told(ours):
    there = convert_checkpoint(ours, to='mit', geometry={}, source='a').checkpoint
    other = convert_checkpoint(there, to='native', source='a',
                               geometry={**GEOMETRY, 'xbound': [-3.2, 3.2, 0.4]})
    assert any('differs in meaning' in note and 'xbound' in note for note in other.notes)
    assert fingerprint_of(other.checkpoint)['geometry']['xbound'] == [-3.2, 3.2, 0.4]


def test_geometry_that_nobody_knows_is_asked_for(ours):
    with pytest.raises(CheckpointError, match='give a config with .*xbound'):
        convert_checkpoint(ours['state_dict'], to='mit', geometry={}, source='a')


def test_other_models_and_broken_weights_are_refused(ours):
    bert = {'bert.encoder.layer.0.attention.weight': torch.ones(2, 2)}
    with pytest.raises(CheckpointError, match='a.pth is of a language model, not of a BEVFusion'):
        convert_checkpoint(bert, to='native', geometry={}, source='a.pth')
    with pytest.raises(CheckpointError, match='of unknown origin'):
        convert_checkpoint({'q.w': torch.ones(1)}, to='mit', geometry={}, source='a.pth')
    ours['state_dict']['fuser.0.weight'][0] = float('nan')
    with pytest.raises(CheckpointError, match=r'NaN or Inf \(36 in fuser'):
        convert_checkpoint(ours, to='native', geometry={}, source='a.pth')


def test_a_custom_model_of_ours_can_change_its_format(tmp_path):
    state = {'q.w': torch.ones(3)}
    checkpoint = {'state_dict': state, 'meta': {META_KEY: make_fingerprint(
        state, version=__version__, class_lists={})}}
    out = convert_checkpoint(checkpoint, to='native', geometry={}, source='a').checkpoint
    back = through_a_file(out, tmp_path / 'b.safetensors')
    assert torch.equal(back['state_dict']['q.w'], state['q.w'])
    assert fingerprint_of(back)['architecture'] == fingerprint_of(checkpoint)['architecture']


def test_a_foreign_checkpoint_is_compared_under_our_names(ours):
    there = convert_checkpoint(ours, to='mmdet3d', geometry={}, source='a').checkpoint
    assert explain_change(native_fingerprint(there, source='t'),
                          {**fingerprint_of(ours), 'config': ''}) == ()
    record = fingerprint_of(ours)
    record['geometry'] = {**GEOMETRY, 'ybound': [0.0, 12.8, 0.8]}
    changes = explain_change(native_fingerprint(there, source='t'), {**record, 'config': ''})
    assert [(c.kind, c.key) for c in changes] == [
        ('meaning', 'model.encoders.camera.vtransform.ybound')]


def test_the_average_keeps_metadata_and_the_versions_of_modules(ours, tmp_path):
    ours['state_dict']._metadata = {'': {'version': 1}, 'fuser': {'version': 2}}
    other = {'meta': ours['meta'], 'state_dict': OrderedDict(
        (name, value + 1) for name, value in ours['state_dict'].items())}
    mean = average_checkpoints([other, ours], sources=['b.pth', 'a.pth'])
    assert mean.checkpoint['state_dict']._metadata == ours['state_dict']._metadata
    assert torch.allclose(mean.checkpoint['state_dict']['fuser.0.weight'],
                          ours['state_dict']['fuser.0.weight'] + 0.5)
    back = through_a_file(mean.checkpoint, tmp_path / 'mean.pth')
    assert back['meta']['averaged_from'] == ['b.pth', 'a.pth'] and 'optimizer' not in back
    assert explain_change(fingerprint_of(back), fingerprint_of(ours)) == ()


def test_class_lists_of_a_command_line():
    assert parse_source_classes(['classes=car, bus', 'map_classes=divider']) == {
        'classes': ['car', 'bus'], 'map_classes': ['divider']}
    for wrong in ('car,bus', 'labels=car', 'classes=', 'classes=car,,bus', 'classes=car,car'):
        with pytest.raises(ConfigError, match='--source-classes'):
            parse_source_classes([wrong])
