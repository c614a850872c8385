"""Meters against plain loops over the same numbers."""
import math

import numpy as np
import pytest
import torch

from bevfusion_enhanced.monitoring.names import module_of, read_loss_names
from bevfusion_enhanced.monitoring.statistics import (
    CosineMeter,
    GradientMeter,
    LossMeter,
    RateMeter,
    RatioMeter,
    compare_with_previous,
    measure_cosines,
    measure_losses,
    merge_into,
)


def scalars(**values):
    return {name.replace('__', '/'): torch.tensor(v) for name, v in values.items()}


@pytest.mark.parametrize('parameter, module', [
    ('encoders.camera.backbone.stages.0.w', 'encoders.camera.backbone'),
    ('encoders.lidar.backbone.conv.weight', 'encoders.lidar.backbone'),
    ('fuser.0.weight', 'fuser'), ('decoder.neck.deblocks.0.0.weight', 'decoder.neck'),
    ('heads.map.aspp.convs.0.weight', 'heads.map'), ('task_gca.map.fc.0.weight', 'task_gca.map'),
    ('bias', 'bias')])
def test_module_of(parameter, module):
    assert module_of(parameter) == module


def test_loss_names_tell_main_from_auxiliary():
    names = read_loss_names([
        'loss', 'loss/object/heatmap', 'loss/object/layer0/cls', 'loss/object/layer1/cls',
        'loss/map/divider/focal', 'loss/map/divider/aux', 'stats/map/divider/dice',
        'loss/object/uncertainty', 'loss_cls', 'loss/map'])
    auxiliary = {name for name, loss in names.items() if loss.auxiliary}
    assert auxiliary == {'loss/object/layer0/cls', 'loss/map/divider/aux'}
    assert 'loss' not in names and 'stats/map/divider/dice' not in names
    assert names['loss/object/layer1/cls'].layer == 1
    assert names['loss/object/uncertainty'].weighting
    assert names['loss_cls'].task == 'model' and names['loss/map'].task == 'map'
    assert names['loss/object/layer0/cls'].branch == 'layer0'
    assert names['loss/map/divider/aux'].branch == 'aux'


def test_losses_leave_out_what_is_not_finite():
    meter = LossMeter()
    for step, value in enumerate([math.nan, 4.0, 2.0, math.inf, 3.0, math.nan], start=1):
        meter.add(step, scalars(loss=value, loss__map=1.0))
    measured = measure_losses(meter.partial())
    assert measured['losses.total.mean'] == pytest.approx(3.0)
    assert (measured['losses.total.first'], measured['losses.total.last']) == (4.0, 3.0)


def test_losses_that_are_logged_now_and_then():
    meter = LossMeter()
    for step in range(1, 11):
        values = scalars(loss=float(step))
        if step % 4 == 0:
            values.update(scalars(loss__map=float(step)))
        meter.add(step, values)
    measured = measure_losses(meter.partial())
    assert measured['losses.total.mean'] == pytest.approx(5.5)
    assert (measured['losses.total.first'], measured['losses.total.last']) == (1, 10)
    assert measured['losses.term.loss/map.mean'] == pytest.approx(6)
    assert measured['losses.term.loss/map.first'] == 4


def test_losses_by_task_branch_and_layer():
    meter = LossMeter()
    meter.add(1, scalars(loss=20.0, loss__object__heatmap=1.0, loss__object__layer0__cls=6.0,
                         loss__object__layer0__bbox=3.0, loss__object__layer1__cls=2.0,
                         loss__map__divider__focal=4.0, loss__map__divider__aux=4.0,
                         loss__map__uncertainty=-7.0))
    measured = measure_losses(meter.partial())
    expected = {
        'losses.task.object.mean': 12, 'losses.task.object.main': 3,
        'losses.task.object.auxiliary': 9, 'losses.task.object.auxiliary.layer0': 9,
        'losses.task.object.auxiliary_ratio': 3, 'losses.task.object.share': 0.6,
        'losses.task.map.auxiliary.aux': 4, 'losses.task.map.auxiliary_ratio': 1,
        'losses.task.map.share': 0.4, 'losses.layer.object.0': 9, 'losses.layer.object.1': 2,
        'losses.depth.object': 4.5, 'losses.auxiliary_ratio': 13 / 7}
    assert {name: measured[name] for name in expected} == pytest.approx(expected)


def test_losses_survive_a_stop():
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = LossMeter(), LossMeter(), LossMeter()
    for step, value in enumerate(values):
        whole.add(step, scalars(loss=value))
        (first if step < 9 else second).add(step, scalars(loss=value))
    resumed = LossMeter()
    resumed.load(first.state(), torch.device('cpu'))
    for step, value in enumerate(values[9:], start=9):
        resumed.add(step, scalars(loss=value))
    assert resumed.partial() == whole.partial()
    merged = first.partial()
    merge_into(merged, second.partial())  # as of two processes
    assert merged['loss'] == pytest.approx(whole.partial()['loss'])


def gradient_meter(totals, *, factor=lambda total: 1.0):
    meter = GradientMeter(['a', 'b'])
    for step, total in enumerate(totals, start=1):
        meter.add(step, total, [0.6 * total, 0.8 * total], factor(total))
    return meter


def test_gradients():
    totals = [3.0, 1.0, 40.0, 2.0, 5.0]
    meter = gradient_meter(totals, factor=lambda total: min(1.0, 4 / total))
    measured = meter.measure(warn_norm=10)
    expected = {
        'steps.updates': 5, 'gradients.total.steps': 5, 'gradients.total.min': 1,
        'gradients.total.min_step': 2, 'gradients.total.max': 40, 'gradients.total.max_step': 3,
        'gradients.total.median': 3, 'gradients.module.a.share': 0.36,
        'gradients.module.b.median': 2.4, 'gradients.module.b.max_step': 3,
        'gradients.total.share_over_warn': 0.2, 'gradients.clipped.share': 0.4,
        'gradients.clipped.mean_factor': np.mean([0.1, 0.8]),
        'gradients.clipped.strongest_factor': 0.1}
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert meter.newest == pytest.approx({'total': 5, 'a': 3, 'b': 4})


def test_gradients_survive_a_stop_but_not_other_modules():
    meter = gradient_meter([1.0, 2.0])
    meter.nonfinite, meter.longest_row = 3, 2
    resumed = GradientMeter(['a', 'b'])
    resumed.load(meter.state())
    assert resumed.measure(warn_norm=9) == meter.measure(warn_norm=9)
    other = GradientMeter(['a', 'c'])
    other.load(meter.state())
    assert other.measure(warn_norm=9)['steps.updates'] == 0


def test_no_step_at_all():
    assert 'gradients.total.median' not in GradientMeter(['a']).measure(warn_norm=1)
    assert LossMeter().partial() == {} and RatioMeter(['a']).measure() == {}


def test_cosines_of_pairs():
    meter = CosineMeter()
    for value in (-0.5, 0.1, math.nan, -0.3):
        meter.add({'stats/cosine/map~object': torch.tensor(value), 'loss': torch.tensor(1.)})
    resumed = CosineMeter()
    resumed.load(meter.values())
    assert measure_cosines(resumed.values()) == pytest.approx({
        'cosine.map~object.mean': -0.7 / 3, 'cosine.map~object.negative_share': 2 / 3,
        'cosine.map~object.looks': 3})


def test_ratios_and_rates():
    meter = RatioMeter(['module.a', 'group.all'])
    meter.add(torch.tensor([0.1, math.nan]))
    meter.add(torch.tensor([0.3, math.nan]))
    assert meter.measure() == pytest.approx({'updates.module.a.mean': 0.2,
                                             'updates.module.a.max': 0.3})
    rates = RateMeter()
    for rate in (1e-3, 3e-3, 2e-3):
        rates.add({'fresh': rate})
    assert rates.measure() == {'learning_rate.fresh.first': 1e-3,
                               'learning_rate.fresh.last': 2e-3, 'learning_rate.fresh.max': 3e-3}


def test_an_epoch_is_compared_with_the_one_before():
    before = {'losses.total.mean': 2.0, 'gradients.total.median': 1.0}
    now = {'losses.total.mean': 3.0, 'gradients.total.median': 5.0}
    assert compare_with_previous(now, None, resumed=True) == {}
    assert compare_with_previous(now, before, resumed=False) == {
        'losses.total.rise': 1.5, 'gradients.growth': 5.0}
    assert compare_with_previous(now, before, resumed=True)['gradients.after_resume'] == 5.0
