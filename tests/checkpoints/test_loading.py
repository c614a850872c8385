"""From files to a state dict: each tensor's source, classes by name, nothing broken let in."""
import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from bevfusion_enhanced.checkpoints import loading
from bevfusion_enhanced.checkpoints.fingerprint import META_KEY, make_fingerprint
from bevfusion_enhanced.checkpoints.finite import count_not_finite
from bevfusion_enhanced.checkpoints.loading import LoadSource, parse_sources, plan_load
from bevfusion_enhanced.checkpoints.matching import module_of, require_complete, require_related
from bevfusion_enhanced.checkpoints.storage import read_checkpoint
from bevfusion_enhanced.errors import CheckpointError, ConfigError

CLASSES = ['road', 'walkway', 'divider']
SHAPES = {
    'encoders.camera.backbone.w': (4, 3), 'encoders.camera.neck.w': (3, 3),
    'encoders.lidar.backbone.w': (5,), 'fuser.0.weight': (6, 2), 'decoder.neck.w': (2, 7),
    'heads.map.classifier.0.weight': (4, 4), 'heads.map.classifier.6.weight': (3, 4, 1, 1),
    'heads.map.classifier.6.bias': (3,),
}


def weights(seed=0, only='', **changed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, **{key.replace('__', '.'): value for key, value in changed.items()}}
    return OrderedDict((key, torch.randn(shape, generator=generator))
                       for key, shape in shapes.items() if key.startswith(only))


def checkpoint(state, classes=None, geometry=None):
    meta = make_fingerprint(state, version='0.1.0', geometry=geometry or {},
                            class_lists={'map_classes': classes} if classes else {})
    return {'state_dict': state, 'meta': {META_KEY: meta}}


@pytest.fixture()
def save(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, *arguments):
        torch.save(checkpoint(*arguments), name)

    return write


def plan(*specs, model=None, classes=CLASSES, geometry=None, **options):
    model = weights(seed=9) if model is None else model
    return plan_load(model, parse_sources(specs), parameters=model.keys(), geometry=geometry or {},
                     class_lists={'map_classes': classes}, **options)


@pytest.mark.parametrize('spec, path, module', [
    ('A.pth', 'A.pth', None),
    ('encoders.camera=A.pth', 'A.pth', 'encoders.camera'),
    ('C:\\runs\\x.pth', 'C:\\runs\\x.pth', None),
    ('encoders=C:\\x.pth', 'C:\\x.pth', 'encoders'),
    ('runs/lr=0.1/epoch_2.pth', 'runs/lr=0.1/epoch_2.pth', None),
    ('C:\\lr=1\\x.pth', 'C:\\lr=1\\x.pth', None),
    ('fuser=runs/lr=0.1/e.pth', 'runs/lr=0.1/e.pth', 'fuser'),
])
def test_parse_sources(spec, path, module):
    assert parse_sources([spec]) == (LoadSource(path, module),)


def test_a_file_with_an_equals_sign_in_its_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_sources(['lr=1.pth']) == (LoadSource('1.pth', 'lr'),)
    (tmp_path / 'lr=1.pth').touch()
    assert parse_sources(['lr=1.pth']) == (LoadSource('lr=1.pth', None),)


def test_sources_that_contradict_one_another():
    with pytest.raises(ConfigError, match='fuser from a.pth and from b.pth'):
        parse_sources(['fuser=a.pth', 'fuser=b.pth'])
    with pytest.raises(ConfigError, match="'fuser=' names no file"):
        parse_sources(['fuser='])
    assert len(parse_sources(['a.pth', 'fuser=a.pth', 'a.pth'])) == 2


def test_one_file_gives_everything_without_a_copy(save):
    save('a.pth', weights(), CLASSES)
    read = read_checkpoint('a.pth', mmap=True)
    source, = parse_sources(['a.pth'])
    model = weights(seed=9)
    before = copy.deepcopy((read['state_dict'], model))
    result = plan_load(model, [(source, read)], parameters=model.keys(), geometry={},
                       class_lists={'map_classes': CLASSES})
    assert result.report.complete and not result.report.classes and not result.report.suggestions
    for key, value in result.weights.items():
        assert value.data_ptr() == read['state_dict'][key].data_ptr(), key
    torch.testing.assert_close((read['state_dict'], model), before, rtol=0, atol=0)


def test_weights_have_the_models_names_order_and_metadata(save):
    layers = nn.Sequential(OrderedDict(fuser=nn.Linear(2, 3), extra=nn.BatchNorm1d(3)))
    save('a.pth', {'fuser.bias': torch.ones(3), 'gone.w': torch.ones(1)})
    model = layers.state_dict()
    result = plan('a.pth', model=model)
    assert list(result.weights) == list(model) and result.weights._metadata is model._metadata
    layers.load_state_dict(result.weights, strict=True)
    assert layers.fuser.bias.tolist() == [1, 1, 1]


def test_each_module_comes_from_the_first_file_or_the_assigned_one(save):
    a, b, c = (weights(seed) for seed in (1, 2, 3))
    save('a.pth', {key: value for key, value in a.items() if 'heads' not in key}, CLASSES)
    save('b.pth', b, CLASSES)
    save('c.pth', c, CLASSES)
    result = plan('a.pth', 'b.pth', 'encoders=b.pth', 'encoders.camera=c.pth')
    expected = {'encoders.camera': c, 'encoders.lidar': b, 'fuser': a, 'decoder': a, 'heads': b}
    for key, value in result.weights.items():
        whose = next(state for prefix, state in expected.items() if key.startswith(prefix))
        assert torch.equal(value, whose[key]), key
    sources = result.report.module_sources
    assert sources['encoders.camera.neck'] == 'c.pth' and sources['heads.map'] == 'b.pth'
    assert result.report.sources == ('a.pth', 'b.pth', 'c.pth')
    assert ('encoders.lidar.backbone', 'a.pth') in result.report.shadowed


def test_a_file_is_read_once(save, monkeypatch):
    save('a.pth', weights(), CLASSES)
    reads = []
    monkeypatch.setattr(loading, 'read_checkpoint', lambda path, **options: (
        reads.append(path) or read_checkpoint(path, **options)))
    plan('encoders=a.pth', 'heads=a.pth', 'a.pth')
    assert reads == ['a.pth']


def test_an_assigned_file_gives_nothing_else(save):
    save('a.pth', weights(1), CLASSES)
    result = plan('encoders.camera=a.pth')
    assert {module_of(record.key) for record in result.report.reused} == {
        'encoders.camera.backbone', 'encoders.camera.neck'}
    assert not result.report.unexpected


def test_a_module_that_the_model_or_the_file_lacks(save):
    save('a.pth', weights(1, only='encoders.lidar'))
    with pytest.raises(ConfigError, match=r'no module encoders\.radar; it has decoder\.neck, enc'):
        plan('encoders.radar=a.pth')
    with pytest.raises(ConfigError, match='no module enc;'):
        plan('enc=a.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth holds nothing of encoders\.camera; it '
                                              r'holds encoders\.lidar\.backbone'):
        plan('encoders.camera=a.pth')


def test_a_module_that_a_later_file_would_fit_better_is_pointed_out(save):
    save('a.pth', weights(1, decoder__neck__w=(2, 5)), CLASSES)
    save('b.pth', weights(2), CLASSES)
    report = plan('a.pth', 'b.pth').report
    assert [record.key for record in report.mismatched] == ['decoder.neck.w']
    assert report.notes == ('decoder.neck: a.pth fits in part, b.pth whole; --load-from '
                            'decoder.neck=b.pth takes it from there',)
    assert plan('a.pth', 'b.pth', 'decoder.neck=b.pth').report.complete


@pytest.mark.parametrize('seed', range(5))
def test_every_tensor_of_all_sides_is_accounted_for_once(save, seed):
    generator = torch.Generator().manual_seed(seed)

    def some(state):
        kept = {key: value for key, value in state.items()
                if torch.rand((), generator=generator) > 0.3}
        return {**kept, f'other{seed}.w': torch.ones(2)} or state

    states = {'a.pth': some(weights(1)), 'b.pth': some(weights(2, fuser__0__weight=(1, 2)))}
    for name, state in states.items():
        save(name, state, CLASSES)
    model = weights(seed=9)
    report = plan('a.pth', 'b.pth', model=model).report
    of_model = [r.key for r in (*report.reused, *report.missing, *report.mismatched)]
    assert sorted(of_model) == sorted(model)
    taken = [(report.module_sources[module_of(r.key)], r.key)
             for r in (*report.reused, *report.unexpected, *report.mismatched)]
    left = [(path, key) for module, path in report.shadowed for key in states[path]
            if module_of(key) == module]
    assert sorted(taken + left) == sorted((path, key) for path in states for key in states[path])


def test_classes_by_name_from_the_metadata(save):
    state = weights(1)
    save('a.pth', state, ['divider', 'road', 'walkway'])
    result = plan('a.pth')
    assert torch.equal(result.weights['heads.map.classifier.6.weight'],
                       state['heads.map.classifier.6.weight'][[1, 2, 0]])
    assert torch.equal(result.weights['heads.map.classifier.0.weight'],
                       state['heads.map.classifier.0.weight'])
    assert [str(found) for found in result.report.classes] == [
        'heads.map: 3 of 3 classes by name, in another order']
    require_complete(result.report)


def test_new_classes_are_fresh_and_counted(save):
    state, model = weights(1), weights(seed=9)
    save('a.pth', state, ['divider', 'kerb', 'road'])
    result = plan('a.pth', model=model)
    last = result.weights['heads.map.classifier.6.weight']
    assert torch.equal(last[1], model['heads.map.classifier.6.weight'][1])
    assert torch.equal(last[[0, 2]], state['heads.map.classifier.6.weight'][[2, 0]])
    assert result.report.partly_fresh == ('heads.map.classifier.6.weight',
                                          'heads.map.classifier.6.bias')
    summary, = result.report.fresh_modules()
    assert (summary.module, summary.fresh_parameters, summary.parameters) == ('heads.map', 5, 31)
    with pytest.raises(CheckpointError, match=r'2 of 8.*classifier\.6\.weight in part'):
        require_complete(result.report)


def test_classes_of_a_person_come_before_those_of_the_metadata(save):
    state = weights(1)
    save('a.pth', state, CLASSES)
    told = {'map_classes': ['walkway', 'divider', 'road']}
    result = plan('a.pth', source_classes=told)
    assert torch.equal(result.weights['heads.map.classifier.6.bias'],
                       state['heads.map.classifier.6.bias'][[2, 0, 1]])
    with pytest.raises(CheckpointError, match='--source-classes gives 2 map_classes'):
        plan('a.pth', source_classes={'map_classes': ['a', 'b']})
    with pytest.raises(ConfigError, match='choose from classes, map_classes'):
        plan('a.pth', source_classes={'maps': ['a', 'b']})


def test_classes_are_those_of_the_file_that_the_head_comes_from(save):
    states = {'a.pth': weights(1), 'b.pth': weights(2)}
    save('a.pth', states['a.pth'], CLASSES)
    save('b.pth', states['b.pth'], CLASSES[::-1])
    result = plan('heads.map=b.pth', 'a.pth')
    assert torch.equal(result.weights['heads.map.classifier.6.bias'],
                       states['b.pth']['heads.map.classifier.6.bias'].flip(0))
    assert not plan('a.pth', 'b.pth').report.classes


def test_a_file_without_class_names_of_another_number(save):
    save('a.pth', weights(1, heads__map__classifier__6__weight=(2, 4, 1, 1),
                          heads__map__classifier__6__bias=(2,)))
    report = plan('a.pth').report
    assert 'a.pth does not name its map_classes' in str(report.classes[0])
    assert len(report.mismatched) == 2


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_broken_weights_are_refused_where_they_would_be_used(save, value):
    broken = weights(1)
    broken['fuser.0.weight'][0] = value
    broken['decoder.neck.w'][1, 3] = value
    save('a.pth', broken, CLASSES)
    save('b.pth', weights(2), CLASSES)
    with pytest.raises(CheckpointError, match=r'a\.pth holds values that are NaN or Inf '
                                              r'\(2 in fuser, 1 in decoder\.neck\)') as caught:
        plan('b.pth', 'decoder=a.pth', 'fuser=a.pth')
    assert '\n' not in str(caught.value)
    assert plan('b.pth', 'a.pth').report.complete
    assert plan('encoders=a.pth').report.reused


def test_a_broken_row_of_a_class_that_is_not_used_is_no_harm(save):
    broken = weights(1)
    broken['heads.map.classifier.6.weight'][1] = float('nan')
    save('a.pth', broken, ['road', 'kerb', 'divider'])
    assert plan('a.pth').report.partly_fresh
    save('b.pth', broken, ['road', 'divider', 'kerb'])
    with pytest.raises(CheckpointError, match=r'4 in heads\.map'):
        plan('b.pth')


@pytest.mark.parametrize('tensor, count', [
    (torch.full((9,), 6e4, dtype=torch.float16), 0), (torch.full((9,), 3e38), 0),
    (torch.full((9,), 3e38, dtype=torch.bfloat16), 0), (torch.arange(3), 0), (torch.ones(0), 0),
    (torch.tensor([float('inf'), -float('inf'), 1.]), 2), (torch.tensor([True]), 0),
    (torch.tensor([float('nan')], dtype=torch.float16), 1),
    (torch.tensor([complex(1, float('nan'))]), 1),
    (torch.tensor([1., float('nan')]).to(torch.float8_e5m2), 1),
])
def test_only_what_is_not_finite_counts(tensor, count):
    assert count_not_finite(tensor) == count


def test_geometry_that_differs_is_told_for_the_modules_that_are_used(save):
    old = {'point_cloud_range': [-54, -54, -5, 54, 54, 3], 'image_size': [256, 704]}
    new = {'point_cloud_range': [-51, -51, -5, 51, 51, 3], 'image_size': [256, 704]}
    save('a.pth', weights(1), CLASSES, old)
    change, = plan('a.pth', geometry=new).report.meaning
    assert change.kind == 'meaning' and change.key.endswith('point_cloud_range')
    assert (change.old, change.new) == (old['point_cloud_range'], new['point_cloud_range'])
    assert not plan('encoders.camera=a.pth', geometry=new).report.meaning
    assert not plan('a.pth', geometry=old).report.meaning


def test_suggestions_are_made_and_not_applied(save):
    state = weights(1)
    state['encoders.camera.old_neck.w'] = state.pop('encoders.camera.neck.w')
    save('a.pth', state, CLASSES)
    model = weights(seed=9)
    result = plan('a.pth', model=model)
    assert result.report.suggestions == (
        ('encoders.camera.neck.w', 'encoders.camera.old_neck.w'),)
    assert result.weights['encoders.camera.neck.w'] is model['encoders.camera.neck.w']


@pytest.mark.parametrize('names, family', [
    (['conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'], 'a ResNet'),
    (['backbone_3d.conv1.weight', 'dense_head.weight'], 'a detector of OpenPCDet'),
    (['lm_head.weight'], 'a language model'),
    (['pts_voxel_encoder.w', 'pts_bbox_head.w'], 'another detector of MMDetection3D'),
    (['what.is.this'], 'unknown origin'),
])
def test_another_family_of_models_is_named(save, names, family):
    save('a.pth', {name: torch.ones(4, 4) for name in names})
    with pytest.raises(CheckpointError, match=f'a.pth does not fit this model: 0 of 8.*{family}'):
        require_related(plan('a.pth').report)


def test_origin_and_names_of_mmdetection3d(save):
    state = {'img_neck.w': torch.ones(3, 3), 'fusion_layer.0.weight': torch.full((6, 2), 2.),
             'pts_neck.w': torch.ones(2, 7)}
    torch.save({'state_dict': state}, 'c.pth')
    report = plan('c.pth').report
    assert 'MMDetection3D' in report.origins['c.pth']
    assert [record.key for record in report.reused] == [
        'encoders.camera.neck.w', 'fuser.0.weight', 'decoder.neck.w']
    assert plan('encoders.camera=c.pth').report.reused[0].key == 'encoders.camera.neck.w'


@pytest.mark.parametrize('meta', [
    None, 'text', [1], {'CLASSES': 'car'}, {'dataset_meta': {'map_classes': 5}}, {'cfg': '((('},
    {'dataset_meta': {'map_classes': [1, 2, 3]}}, {META_KEY: 'text'}, {META_KEY: {'version': 3}},
])
def test_metadata_of_any_form_is_read_or_passed_over(save, meta):
    torch.save({'state_dict': weights(1), 'meta': meta, 3: torch.ones(2)}, 'a.pth')
    report = plan('a.pth', geometry={'voxel_size': [1]}).report
    assert report.complete and not report.meaning
    assert ['taken by position' in str(found) for found in report.classes] == [True]


def test_numbered_tensors_are_no_weights(save):
    torch.save({1: torch.ones(2)}, 'a.pth')
    with pytest.raises(CheckpointError, match='a.pth holds no weights'):
        plan('a.pth')
