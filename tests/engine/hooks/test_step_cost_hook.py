"""What the steps of a training cost: seconds and memory, in a file of the run."""
import json
import time

import pytest

from bevfusion_enhanced.engine.hooks.step_cost_hook import StepCostHook, peak_gb


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
