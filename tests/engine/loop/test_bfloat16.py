"""Training in bfloat16 without a GPU."""
import pytest
import torch
from mmengine.config import Config
from torch import nn

from bevfusion_enhanced.engine.commands.train import enable_amp
from bevfusion_enhanced.engine.loop import bfloat16
from bevfusion_enhanced.engine.loop.bfloat16 import BFloat16OptimWrapper
from bevfusion_enhanced.errors import ConfigError


def config(kind: str = 'OptimWrapper') -> Config:
    return Config(dict(optim_wrapper=dict(type=kind, optimizer=dict(type='SGD', lr=0.1))))


def test_only_the_forward_is_in_bfloat16():
    model = nn.Linear(4, 1)
    wrapper = BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        output = model(torch.ones(2, 4))
    assert output.dtype == torch.bfloat16 and not torch.is_autocast_enabled('cpu')
    wrapper.update_params(output.float().mean())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_run_learns_nearly_what_it_learns_in_float32(run):
    still = 'optim_wrapper.optimizer.type=SGD'
    plain, half = (run(kind, still, f'optim_wrapper.type={kind}')
                   for kind in ('OptimWrapper', 'BFloat16OptimWrapper'))
    assert half.iter == plain.iter
    theirs = plain.model.state_dict()
    differences = [float((value - theirs[name]).abs().max())
                   for name, value in half.model.state_dict().items() if value.is_floating_point()]
    assert 0 < max(differences) < 0.1


@pytest.mark.parametrize('gpu, fast, kind', [
    (True, False, 'AmpOptimWrapper'), (False, True, 'BFloat16OptimWrapper')])
def test_amp_takes_what_the_machine_has(gpu, fast, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(bfloat16, 'is_fast_here', lambda: fast)
    asked = config()
    enable_amp(asked)
    assert asked.optim_wrapper.type == kind
    assert ('loss_scale' in asked.optim_wrapper) == gpu


def test_amp_leaves_a_config_in_bfloat16_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    asked = config('BFloat16OptimWrapper')
    enable_amp(asked)
    assert asked.optim_wrapper.type == 'BFloat16OptimWrapper'


def test_amp_is_refused_where_it_would_be_slower(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(bfloat16, 'is_fast_here', lambda: False)
    with pytest.raises(ConfigError, match='--amp needs a GPU or a CPU that computes in bfloat16'):
        enable_amp(config())
