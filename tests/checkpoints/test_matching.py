"""Which tensors fit: every one is accounted for, nothing is changed, several sources combine."""
import copy

import pytest
import torch
from torch import nn

from bevfusion_enhanced.checkpoints.matching import (
    collapse,
    combine,
    fill,
    match,
    module_of,
    require_complete,
    require_related,
)
from bevfusion_enhanced.checkpoints.state_dict import weights_of
from bevfusion_enhanced.errors import CheckpointError


def state(**shapes):
    return {key.replace('__', '.'): torch.full(shape, 1.) for key, shape in shapes.items()}


PHASE3 = state(encoders__camera__backbone__w=(4, 3), encoders__camera__backbone__b=(4,),
               fuser__0__weight=(5, 2), heads__map__a__w=(7,), heads__map__b__w=(2,))
PHASE4 = {**PHASE3, **state(task_gca__object__fc__0__weight=(128, 512),
                            task_gca__object__fc__2__weight=(512, 128))}


@pytest.mark.parametrize('key, module', [
    ('encoders.camera.backbone.stages.0.weight', 'encoders.camera.backbone'),
    ('encoders.camera.vtransform.weight', 'encoders.camera.vtransform'),
    ('decoder.neck.blocks.0.weight', 'decoder.neck'),
    ('heads.map.classifiers.0.weight', 'heads.map'),
    ('task_gca.object.fc.0.weight', 'task_gca.object'),
    ('fuser.0.weight', 'fuser'), ('pts_backbone.x.y.weight', 'pts_backbone'), ('scale', 'scale'),
])
def test_module_of(key, module):
    assert module_of(key) == module


def test_new_module_is_the_only_fresh_one():
    report = match(PHASE4, PHASE3)
    assert [s.module for s in report.fresh_modules()] == ['task_gca.object']
    assert report.fresh_modules()[0].parameters == 131072
    assert len(report.reused) == len(PHASE3)
    assert not report.unexpected and not report.mismatched and not report.complete


def test_every_tensor_of_both_sides_is_accounted_for_once():
    model = state(a__w=(2, 3), a__b=(2,), c__w=(1,))
    checkpoint = state(a__w=(3, 2), a__b=(2,), d__w=(9,))
    before = copy.deepcopy((model, checkpoint))
    report = match(model, checkpoint)
    kinds = [[r.key for r in records] for records in (
        report.reused, report.missing, report.unexpected, report.mismatched)]
    assert kinds == [['a.b'], ['c.w'], ['d.w'], ['a.w']]
    assert report.mismatched[0].shape == (2, 3)
    assert report.mismatched[0].checkpoint_shape == (3, 2)
    assert sum(s.parameters for s in report.modules()) == 9
    torch.testing.assert_close(before, (model, checkpoint))


def test_buffers_do_not_count_as_parameters():
    norm = nn.Sequential(nn.BatchNorm1d(4))
    report = match(norm.state_dict(), {}, parameters=dict(norm.named_parameters()))
    assert sum(record.parameters for record in report.missing) == 8


def test_fill_gives_the_models_own_names_and_metadata():
    source, target = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    checkpoint = {f'0.{key}': value for key, value in source.state_dict().items()}
    checkpoint['stray'] = torch.ones(1)
    model = target.state_dict()
    filled = fill(model, checkpoint, match(model, checkpoint))
    assert list(filled) == list(model) and filled._metadata is model._metadata
    target.load_state_dict(filled, strict=True)
    torch.testing.assert_close(target[0].weight, source.weight)


def test_first_source_that_holds_a_module_gives_all_of_it():
    camera = ('camera.pth', state(encoders__camera__neck__w=(1,), fuser__w=(2,)))
    lidar = ('lidar.pth', state(encoders__lidar__backbone__w=(3,), fuser__w=(4,), fuser__b=(4,)))
    combined = combine([camera, lidar])
    assert combined.weights['fuser.w'].shape == (2,) and 'fuser.b' not in combined.weights
    assert combined.module_sources == {
        'encoders.camera.neck': 'camera.pth', 'fuser': 'camera.pth',
        'encoders.lidar.backbone': 'lidar.pth'}
    assert combined.shadowed == [('fuser', 'lidar.pth')]


def test_garbage_is_refused_and_a_part_is_not():
    with pytest.raises(CheckpointError, match='0 of 7 tensors'):
        require_related(match(PHASE4, state(resnet__conv__w=(64, 3))))
    almost = {'fuser.0.weight': torch.ones(5, 2), 'other.w': torch.ones(3000, 300)}
    with pytest.raises(CheckpointError, match='does not fit this model'):
        require_related(match(PHASE4, almost))
    require_related(match(PHASE4, state(heads__map__b__w=(2,))))


def test_incomplete_is_refused_for_a_test_and_unexpected_is_not():
    with pytest.raises(CheckpointError, match=r'task_gca\.object\.\*'):
        require_complete(match(PHASE4, PHASE3))
    require_complete(match(PHASE3, PHASE4))


def test_collapse_keeps_to_whole_subtrees():
    keys = ['heads.map.aux.w', 'heads.map.aux.b', 'heads.map.a.new', 'fuser.0.w']
    assert collapse(keys, present=['heads.map.a.w']) == [
        'heads.map.aux.*', 'heads.map.a.new', 'fuser.*']


@pytest.mark.parametrize('wrap', [
    lambda s: s, lambda s: {'state_dict': s, 'meta': {}}, lambda s: {'model_state': s, 'epoch': 1},
    lambda s: {'state_dict': {f'module.{key}': value for key, value in s.items()}},
])
def test_weights_are_found_in_every_wrapping(wrap):
    report = match(PHASE3, weights_of(wrap(PHASE3)))
    assert report.complete and not report.unexpected


def test_no_weights_is_an_error():
    with pytest.raises(CheckpointError, match='a.pth holds no weights'):
        weights_of({'meta': {}, 'epoch': 3}, source='a.pth')


def test_fresh_entries_of_a_reused_tensor_count_as_fresh():
    model = state(heads__map__w=(3, 4), heads__map__b=(3,), fuser__w=(5,))
    report = match(model, model, partly_fresh={'heads.map.w': 8, 'heads.map.b': 2})
    summary = {module.module: module for module in report.modules()}
    assert summary['heads.map'].reused == (2, 5) and summary['heads.map'].fresh_parameters == 10
    assert summary['heads.map'].parameters == 15 and not summary['fuser'].partly_fresh
    assert report.partly_fresh == ('heads.map.w', 'heads.map.b') and not report.fresh
    assert [module.module for module in report.fresh_modules()] == ['heads.map']
    with pytest.raises(CheckpointError, match=r'2 of 3 tensors.*heads\.map\.w in part'):
        require_complete(report)
