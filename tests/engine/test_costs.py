"""What a model and its steps cost: operations by hand, seconds and memory of a real run."""
import json
import time

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from bevfusion_enhanced.engine.complexity import complexity_of
from bevfusion_enhanced.engine.step_cost_hook import StepCostHook, peak_gb


class Small(BaseModel):
    """A convolution of 3 to 8 channels, a linear layer of 8 to 5, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({'map': nn.Conv2d(3, 8, 3, padding=1, bias=False)})
        self.linear, self.frozen = nn.Linear(8, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.frozen.requires_grad_(False)

    def forward(self, x, mode='tensor'):
        return self.frozen(self.linear(self.heads['map'](x).mean(dim=(2, 3))))


def test_operations_and_parameters_are_those_of_a_count_by_hand():
    model = Small().train()
    found = complexity_of(model, dict(x=torch.randn(1, 3, 10, 20)))
    conv, linear, frozen = 2 * 10 * 20 * 8 * 27, 2 * 8 * 5, 2 * 5 * 5
    assert found.gflops == pytest.approx((conv + linear + frozen) / 1e9)
    assert found.by_module['heads.map'] == pytest.approx(conv / 1e9)
    assert found.parameters == 8 * 27 + 40 + 25 and found.trained == 8 * 27 + 40
    assert model.training


def test_a_step_is_timed_without_the_first_ones(tmp_path):
    class Run:
        work_dir = tmp_path

    hook = StepCostHook(skip=2)
    for pause in (0.2, 0.2, 0.01, 0.01, 0.05):
        hook.before_train_iter(Run, 0)
        time.sleep(pause)
        hook.after_train_iter(Run, 0)
    hook.after_train_epoch(Run)
    cost = json.loads((tmp_path / 'cost.json').read_text())
    assert 0.01 <= cost['step_seconds'] < 0.05
    assert cost['peak_gb'] == pytest.approx(peak_gb(), rel=0.1) and cost['peak_gb'] > 0.1


def test_a_start_of_few_steps_leaves_what_was_measured_before(tmp_path):
    class Run:
        work_dir = tmp_path

    (tmp_path / 'cost.json').write_text('before')
    hook = StepCostHook(skip=2)
    hook.before_train_iter(Run, 0)
    hook.after_train_iter(Run, 0)
    hook.after_train_epoch(Run)
    assert (tmp_path / 'cost.json').read_text() == 'before'
