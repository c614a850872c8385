"""Fresh modules train apart from reused ones: rate, freeze, warm-up; in real runs of a toy task."""
import copy
import os

import pytest
import torch
from mmdet3d.registry import HOOKS
from mmengine.hooks import Hook
from torch import nn

from bevfusion_enhanced.checkpoints import read_checkpoint
from bevfusion_enhanced.engine.checkpointing.checkpoint_saving import SafeCheckpointHook
from bevfusion_enhanced.engine.checkpointing.fresh_modules import (
    FreshModulesHook,
    FreshOptions,
    group_lines,
)
from bevfusion_enhanced.errors import ConfigError

FRESH = ('task_gca.object.weight', 'task_gca.object.bias')
GATED = "model.gates=['object']"
PARAMWISE = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0.5'
EPOCHS = 'train_cfg.max_epochs=3'
LENGTH = 2  # iterations in an epoch


@HOOKS.register_module()
class RecordingHook(Hook):
    """Remembers, at the end of every iteration, each parameter's rate and all tensors."""

    priority = 'ABOVE_NORMAL'
    rates, tensors = [], []

    def before_train(self, runner):
        type(self).rates, type(self).tensors = [], [self.state(runner)]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = {parameter: name for name, parameter in runner.model.named_parameters()}
        self.rates.append({names[p]: group['lr'] for group in
                           runner.optim_wrapper.optimizer.param_groups for p in group['params']})

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.tensors.append(self.state(runner))

    @staticmethod
    def state(runner):
        return {key: value.clone() for key, value in runner.model.state_dict().items()}


def option(name, value):
    return f'default_hooks.checkpoint.{name}={value}'


@pytest.fixture
def observe(run, toy_config):
    """Train with the recorder in: (rates by iteration, tensors before and after each)."""
    toy_config.write_text(toy_config.read_text() + '''
custom_hooks.append(dict(type='RecordingHook'))
''')

    def train(*arguments, **options):
        runner = run(*arguments, **options)
        return list(RecordingHook.rates), list(RecordingHook.tensors), runner

    return train


@pytest.mark.parametrize('paramwise', [(), (PARAMWISE,)])
def test_the_fresh_group_learns_at_a_multiple_of_the_rate(observe, log_of, paramwise):
    observe('a', *paramwise)
    plain, _, _ = observe('b', GATED, EPOCHS, *paramwise, load_from=['a/epoch_2.pth'])
    rates, _, _ = observe('c', GATED, EPOCHS, option('fresh_lr_mult', 4), *paramwise,
                          load_from=['a/epoch_2.pth'])
    assert len(rates) == 3 * LENGTH and rates[0] != rates[-1]  # the schedule moves
    for with_option, without in zip(rates, plain, strict=True):
        assert with_option == {name: pytest.approx(rate * (4 if name in FRESH else 1), rel=1e-12)
                               for name, rate in without.items()}
    lines = [line.partition('parameter group ')[2] for line in log_of('c').splitlines()
             if 'parameter group ' in line]
    assert 'fresh: lr 0.04, weight decay 0.01, 2 tensors, 72 parameters' in lines
    if paramwise:
        assert 'reused: lr 0.005, weight decay 0.01, 2 tensors, 40 parameters' in lines


@pytest.mark.parametrize('paramwise', [(), (PARAMWISE,)])
def test_the_fresh_group_alone_warms_up_linearly(observe, paramwise):
    observe('a')
    plain, _, _ = observe('b', GATED, EPOCHS, *paramwise, load_from=['a/epoch_2.pth'])
    rates, _, runner = observe('c', GATED, EPOCHS, option('fresh_warmup_iters', 4), *paramwise,
                               load_from=['a/epoch_2.pth'])
    for iteration, (with_option, without) in enumerate(zip(rates, plain, strict=True)):
        factor = min((iteration + 1) / 4, 1)
        assert with_option == {
            name: pytest.approx(rate * (factor if name in FRESH else 1), rel=1e-12)
            for name, rate in without.items()}
    scheduled = {group['lr'] for group in runner.optim_wrapper.optimizer.param_groups}
    assert sorted(scheduled) == pytest.approx([0.005, 0.01] if paramwise else [0.01])


def test_what_is_reused_stands_still_until_its_release(observe, log_of):
    observe('a')
    _, tensors, _ = observe('b', GATED, 'train_cfg.max_epochs=4', option('freeze_reused_epochs', 2),
                            'optim_wrapper.optimizer.weight_decay=0.5',
                            load_from=['a/epoch_2.pth'])
    frozen, free = tensors[:2 * LENGTH + 1], tensors[2 * LENGTH:]
    assert len(free) == 2 * LENGTH + 1
    for key in tensors[0]:
        still = [torch.equal(x[key], y[key]) for x, y in zip(frozen[1:], frozen, strict=False)]
        moves = [not torch.equal(x[key], y[key]) for x, y in zip(free[1:], free, strict=False)]
        if key in FRESH:
            assert not any(still) and all(moves)
        else:
            assert all(still), key
            assert all(moves), key
    log = log_of('b')
    assert 'frozen until epoch 2: 6 reused parameters and 1 norms' in log
    assert 'released after epoch 2' in log
    assert 'parameter group reused, frozen: lr 0.01' in log


def test_what_was_frozen_before_is_not_released(observe, toy_task, monkeypatch):
    observe('a')
    original = toy_task.ToyModel.__init__

    def with_a_frozen_stage(self, *arguments, **options):
        original(self, *arguments, **options)
        self.encoders.requires_grad_(False)

    monkeypatch.setattr(toy_task.ToyModel, '__init__', with_a_frozen_stage)
    _, tensors, runner = observe('b', GATED, option('freeze_reused_epochs', 1),
                                 load_from=['a/epoch_2.pth'])
    key = 'encoders.lidar.backbone.weight'
    assert all(torch.equal(state[key], tensors[0][key]) for state in tensors)
    assert not torch.equal(tensors[-1]['heads.object.weight'], tensors[0]['heads.object.weight'])


def test_nothing_fresh_nothing_frozen(observe, log_of):
    observe('a')
    _, tensors, _ = observe('b', option('freeze_reused_epochs', 1), load_from=['a/epoch_2.pth'])
    assert 'nothing is fresh, so nothing is frozen' in log_of('b')
    assert not torch.equal(tensors[0]['heads.object.weight'], tensors[1]['heads.object.weight'])


AMP = ('optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.loss_scale=dynamic',
       'optim_wrapper.dtype=bfloat16', 'optim_wrapper.clip_grad.max_norm=5')


@pytest.fixture
def amp_on_a_cpu(monkeypatch):
    """MMEngine's wrapper for mixed precision, which insists on a GPU, on torch's CPU parts."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper as module
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(module, 'GradScaler', lambda: torch.amp.GradScaler(
        'cpu', init_scale=64., growth_interval=3))


@pytest.mark.parametrize('paramwise', [(), (PARAMWISE,), AMP])
def test_a_resumed_run_keeps_its_groups(observe, amp_on_a_cpu, paramwise):
    observe('a')
    options = (GATED, 'train_cfg.max_epochs=4', option('fresh_lr_mult', 3),
               option('fresh_warmup_iters', 5), option('freeze_reused_epochs', 2), *paramwise)
    rates, tensors, _ = observe('whole', *options, load_from=['a/epoch_2.pth'])
    os.rename('whole', 'parts')  # each epoch left its checkpoint
    for name in ('epoch_2.pth', 'epoch_3.pth', 'epoch_4.pth'):
        os.rename(f'parts/{name}', f'{name}.kept')
    late_rates, late_tensors, _ = observe('parts', *options, resume='auto')
    assert late_rates == rates[LENGTH:]
    for now, then in zip(late_tensors, tensors[LENGTH:], strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    old, new = read_checkpoint('epoch_4.pth.kept'), read_checkpoint('parts/epoch_4.pth')
    torch.testing.assert_close(new['optimizer'], old['optimizer'], rtol=0, atol=0)
    assert new['param_schedulers'] == old['param_schedulers']
    assert new['optimizer_names'] == old['optimizer_names']
    if paramwise == AMP:
        assert old['optimizer']['loss_scaler']['scale'] == 64 * 2 ** (4 * LENGTH // 3)


def test_moments_are_carried_over_by_name(observe):
    observe('a')
    frozen = ('optim_wrapper.optimizer.lr=0.', 'param_scheduler=None', 'train_cfg.max_epochs=1')
    for keep in (True, False):
        folder = f'kept_{keep}'
        observe(folder, GATED, PARAMWISE, *frozen, option('keep_optimizer_state', keep),
                option('freeze_reused_epochs', 1), load_from=['a/epoch_2.pth'])
        old, new = read_checkpoint('a/epoch_2.pth'), read_checkpoint(f'{folder}/epoch_1.pth')
        before, after = by_name(old), by_name(new)
        # the freeze passes reused parameters over, so their moments are those that were loaded
        assert set(after) == (set(before) | set(FRESH) if keep else set(FRESH))
        if keep:
            torch.testing.assert_close({name: after[name] for name in before}, before, rtol=0,
                                       atol=0)


def by_name(checkpoint):
    optimizer = checkpoint['optimizer']
    names = [name for part in checkpoint['optimizer_names']['']['groups'] for name in part]
    places = [place for group in optimizer['param_groups'] for place in group['params']]
    return {name: optimizer['state'][place] for name, place in zip(names, places, strict=True)
            if place in optimizer['state']}


def test_options_without_a_load_say_that_they_do_nothing(observe, log_of):
    rates, _, _ = observe('a', option('fresh_lr_mult', 4))
    assert max(rates[-1].values()) == pytest.approx(0.01)
    assert 'nothing is loaded, so nothing is reused' in log_of('a')


@pytest.mark.parametrize('options, says', [
    (dict(lr_mult=0), 'fresh_lr_mult is 0; give a number above 0'),
    (dict(freeze_epochs=-1), 'freeze_reused_epochs is -1'),
    (dict(warmup_iters='5'), "fresh_warmup_iters is '5'"),
])
def test_options_out_of_range(options, says):
    with pytest.raises(ConfigError, match=says):
        FreshOptions(**options)


@pytest.fixture
def one_process():
    """Distributed training with a single process."""
    import torch.distributed as dist
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class FakeRunner:
    """As much of a runner as the hook asks for."""

    def __init__(self, model, wrapper):
        import logging
        from types import SimpleNamespace
        self.model, self.optim_wrapper = model, wrapper
        self.logger = logging.getLogger('toy')
        self.message_hub = SimpleNamespace(update_scalar=lambda *arguments: None)
        self.epoch = self.iter = 0
        self.train_loop, self.train_dataloader = None, [None] * LENGTH
        self.waited = 0
        saving = SafeCheckpointHook()
        saving.wait_for_copy = self._count_wait
        self.hooks = [saving]

    def _count_wait(self):
        self.waited += 1


def test_distributed_training_waits_for_no_frozen_gradient(one_process):
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import OptimWrapper
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(old=nn.Linear(3, 3), new=nn.Linear(3, 1)))
    model.forward = lambda x: model['new'](model['old'](x))
    model.train_step = None
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
    runner = FakeRunner(MMDistributedDataParallel(module=model), wrapper)
    hook = FreshModulesHook(options=FreshOptions(freeze_epochs=1), model=model,
                            fresh=['new.weight', 'new.bias'])
    before = copy.deepcopy(model.state_dict())
    hook.before_train(runner)
    for runner.iter in range(2 * LENGTH):
        hook.before_train_iter(runner, runner.iter)
        wrapper.update_params(runner.model(torch.ones(2, 3)).square().sum())
        hook.after_train_iter(runner, runner.iter)
        same = torch.equal(before['old.weight'], model['old'].weight)
        assert same == (runner.iter < LENGTH)
    assert not torch.equal(before['new.weight'], model['new'].weight)
    assert runner.waited == 2  # each wrapping sends the first process's weights, which may be saved


def test_lines_for_a_wrapper_without_schedule():
    from mmengine.optim import OptimWrapper
    model = nn.ModuleDict(dict(old=nn.Linear(2, 2), new=nn.Linear(2, 3)))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.5))
    assert group_lines(wrapper, model, ['new.weight', 'new.bias']) == [
        'parameter group reused: lr 0.5, weight decay 0, 2 tensors, 6 parameters',
        'parameter group fresh: lr 0.5, weight decay 0, 2 tensors, 9 parameters']
