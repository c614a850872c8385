"""Every rule fires on a run that is sick in its way, and on no other; none on a healthy run."""
import math

import pytest
import torch

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.monitoring import statistics
from bevfusion_enhanced.monitoring.diagnosis import check_thresholds, diagnose, together
from bevfusion_enhanced.monitoring.rules import RULES

STEPS = 100
MODULES = ['encoders.camera.backbone', 'fuser', 'heads.object', 'heads.map']
GROUPS = ['fresh', 'reused']


def falling(start):
    """A loss that falls a little within an epoch, with some noise."""
    return lambda step: start * (1 - 0.001 * step) * (1 + 0.05 * math.sin(7 * step))


HEALTHY = {'loss/object/heatmap': falling(2.0), 'loss/object/layer0/cls': falling(0.6),
           'loss/object/layer1/cls': falling(0.5), 'loss/object/layer0/bbox': falling(0.5),
           'loss/object/layer1/bbox': falling(0.4), 'loss/map/divider/focal': falling(0.8),
           'loss/map/divider/aux': falling(0.3), 'loss/map/divider/dice': falling(0.4)}
COUNTS = {'classes.object.car.truths': 900.0, 'classes.object.car.positives': 880.0,
          'classes.object.bus.truths': 12.0, 'classes.object.bus.positives': 10.0,
          'classes.map.divider.truths': 5000.0, 'classes.map.divider.predicted': 4000.0}
VALIDATION = {'validation.object.valid': 300.0, 'validation.class.object.car': 290.0,
              'validation.class.object.bus': 10.0, 'validation.map.valid': 4000.0,
              'validation.class.map.divider': 4000.0}
WEIGHTS = {'weights.changed': 0.0, 'weights.nonfinite': 0.0, 'weights.changed_on_load': 0.0}


def measure(*, before=None, resumed=False, losses=None, gradient=lambda step: 8.0, clip=35.0,
            ratios=None, cosine=0.1, nonfinite=0, overflow=0, longest_row=0, rate=1e-4,
            changes=None):
    """An epoch's measurements, through the meters that a real run uses."""
    meter = statistics.LossMeter()
    terms = {**HEALTHY, **(losses or {})}
    for step in range(1, STEPS + 1):
        values = {name: torch.tensor(value(step)) for name, value in terms.items()}
        meter.add(step, {'loss': sum(values.values()), **values})
    gradients = statistics.GradientMeter(MODULES)
    for step in range(1, STEPS + 1):
        total = gradient(step) * (1 + 0.2 * math.sin(3 * step))
        gradients.add(step, total, [total / 2] * 4, min(1.0, clip / total))
    gradients.nonfinite, gradients.overflow = nonfinite, overflow
    gradients.longest_row = longest_row
    updates = {**{f'module.{m}': 1e-3 for m in MODULES}, **{f'group.{g}': 2e-3 for g in GROUPS},
               **(ratios or {})}
    ratio_meter = statistics.RatioMeter(list(updates))
    ratio_meter.add(torch.tensor(list(updates.values()), dtype=torch.float64))
    rates = statistics.RateMeter()
    rates.add({group: rate for group in GROUPS})
    measured = {'steps.resumed': float(resumed), **WEIGHTS, **COUNTS, **VALIDATION,
                **statistics.measure_losses(meter.partial()),
                **gradients.measure(warn_norm=70.0), **ratio_meter.measure(), **rates.measure(),
                **statistics.measure_cosines({'object~map': [cosine + 0.05, cosine, cosine - 0.05,
                                                             cosine]})}
    measured.update(statistics.compare_with_previous(measured, before, resumed=resumed))
    measured.update(changes or {})
    return measured


def healthy():
    return measure(before=measure(losses={'loss/object/heatmap': falling(2.2)}))


def after_healthy(**sickness):
    return measure(before=healthy(), **sickness)


SICK = {
    'nonfinite_steps': lambda: after_healthy(nonfinite=3, longest_row=1),
    'loss_scale_overflow': lambda: after_healthy(overflow=10),
    'damaged_checkpoint': lambda: after_healthy(
        resumed=True, changes={'weights.changed_on_load': 2.0}),
    'weights_jumped': lambda: after_healthy(changes={'weights.changed': 4.0}),
    'explosion_after_resume': lambda: after_healthy(resumed=True, gradient=lambda step: 34.0),
    'gradient_explosion': lambda: after_healthy(
        gradient=lambda step: 200.0, losses={'loss/object/heatmap': falling(9.0)}),
    'gradient_over_warn': lambda: after_healthy(
        gradient=lambda step: 90.0 if step % 10 == 0 else 8.0),
    'always_clipped': lambda: after_healthy(clip=2.0),
    'auxiliary_dominates': lambda: after_healthy(losses={'loss/map/divider/aux': falling(9.0)}),
    'first_layer_worst': lambda: after_healthy(
        losses={'loss/object/layer0/cls': falling(9.0), 'loss/object/heatmap': falling(3.0)}),
    'task_starved': lambda: after_healthy(losses={
        name: falling(1e-3) for name in HEALTHY if name.startswith('loss/map')}),
    'tasks_fight': lambda: after_healthy(cosine=-0.4),
    'fresh_group_too_fast': lambda: after_healthy(ratios={'group.fresh': 0.08}),
    'module_stands_still': lambda: after_healthy(ratios={'module.fuser': 1e-9}),
    'loss_rises': lambda: after_healthy(losses={'loss/object/heatmap': falling(4.0)}),
    'dead_detection_class': lambda: after_healthy(changes={'classes.object.bus.positives': 0.0}),
    'absent_class': lambda: after_healthy(
        changes={'classes.object.bus.truths': 0.0, 'classes.object.bus.positives': 0.0}),
    'dead_map_class': lambda: after_healthy(changes={'classes.map.divider.predicted': 0.0}),
    'no_valid_predictions': lambda: after_healthy(changes={'validation.map.valid': 0.0}),
    'never_predicted_in_validation': lambda: after_healthy(
        changes={'validation.class.object.bus': 0.0}),
}
ITEMS = {'auxiliary_dominates': 'map', 'first_layer_worst': 'object', 'task_starved': 'map',
         'tasks_fight': 'object~map', 'fresh_group_too_fast': 'fresh',
         'module_stands_still': 'fuser', 'dead_detection_class': 'object.bus',
         'absent_class': 'object.bus', 'dead_map_class': 'map.divider',
         'no_valid_predictions': 'map', 'never_predicted_in_validation': 'object.bus'}
# What comes along with a sickness by its nature.
ALONG = {'gradient_explosion': {'gradient_over_warn', 'loss_rises', 'always_clipped'},
         'first_layer_worst': {'loss_rises'}, 'auxiliary_dominates': {'loss_rises'}}


def fired(measurements, **settings):
    return {finding.rule: finding for finding in diagnose(measurements, **settings)}


def test_a_healthy_run_is_silent():
    assert not fired(healthy())
    assert not fired(measure())  # a first epoch


@pytest.mark.parametrize('rule', [rule.name for rule in RULES])
def test_each_rule_fires_on_its_own_sickness(rule):
    findings = fired(SICK[rule]())
    assert rule in findings and set(findings) <= {rule} | ALONG.get(rule, set())
    finding = findings[rule]
    assert finding.item == ITEMS.get(rule, '')
    texts = [finding.message, finding.question]
    for explained in finding.explanations:
        texts += [explained.cause, explained.change]
    assert not any('{' in text for text in texts)
    assert any(explained.evidence for explained in finding.explanations)


def test_rules_are_distinct_and_well_formed():
    assert len({rule.name for rule in RULES}) == len(RULES) == len(SICK)
    for rule in RULES:
        assert all(condition.op in '<>' for condition in rule.when)
        assert rule.causes and all(cause.change for cause in rule.causes)
        assert all('*' not in condition.quantity for condition in rule.when[1:])


def test_what_speaks_for_a_cause_brings_it_to_the_front():
    quiet = fired(after_healthy(nonfinite=3, longest_row=3))['nonfinite_steps']
    assert not any(e.likely for e in quiet.explanations)
    wild = fired(after_healthy(nonfinite=3, longest_row=1, gradient=lambda step: 30.0))
    first, second = wild['nonfinite_steps'].explanations[:2]
    assert first.likely and 'learning rate' in first.cause
    assert first.evidence['gradients.growth'] == pytest.approx(3.75, rel=1e-3)
    assert second.likely and 'samples' in second.cause


def test_what_speaks_against_a_cause_brings_it_to_the_end():
    finding = fired(after_healthy(gradient=lambda step: 80.0))['gradient_over_warn']
    refuted = [e.cause for e in finding.explanations if e.refuted]
    assert 'auxiliary losses dominate' in refuted  # their ratio was measured, and is small
    assert [e.refuted for e in finding.explanations] == sorted(
        e.refuted for e in finding.explanations) and not finding.explanations[0].refuted
    unmeasured = diagnose({'gradients.total.share_over_warn': 0.5})[0]
    assert not any(e.refuted or e.likely for e in unmeasured.explanations)


def test_findings_alike_are_told_together():
    unseen = {f'validation.class.map.c{i}': 0.0 for i in range(3)}
    findings = diagnose({'epoch': 1.0, **unseen, 'classes.map.c0.truths': 9.0})
    [(first, none), (other, more)] = together(findings)
    assert (first.item, none, other.item, more) == ('map.c0', [], 'map.c1', ['map.c2'])


def test_a_damaged_checkpoint_explains_an_explosion():
    findings = fired(after_healthy(resumed=True, gradient=lambda step: 34.0,
                                   changes={'weights.changed_on_load': 5.0}))
    first = findings['explosion_after_resume'].explanations[0]
    assert first.likely and 'damaged' in first.cause
    assert first.evidence == {'weights.changed_on_load': 5.0}
    assert '4.2 times' in findings['explosion_after_resume'].message


def test_an_early_layer_explains_dominating_auxiliary_losses():
    finding = fired(after_healthy(losses={'loss/object/layer0/cls': falling(20.0)}))[
        'auxiliary_dominates']
    assert finding.item == 'object' and 'early decoder layer' in finding.explanations[0].cause
    assert finding.explanations[0].change.startswith('model.heads.object.auxiliary=False')


def test_thresholds_from_the_config():
    sick = after_healthy(losses={'loss/map/divider/aux': falling(4.0)})
    assert 'auxiliary_dominates' not in fired(sick)
    assert 'auxiliary_dominates' in fired(sick, thresholds=dict(auxiliary_dominates=3.0))
    check_thresholds(dict(auxiliary_dominates=3.0))
    with pytest.raises(ConfigError, match="names \\['aux'\\], which are no rules"):
        check_thresholds(dict(aux=3.0))
