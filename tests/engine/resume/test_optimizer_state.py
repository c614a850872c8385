"""The optimizer's state follows the names of the parameters, wherever they lie in the optimizer."""
import copy

import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from torch import nn

from bevfusion_enhanced.engine.resume import optimizer_state
from bevfusion_enhanced.errors import CheckpointError

ADAM = dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.02))
GROUPED = dict(custom_keys={'body': dict(lr_mult=0.1)})


def net(*order, norm=True):
    """Three layers, registered in any order; `a` and `b` have equal shapes."""
    layers = dict(a=nn.Linear(3, 3), b=nn.Linear(3, 3), body=nn.BatchNorm1d(3))
    model = nn.Module()
    for name in order or layers:
        model.add_module(name, layers[name])
    return model


def wrap(model, paramwise=None, config=ADAM):
    return DefaultOptimWrapperConstructor(copy.deepcopy(config), paramwise)(model)


def step(wrapper, model, seed=0):
    """One update with gradients that are a function of the name alone."""
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        generator = torch.Generator().manual_seed(seed + number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    wrapper.step()


def trained(paramwise=None, config=ADAM, order=()):
    """A checkpoint as it is written, after two updates."""
    torch.manual_seed(0)
    model = net(*order)
    wrapper = wrap(model, paramwise, config)
    step(wrapper, model)
    step(wrapper, model, seed=9)
    return copy.deepcopy({'state_dict': model.state_dict(), 'optimizer': wrapper.state_dict(),
                          'optimizer_names': optimizer_state.describe(wrapper, model)})


def moments(wrapper, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: state['exp_avg'] for p, state in wrapper.optimizer.state.items()}


def expected(checkpoint):
    """Moments by name, read from the file by hand."""
    groups = checkpoint['optimizer']['param_groups']
    places = [place for group in groups for place in group['params']]
    names = [name for part in checkpoint['optimizer_names']['']['groups'] for name in part]
    return {name: checkpoint['optimizer']['state'][place]['exp_avg']
            for name, place in zip(names, places, strict=True)}


def resumed(checkpoint, model, wrapper, **options):
    """What the runner does: rewrite the entry, then load it; returns the notes."""
    checkpoint = copy.deepcopy(checkpoint)
    notes = optimizer_state.adopt(checkpoint, wrapper, model, source='a.pth', **options)
    wrapper.load_state_dict(checkpoint['optimizer'])
    return notes


@pytest.mark.parametrize('old_groups, new_groups', [
    (None, None), (None, GROUPED), (GROUPED, None), (GROUPED, GROUPED)])
def test_moments_survive_another_order_and_other_groups(old_groups, new_groups):
    checkpoint = trained(old_groups)
    model = net('body', 'b', 'a')
    wrapper = wrap(model, new_groups)
    resumed(checkpoint, model, wrapper)
    torch.testing.assert_close(moments(wrapper, model), expected(checkpoint), rtol=0, atol=0)
    step(wrapper, model)  # and it can go on


def test_the_same_training_is_taken_up_as_it_was():
    checkpoint = trained(GROUPED)
    model = net()
    wrapper = wrap(model, GROUPED)
    assert resumed(checkpoint, model, wrapper) == ()
    torch.testing.assert_close(wrapper.state_dict(), checkpoint['optimizer'], rtol=0, atol=0)


def test_frozen_otherwise():
    model = net()
    model.a.requires_grad_(False)
    wrapper = wrap(model, GROUPED)  # the constructor leaves out what is frozen
    step_names = {name for name, p in model.named_parameters() if p.requires_grad}
    checkpoint = trained()
    notes = resumed(checkpoint, model, wrapper)
    kept = {name: value for name, value in expected(checkpoint).items() if name in step_names}
    assert len(kept) == 4
    torch.testing.assert_close(moments(wrapper, model), kept, rtol=0, atol=0)
    assert any('a.bias, a.weight is not trained in this run' in note for note in notes)


def test_released_parameters_start_anew():
    torch.manual_seed(0)
    frozen = net()
    frozen.a.requires_grad_(False)
    old = wrap(frozen, GROUPED)
    for parameter in frozen.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    old.step()
    checkpoint = {'state_dict': frozen.state_dict(), 'optimizer': old.state_dict(),
                  'optimizer_names': optimizer_state.describe(old, frozen)}
    model = net()
    wrapper = wrap(model, GROUPED)
    notes = resumed(checkpoint, model, wrapper)
    assert set(moments(wrapper, model)) == set(expected(checkpoint))
    assert 'a.weight' not in moments(wrapper, model)
    assert any('a.bias, a.weight had none in the checkpoint' in note for note in notes)


def test_rates_of_groups_that_are_the_same_come_from_the_checkpoint():
    checkpoint = trained(GROUPED)
    for group in checkpoint['optimizer']['param_groups']:
        group['initial_lr'], group['lr'] = group['lr'], group['lr'] * 0.5
    model = net('body', 'b', 'a')
    wrapper = wrap(model, GROUPED)
    resumed(checkpoint, model, wrapper)
    for group, names in zip(wrapper.optimizer.param_groups,
                            optimizer_state.names_of(wrapper, model), strict=True):
        base = 0.1 * 0.1 if names[0].startswith('body') else 0.1
        assert (group['initial_lr'], group['lr']) == (base, base * 0.5)


def test_rates_of_new_groups_are_where_the_schedule_had_come_to():
    checkpoint = trained()
    group = checkpoint['optimizer']['param_groups'][0]
    group.update(initial_lr=0.1, lr=0.025)
    model = net()
    wrapper = wrap(model, GROUPED)
    for group in wrapper.param_groups:
        group['initial_lr'] = group['lr']
    notes = resumed(checkpoint, model, wrapper)
    assert any('parameter groups differ' in note for note in notes)
    for group, names in zip(wrapper.optimizer.param_groups,
                            optimizer_state.names_of(wrapper, model), strict=True):
        base = 0.01 if names[0].startswith('body') else 0.1
        assert group['initial_lr'] == pytest.approx(base)
        assert group['lr'] == pytest.approx(base / 4)
    assert wrapper.base_param_settings['lr'] == pytest.approx(0.025)


def test_options_that_are_not_scheduled_follow_the_config_when_that_is_said():
    checkpoint = trained()
    other = dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.5))
    model = net()
    wrapper = wrap(model, config=other)
    resumed(checkpoint, model, wrapper)
    assert wrapper.optimizer.param_groups[0]['weight_decay'] == 0.02
    wrapper = wrap(model, config=other)
    notes = resumed(checkpoint, model, wrapper, keep_options=False)
    assert wrapper.optimizer.param_groups[0]['weight_decay'] == 0.5
    assert 'weight_decay: 0.02 in the checkpoint, 0.5 from now on' in notes


def without_names(checkpoint):
    return {key: value for key, value in checkpoint.items() if key != 'optimizer_names'}


def test_a_checkpoint_without_names_is_read_in_the_order_of_its_weights():
    checkpoint = trained(order=('b', 'a', 'body'))
    model = net('a', 'b', 'body')  # a and b have equal shapes: by place they would be exchanged
    wrapper = wrap(model)
    notes = resumed(without_names(checkpoint), model, wrapper)
    torch.testing.assert_close(moments(wrapper, model), expected(checkpoint), rtol=0, atol=0)
    assert any('in the order of its weights: counts and shapes agree' in note for note in notes)


def test_a_checkpoint_without_names_is_refused_where_it_cannot_be_assigned():
    checkpoint = trained()
    model = net('b', 'body')
    with pytest.raises(CheckpointError, match=r'does not say which parameter .*--load-from'):
        resumed(without_names(checkpoint), model, wrap(model))
    place = checkpoint['optimizer']['state'][0]
    place['exp_avg'] = torch.zeros(7, 7)
    model = net()
    with pytest.raises(CheckpointError, match='does not say which parameter'):
        resumed(without_names(checkpoint), model, wrap(model))


@pytest.mark.parametrize('named', [True, False])
def test_another_kind_of_optimizer_is_refused(named):
    checkpoint = trained() if named else without_names(trained())
    model = net()
    wrapper = wrap(model, config=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)))
    with pytest.raises(CheckpointError, match='this run trains with SGD'):
        resumed(checkpoint, model, wrapper)


def test_names_that_do_not_fit_the_state_are_refused():
    checkpoint = trained()
    checkpoint['optimizer_names']['']['groups'][0].pop()
    model = net()
    with pytest.raises(CheckpointError, match='edited or damaged'):
        resumed(checkpoint, model, wrap(model))


class ScaledWrapper(OptimWrapper):
    """Keeps the state that AmpOptimWrapper keeps, which itself needs a GPU."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.)

    def state_dict(self):
        return {**super().state_dict(), 'loss_scaler': self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict):
        if 'loss_scaler' in state_dict:
            self.loss_scaler.load_state_dict(state_dict.pop('loss_scaler'))
        super().load_state_dict(state_dict)


def test_the_loss_scale_of_mixed_precision():
    checkpoint = trained()
    checkpoint['optimizer']['loss_scaler'] = torch.amp.GradScaler(
        'cpu', init_scale=512.).state_dict()
    model = net('body', 'b', 'a')
    scaled = ScaledWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
    assert resumed(checkpoint, model, scaled) == ()
    assert scaled.loss_scaler.get_scale() == 512
    torch.testing.assert_close(moments(scaled, model), expected(checkpoint), rtol=0, atol=0)
    plain = wrap(model)  # and from mixed precision to none, and back
    resumed(checkpoint, model, plain)
    del checkpoint['optimizer']['loss_scaler']
    scaled = ScaledWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
    notes = resumed(checkpoint, model, scaled)
    assert scaled.loss_scaler.get_scale() == 2
    assert notes == ('loss scale: none in the checkpoint, starts anew',)


def test_several_optimizers():
    def two(model):
        return OptimWrapperDict(
            first=OptimWrapper(torch.optim.AdamW(model.a.parameters(), lr=0.1)),
            second=OptimWrapper(torch.optim.AdamW(
                [*model.body.parameters(), *model.b.parameters()], lr=0.2)))

    torch.manual_seed(0)
    old = net()
    wrapper = two(old)
    for parameter in old.parameters():
        parameter.grad = torch.randn_like(parameter)
    for part in wrapper.values():
        part.step()
    before = {key: {**moments(part, old)} for key, part in wrapper.items()}
    checkpoint = {'state_dict': old.state_dict(), 'optimizer': wrapper.state_dict(),
                  'optimizer_names': optimizer_state.describe(wrapper, old)}
    model = net('b', 'body', 'a')
    again = two(model)
    resumed(checkpoint, model, again)
    for key, part in again.items():
        torch.testing.assert_close(moments(part, model), before[key], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match='the optimizers first, second, this run has one'):
        resumed(checkpoint, model, wrap(model))


def test_plain_torch_reads_what_is_written():
    checkpoint = trained(GROUPED)
    model = net()
    wrapper = wrap(model, GROUPED)
    wrapper.load_state_dict(copy.deepcopy(checkpoint['optimizer']))
    torch.testing.assert_close(moments(wrapper, model), expected(checkpoint), rtol=0, atol=0)


def test_a_parameter_with_two_names():
    def tied(first, second):
        model = nn.Module()
        model.add_module(first, nn.Linear(3, 3, bias=False))
        model.add_module(second, nn.Linear(3, 3, bias=False))
        getattr(model, second).weight = getattr(model, first).weight
        return model

    old = tied('a', 'b')
    wrapper = wrap(old)
    step(wrapper, old)
    value = wrapper.optimizer.state[old.a.weight]['exp_avg']
    checkpoint = {'state_dict': old.state_dict(), 'optimizer': wrapper.state_dict(),
                  'optimizer_names': optimizer_state.describe(wrapper, old)}
    model = tied('b', 'a')
    wrapper = wrap(model)
    resumed(checkpoint, model, wrapper)
    torch.testing.assert_close(wrapper.optimizer.state[model.a.weight]['exp_avg'], value)


def test_moments_carried_over_where_the_weight_was_taken_as_it_is():
    checkpoint = trained()
    model = net('body', 'b', 'a')
    wrapper = wrap(model)
    weights = {key: value.clone() for key, value in checkpoint['state_dict'].items()}
    weights['b.weight'] = weights['b.weight'][[1, 0, 2]]  # rows in another order, as of classes
    weights['a.bias'] = torch.zeros(4)
    notes = optimizer_state.carry_over([('a.pth', checkpoint)], weights, wrapper, model)
    kept = {name: value for name, value in expected(checkpoint).items()
            if name not in ('b.weight', 'a.bias')}
    torch.testing.assert_close(moments(wrapper, model), kept, rtol=0, atol=0)
    assert notes == ('optimizer state: carried over for 4 of 6 parameters of AdamW',)
    wrapper = wrap(model)
    notes = optimizer_state.carry_over([('b.pth', without_names(checkpoint))], weights, wrapper,
                                       model)
    assert not moments(wrapper, model) and 'b.pth, which does not name it' in notes[0]
