"""What differs between two trainings, told from configs, from fingerprints, and from both."""
import copy
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from bevfusion_enhanced.checkpoints.config_difference import ABSENT, differences
from bevfusion_enhanced.checkpoints.config_text import parse_config_text
from bevfusion_enhanced.checkpoints.explain import Change, explain_change, safe_to_resume
from bevfusion_enhanced.checkpoints.fingerprint import make_fingerprint
from bevfusion_enhanced.checkpoints.geometry import geometry_of
from bevfusion_enhanced.errors import CheckpointError

REPO = Path(__file__).resolve().parents[2]


def read(name):
    return Config.fromfile(REPO / 'configs' / f'{name}.py', import_custom_modules=False)


@pytest.fixture(scope='module')
def full():
    return read('phase4a_task_gca')


def changed(config, **options):
    """A copy of a config with `a__b=value` set at a.b."""
    config = copy.deepcopy(config)
    config.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return config


def kinds(changes):
    return {change.key: change.kind for change in changes}


# ---- configs alone


def test_a_config_does_not_differ_from_itself_or_its_own_text(full):
    assert explain_change(full, full) == ()
    assert explain_change(full, parse_config_text(full.pretty_text)) == ()
    assert safe_to_resume(())


def test_the_gate_is_the_one_structural_change_of_phase_4a(full):
    changes = explain_change(read('phase3_enhanced_seg'), full)
    assert kinds(changes) == {'model.task_gca': 'structure'} and not safe_to_resume(changes)
    assert changes[0].old is ABSENT and changes[0].new['mode'] == 'task_specific'
    assert str(changes[0]) == ('model.task_gca: not set -> dict(mode, in_channels, reduction) '
                               '(what is new starts fresh, the rest is reused)')


def test_another_head_is_named_by_its_type_alone():
    changes = explain_change(read('phase1_baseline'), read('phase3_enhanced_seg'))
    assert kinds(changes) == {'model.heads.map.type': 'structure'}


def test_a_full_and_a_mini_config_differ_in_all_three_ways(full):
    found = kinds(explain_change(full, read('mini/phase4a_task_gca')))
    assert found['model.encoders.camera.backbone.depths'] == 'structure'
    assert found['model.encoders.camera.vtransform.image_size'] == 'meaning'
    assert found['optim_wrapper.optimizer.lr'] == 'training'
    assert 'lr' not in found and 'voxel_size' not in found  # variables, which no runner reads
    assert found['val_dataloader.dataset.data_root'] == 'training'
    assert 'test_dataloader.dataset.data_root' not in found  # the same once more
    order = [change.kind for change in explain_change(full, read('mini/phase4a_task_gca'))]
    assert order == sorted(order, key=['structure', 'meaning', 'training'].index)


def test_settings_of_the_training_are_safe_to_resume(full):
    new = changed(
        full, optim_wrapper__optimizer__lr=1e-5, train_cfg__max_epochs=40, work_dir='elsewhere',
        train_dataloader__batch_size=2, train_dataloader__num_workers=0,
        optim_wrapper__accumulative_counts=4, model__loss_scale__map=2.0,
        default_hooks__checkpoint__interval=2, model__heads__object__loss_bbox__loss_weight=1.0)
    new.train_dataloader.dataset.pipeline[3]['rot_lim'] = [0.0, 0.0]
    changes = explain_change(full, new)
    assert len(changes) == 10 and safe_to_resume(changes)
    assert 'train_dataloader.dataset.pipeline[ImageAug3D].rot_lim' in kinds(changes)
    rate = next(c for c in changes if c.key == 'optim_wrapper.optimizer.lr')
    assert (rate.old, rate.new, rate.consequence) == (2e-4, 1e-5, 'learning rate')


@pytest.mark.parametrize('key, value', [
    ('model__encoders__lidar__voxelize__voxel_size', [0.1, 0.1, 0.2]),
    ('model__encoders__lidar__voxelize__point_cloud_range', [-54.0, -54.0, -4.0, 54.0, 54.0, 4.0]),
    ('model__encoders__camera__vtransform__dbound', [2.0, 61.0, 0.5]),
    ('model__heads__map__grid_transform__output_scope', [[-50, 50, 1], [-50, 50, 1]]),
])
def test_geometry_with_unchanged_shapes_is_a_change_of_meaning(full, key, value):
    changes = explain_change(full, changed(full, **{key: value}))
    assert kinds(changes) == {key.replace('__', '.'): 'meaning'} and not safe_to_resume(changes)


def test_finer_depth_bins_are_more_channels(full):
    changes = explain_change(full, changed(
        full, model__encoders__camera__vtransform__dbound=[1.0, 60.0, 1.0]))
    assert kinds(changes) == {'model.encoders.camera.vtransform.dbound': 'structure'}
    assert 'tensors change' in str(changes[0])


def with_map_classes(config, classes):
    """The config with other map classes wherever they are named."""
    data = copy.deepcopy(config.to_dict())
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        data[loader]['dataset']['metainfo']['map_classes'] = classes
        for step in data[loader]['dataset']['pipeline']:
            if step['type'] == 'LoadBEVMapMasks':
                step['classes'] = classes
    data['model']['heads']['map']['classes'] = classes
    return data


def test_permuted_classes_are_told_once_with_the_key_and_the_first_label(full):
    classes = ['ped_crossing', 'drivable_area', *full.map_classes[2:]]
    changes = explain_change(full, with_map_classes(full, classes))
    meant = [change for change in changes if change.kind != 'training']
    assert [c.key for c in meant] == ['train_dataloader.dataset.metainfo.map_classes']
    assert meant[0].kind == 'meaning' and meant[0].new == classes
    assert 'label 0 was drivable_area, is ped_crossing' in str(meant[0])


def test_fewer_classes_change_tensors(full):
    changes = explain_change(full, with_map_classes(full, list(full.map_classes[:4])))
    first = changes[0]
    assert (first.kind, first.key) == ('structure', 'train_dataloader.dataset.metainfo.map_classes')
    assert 'gone: carpark_area, divider' in str(first)


def test_a_head_set_to_none_is_one_that_is_not_there(full):
    without = changed(full, model__heads__map=None)
    gone = explain_change(full, without)
    assert kinds(gone) == {'model.heads.map': 'structure'}
    assert 'no longer used' in str(gone[0])
    also = copy.deepcopy(full)
    del also.model.heads['map']
    assert explain_change(without, also) == ()


def test_gates_switched_off_are_no_gates(full):
    assert explain_change(read('phase3_enhanced_seg'), changed(
        read('phase3_enhanced_seg'), model__task_gca=dict(mode='none', in_channels=512))) == ()


def test_a_wrapped_dataset_is_compared_with_the_one_inside(full):
    wrapped = copy.deepcopy(full)
    wrapped.train_dataloader.dataset = dict(
        type='RepeatDataset', times=5, dataset=copy.deepcopy(full.train_dataloader.dataset))
    assert kinds(explain_change(full, wrapped)) == {'train_dataloader.dataset.type': 'training'}
    wrapped.train_dataloader.dataset.dataset.metainfo = dict(
        full.train_dataloader.dataset.metainfo, classes=full.class_names[::-1])
    found = kinds(explain_change(full, wrapped))
    assert found['train_dataloader.dataset.dataset.metainfo.classes'] == 'meaning'


def test_steps_are_compared_by_type_not_by_place(full):
    new = copy.deepcopy(full)
    del new.train_dataloader.dataset.pipeline[5]
    change, = explain_change(full, new)
    assert change.key == 'train_dataloader.dataset.pipeline' and change.kind == 'training'
    assert set(change.old) - set(change.new) == {'BEVFusionRandomFlip3D'}
    twice = differences({'a': [{'type': 'x.T', 'v': 1}, {'type': 'T', 'v': 2}]},
                        {'a': [{'type': 'x.T', 'v': 1}, {'type': 'T', 'v': 3}]})
    assert [tuple(d) for d in twice] == [('a[T#2].v', 2, 3)]


# ---- fingerprints


def record(state, config=None, **options):
    text = json.dumps(config.to_dict()) if config is not None else ''  # in Python: seconds
    return make_fingerprint(state, version='0.1.0', config_text=text, **{
        'class_lists': {}, 'geometry': geometry_of(config or {}), **options})


STATE = {'encoders.lidar.backbone.w': torch.ones(2), 'heads.map.w': torch.ones(3, 4)}


def test_equal_tensors_turn_structure_into_meaning(full):
    new = changed(full, model__decoder__backbone__layer_nums=[5, 6])
    assert kinds(explain_change(full, new)) == {
        'model.decoder.backbone.layer_nums': 'structure'}
    changes = explain_change(record(STATE, full), record(STATE, new))
    assert kinds(changes) == {'model.decoder.backbone.layer_nums': 'meaning'}
    assert 'the same tensors' in str(changes[0])


def test_differing_tensors_name_the_config_keys_of_their_module(full):
    new = changed(full, model__heads__map__decoder_channels=[64, 64],
                  model__encoders__lidar__backbone__order=['norm'])
    state = {**STATE, 'heads.map.w': torch.ones(5, 4), 'task_gca.map.fc.weight': torch.ones(1)}
    changes = explain_change(record(STATE, full), record(state, new))
    assert kinds(changes) == {
        'tensors': 'structure', 'model.heads.map.decoder_channels': 'structure',
        'model.encoders.lidar.backbone.order': 'meaning'}
    assert changes[0].consequence == 'new task_gca.map.*; heads.map.w (3, 4) -> (5, 4)'


def test_tensors_alone_are_compared_where_no_config_is_known():
    changes = explain_change(record(STATE), record({'heads.map.w': torch.ones(3, 4)}))
    assert kinds(changes) == {'tensors': 'structure'}
    assert (changes[0].old, changes[0].new) == (2, 1)
    assert changes[0].consequence == 'gone encoders.lidar.backbone.*'
    assert explain_change(record(STATE), record(dict(reversed(STATE.items())))) == ()


def test_dtypes_are_no_change_of_architecture():
    half = {key: value.half() for key, value in STATE.items()}
    assert explain_change(record(STATE), record(half)) == ()


def test_a_fingerprint_and_a_config(full):
    old = record(STATE, full, class_lists={
        'classes': list(full.class_names), 'map_classes': list(full.map_classes)})
    assert explain_change(old, full) == () and explain_change(full, old) == ()
    new = changed(full, model__heads__map__decoder_channels=[64, 64])
    assert kinds(explain_change(old, new)) == {'model.heads.map.decoder_channels': 'structure'}


def test_geometry_and_classes_are_compared_without_a_config(full):
    new = changed(full, model__encoders__camera__vtransform__xbound=[-30.0, 30.0, 0.3])
    old = record(STATE, class_lists={'classes': ['car', 'bus']}, geometry=geometry_of(full))
    also = record(STATE, class_lists={'classes': ['bus', 'car']}, geometry=geometry_of(new))
    assert kinds(explain_change(old, also)) == {
        'model.encoders.camera.vtransform.xbound': 'meaning', 'classes': 'meaning'}


def test_equal_tensors_of_other_numbers_of_classes_are_a_change_of_meaning():
    changes = explain_change(record(STATE, class_lists={'classes': ['a', 'b']}),
                             record(STATE, class_lists={'classes': ['a']}))
    assert kinds(changes) == {'classes': 'meaning'}


def test_an_info_file_written_anew_is_told(full):
    changes = explain_change(record(STATE, full, info_digests={'d/a.pkl': 'f' * 64, 'd/b': '1'}),
                             record(STATE, full, info_digests={'d/a.pkl': 'e' * 64}))
    assert kinds(changes) == {'d/a.pkl': 'training'} and safe_to_resume(changes)


def test_an_old_record_without_config_is_read():
    old = {'version': '0.1.0', 'architecture': 'x', 'tensors': {'a': [2]}, 'classes': ['car']}
    new = record({'a': torch.ones(3)}, class_lists={'classes': ['car']})
    assert kinds(explain_change(old, new)) == {'tensors': 'structure'}


def test_nothing_in_common_is_an_error_not_a_silence(full):
    with pytest.raises(CheckpointError, match='says nothing of how it was trained'):
        explain_change(record(STATE), {'model': {'type': 'X'}})


def test_an_unreadable_config_text_leaves_geometry(full):
    old = {**record(STATE, full), 'config': 'a = = 1'}
    new = record(STATE, changed(full, model__encoders__lidar__voxelize__max_num_points=3))
    assert kinds(explain_change(old, new)) == {
        'model.encoders.lidar.voxelize.max_num_points': 'meaning'}


# ---- the text of a config


def test_text_is_read_without_running_it(tmp_path):
    trace = tmp_path / 'trace'
    text = textwrap.dedent(f'''
        a = dict(type='X', n=-1, t=(1, 2), deep=dict(k=[dict(v=None)]), top=inf)
        b = {{'k.x': 1, 2: 3}}
        c = __import__('pathlib').Path({str(trace)!r}).touch()
        d = dict(**a)
    ''')
    read_back = parse_config_text(text)
    assert read_back['a'] == {'type': 'X', 'n': -1, 't': [1, 2], 'deep': {'k': [{'v': None}]},
                              'top': float('inf')}
    assert read_back['b'] == {'k.x': 1, '2': 3} and read_back['d'] == 'dict(**a)'
    assert read_back['c'].startswith('__import__') and not trace.exists()
    assert parse_config_text('{"a": {"b": 1}}') == {'a': {'b': 1}}
    with pytest.raises(CheckpointError, match='cannot be read'):
        parse_config_text('a = <function f>')
    with pytest.raises(CheckpointError, match='cannot be read'):
        parse_config_text('a = ' + '[' * 10000)


def test_unchanged_nan_is_no_difference():
    assert differences({'a': float('nan')}, {'a': float('nan')}) == []


def test_configs_are_compared_without_torch(tmp_path):
    script = tmp_path / 'compare.py'
    script.write_text(textwrap.dedent(f'''
        import sys, types
        package = types.ModuleType('bevfusion_enhanced')
        package.__path__ = [{str(REPO / 'projects' / 'bevfusion_enhanced')!r}]
        sys.modules['bevfusion_enhanced'] = package
        from mmengine.config import Config
        from bevfusion_enhanced.checkpoints.explain import explain_change
        read = lambda name: Config.fromfile({str(REPO / 'configs')!r} + '/' + name,
                                            import_custom_modules=False)
        print(len(explain_change(read('phase1_baseline.py'), read('phase4a_task_gca.py'))))
        print(sorted({{'torch', 'mmdet3d', 'spconv'}} & set(sys.modules)))
    '''))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                            timeout=120)
    assert result.stdout.split('\n')[:2] == ['2', '[]'], result.stderr


def test_a_change_is_one_line_whatever_its_values():
    change = Change('structure', 'k', list(range(100)), {'type': 'T', 'a': 1}, 'why')
    assert len(str(change)) < 200 and "dict(type='T', a)" in str(change) and ' ...' in str(change)
