"""The project's own step, on the mini configs: phase 4a starts from a checkpoint of phase 3."""
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.registry import DefaultScope

from bevfusion_enhanced.checkpoints import (
    geometry_of,
    parse_sources,
    plan_load,
    require_complete,
    require_related,
    write_checkpoint,
)
from bevfusion_enhanced.engine.config import load_config
from bevfusion_enhanced.errors import CheckpointError


@pytest.fixture(scope='module')
def config(repo):
    return load_config(str(repo / 'configs' / 'mini' / 'phase4a_task_gca.py'))


@pytest.fixture(scope='module')
def phases(repo, config):
    def build(of):
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            return MODELS.build(of.model)

    torch.manual_seed(0)
    phase3 = load_config(str(repo / 'configs' / 'mini' / 'phase3_enhanced_seg.py'))
    return build(phase3), build(config)


@pytest.fixture()
def plan(config):
    def build(model, *specs, **lists):
        return plan_load(model.state_dict(), parse_sources([str(spec) for spec in specs]),
                         parameters=dict(model.named_parameters()), geometry=geometry_of(config),
                         class_lists=lists)

    return build


def test_the_task_gcas_are_the_only_fresh_modules(phases, plan, tmp_path):
    phase3, phase4a = phases
    write_checkpoint({'state_dict': phase3.state_dict(), 'meta': {}}, tmp_path / 'epoch_5.pth')
    state = phase4a.state_dict()
    weights, report = plan(phase4a, tmp_path / 'epoch_5.pth')
    require_related(report)
    assert [module.module for module in report.fresh_modules()] == [
        'task_gca.map', 'task_gca.object']
    assert not report.unexpected and not report.mismatched
    fresh = {key: value.clone() for key, value in state.items() if key.startswith('task_gca')}
    phase4a.load_state_dict(weights, strict=True)
    loaded = phase4a.state_dict()
    for key, value in phase3.state_dict().items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    for key, value in fresh.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r'task_gca\.object\.\*'):
        require_complete(report)


def test_classes_and_files_of_the_real_model(phases, plan, config, tmp_path):
    phase3, phase4a = phases
    state = {key: torch.randn_like(value) if value.is_floating_point() else value
             for key, value in phase3.state_dict().items()}
    objects, maps = (list(config[name]) for name in ('class_names', 'map_classes'))
    meta = {'dataset_meta': {'classes': objects[::-1], 'map_classes': maps[1:] + maps[:1]}}
    write_checkpoint({'state_dict': state, 'meta': meta}, tmp_path / 'all.pth')
    camera = {key: value + 1 for key, value in state.items() if key.startswith('encoders.camera')}
    write_checkpoint({'state_dict': camera, 'meta': {}}, tmp_path / 'camera.pth')
    weights, report = plan(phase4a, tmp_path / 'camera.pth', tmp_path / 'all.pth',
                           classes=objects, map_classes=maps)
    assert [str(found) for found in report.classes] == [
        'heads.object: 10 of 10 classes by name, in another order',
        'heads.map: 6 of 6 classes by name, in another order']
    moved = {
        'heads.object.heatmap_head.1.weight': lambda value: value.flip(0),
        'heads.object.heatmap_head.1.bias': lambda value: value.flip(0),
        'heads.object.class_encoding.weight': lambda value: value.flip(1),
        'heads.object.prediction_heads.0.heatmap.1.weight': lambda value: value.flip(0),
        'heads.object.prediction_heads.0.heatmap.1.bias': lambda value: value.flip(0),
        'heads.map.aux_classifier.weight': lambda value: value.roll(1, 0),
        'heads.map.aux_classifier.bias': lambda value: value.roll(1, 0)}
    for key, value in state.items():
        source = key
        if key.startswith('heads.map.classifiers.'):
            index, rest = key.split('.')[3], key.split('.', 4)[4]
            source = f'heads.map.classifiers.{(int(index) - 1) % 6}.{rest}'
        expected = moved.get(key, lambda value: value)(camera.get(source, state[source]))
        assert torch.equal(weights[key], expected), key
