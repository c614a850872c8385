"""The project's own step, on the mini configs: phase 4a starts from a checkpoint of phase 3."""
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.registry import DefaultScope

from bevfusion_enhanced.checkpoints import (
    fill,
    match,
    read_checkpoint,
    require_complete,
    require_related,
    weights_of,
    write_checkpoint,
)
from bevfusion_enhanced.engine.config import load_config
from bevfusion_enhanced.errors import CheckpointError


@pytest.fixture(scope='module')
def phases(repo):
    def build(name):
        config = load_config(str(repo / 'configs' / 'mini' / f'{name}.py'))
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            return MODELS.build(config.model)

    torch.manual_seed(0)
    return build('phase3_enhanced_seg'), build('phase4a_task_gca')


def test_the_task_gcas_are_the_only_fresh_modules(phases, tmp_path):
    phase3, phase4a = phases
    write_checkpoint({'state_dict': phase3.state_dict(), 'meta': {}}, tmp_path / 'epoch_5.pth')
    weights = weights_of(read_checkpoint(tmp_path / 'epoch_5.pth'))
    state = phase4a.state_dict()
    report = match(state, weights, parameters=dict(phase4a.named_parameters()))
    require_related(report)
    assert [module.module for module in report.fresh_modules()] == [
        'task_gca.map', 'task_gca.object']
    assert not report.unexpected and not report.mismatched
    fresh = {key: value.clone() for key, value in state.items() if key.startswith('task_gca')}
    phase4a.load_state_dict(fill(state, weights, report), strict=True)
    loaded = phase4a.state_dict()
    for key, value in phase3.state_dict().items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    for key, value in fresh.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r'task_gca\.object\.\*'):
        require_complete(report)
