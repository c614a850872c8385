"""The project's own step, on the mini configs: phase 4a starts from a checkpoint of phase 3."""
import logging
from types import SimpleNamespace

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from bevfusion_enhanced import __version__
from bevfusion_enhanced.checkpoints import make_fingerprint, require_complete, write_checkpoint
from bevfusion_enhanced.checkpoints.geometry import geometry_of
from bevfusion_enhanced.checkpoints.loading import parse_sources, plan_load
from bevfusion_enhanced.engine.checkpointing import fresh_modules
from bevfusion_enhanced.engine.configuration.config import load_config
from bevfusion_enhanced.engine.resume import optimizer_state, resume_plan
from bevfusion_enhanced.errors import CheckpointError

PHASES = ('phase3_enhanced_seg', 'phase4a_task_gca')


@pytest.fixture(scope='module')
def configs(repo):
    return [load_config(str(repo / 'configs' / 'mini' / f'{name}.py')) for name in PHASES]


@pytest.fixture(scope='module')
def models(configs):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return [MODELS.build(config.model) for config in configs]


def class_lists(config):
    return {name: config.train_dataloader.dataset.metainfo[name]
            for name in ('classes', 'map_classes')}


def checkpoint_of(model, config):
    return {'state_dict': model.state_dict(), 'meta': {'bevfusion_enhanced': make_fingerprint(
        model.state_dict(), version=__version__, class_lists=class_lists(config),
        config_text=config.pretty_text, geometry=geometry_of(config))}}


def plan(model, config, path):
    return plan_load(model.state_dict(), parse_sources([str(path)]),
                     parameters=dict(model.named_parameters()), geometry=geometry_of(config),
                     class_lists=class_lists(config))


def test_the_task_gcas_are_the_only_fresh_modules(models, configs, tmp_path):
    phase3, phase4a = models
    write_checkpoint(checkpoint_of(phase3, configs[0]), tmp_path / 'epoch_5.pth')
    load = plan(phase4a, configs[1], tmp_path / 'epoch_5.pth')
    assert [module.module for module in load.report.fresh_modules()] == [
        'task_gca.map', 'task_gca.object']
    assert not load.report.unexpected and not load.report.mismatched and not load.report.classes
    fresh = {key: value.clone() for key, value in phase4a.state_dict().items()
             if key.startswith('task_gca')}
    phase4a.load_state_dict(load.weights, strict=True)
    loaded = phase4a.state_dict()
    for key, value in phase3.state_dict().items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    for key, value in fresh.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r'task_gca\.object\.\*'):
        require_complete(load.report)


def test_a_structural_change_is_named_by_its_config_key(models, configs):
    runner = SimpleNamespace(cfg=configs[1])
    changes = resume_plan.changes_since(
        checkpoint_of(models[0], configs[0]), runner, models[1],
        class_lists=class_lists(configs[1]), source='epoch_5.pth')
    structural = {change.key: change for change in changes if change.kind == 'structure'}
    assert 'model.task_gca' in structural
    assert 'new task_gca.object.*' in str(structural['tensors'])


def test_another_geometry_is_a_change_of_meaning(models, configs):
    checkpoint = checkpoint_of(models[0], configs[0])
    other = configs[0].copy()
    other.merge_from_dict({'model.encoders.camera.vtransform.xbound': [-60., 60., 0.5]})
    runner = SimpleNamespace(cfg=other, logger=logging.getLogger('test'))
    changes = resume_plan.changes_of_meaning(checkpoint, runner, source='epoch_5.pth')
    assert [change.key for change in changes] == ['model.encoders.camera.vtransform.xbound']
    runner.cfg = configs[0]
    assert resume_plan.changes_of_meaning(checkpoint, runner, source='epoch_5.pth') == ()


def test_fresh_groups_beside_the_paramwise_ones(models, configs):
    """Phase 4a groups by parameter; the split tells fresh from reused and keeps the rest."""
    model, config = models[1], configs[1]
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
    before = {id(p): dict(group) for group in wrapper.optimizer.param_groups
              for p in group['params']}
    runner = SimpleNamespace(optim_wrapper=wrapper, param_schedulers=None)
    fresh = [name for name, _ in model.named_parameters() if name.startswith('task_gca')]
    fresh_modules.split_groups(runner, model, fresh, lr_mult=5.)
    names = optimizer_state.names_of(wrapper, model)
    assert sorted(sum(names, [])) == sorted(name for name, _ in model.named_parameters())
    for group, part in zip(wrapper.optimizer.param_groups, names, strict=True):
        for parameter, name in zip(group['params'], part, strict=True):
            old = before[id(parameter)]
            assert group['lr'] == old['lr'] * (5 if name in fresh else 1)
            assert group['weight_decay'] == old['weight_decay']
    lines = fresh_modules.group_lines(wrapper, model, fresh)
    count = sum(p.numel() for name, p in model.named_parameters() if name in fresh)
    assert any(line.startswith('parameter group fresh') and f' {count:,} parameters' in line
               for line in lines)
