"""What is read of a step, and which steps are left out, with real optimizer wrappers."""
import multiprocessing
import socket

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.testing import assert_close

from bevfusion_enhanced.monitoring.step_watch import StepWatch, group_labels


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fuser = nn.Linear(4, 3)
        self.heads = nn.ModuleDict({'map': nn.Linear(3, 1), 'unused': nn.Linear(3, 1)})

    def forward(self, x):
        return self.heads['map'](self.fuser(x).tanh())


def watched(*, optimizer=None, agree=None, wrapper_type=OptimWrapper, **settings):
    """(model, wrapper, readings, watch), the watch standing before the wrapper."""
    model, readings = Model(), []
    optimizer = optimizer or torch.optim.SGD
    wrapper = wrapper_type(optimizer=optimizer(model.parameters(), lr=0.1), **settings)
    watch = StepWatch(model, wrapper, on_step=readings.append, agree=agree)
    watch.install()
    return model, wrapper, readings, watch


def batch(seed=0):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))


def reference_gradients(scale=1.0):
    model = Model()
    (scale * model(batch()).square().mean()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def norm(gradients, prefix=''):
    return float(torch.cat([g.flatten() for n, g in gradients.items()
                            if n.startswith(prefix)]).double().norm())


def test_norms_are_those_of_the_gradient_before_clipping():
    model, wrapper, readings, watch = watched(clip_grad=dict(max_norm=0.01))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper.update_params(model(batch()).square().mean())
    reading, expected = readings[0], reference_gradients()
    assert reading.total == pytest.approx(norm(expected), rel=1e-5)
    assert dict(zip(watch.modules, reading.by_module)) == pytest.approx({
        'fuser': norm(expected, 'fuser'), 'heads.map': norm(expected, 'heads.map'),
        'heads.unused': 0}, rel=1e-5)
    assert reading.factor == pytest.approx(0.01 / norm(expected), rel=1e-5)
    moved = {name: (start[name] - p.detach()) / 0.1 for name, p in model.named_parameters()}
    assert norm(moved) == pytest.approx(norm(expected) * reading.factor, rel=1e-3)
    assert not reading.skipped and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize('clip, largest', [
    (dict(max_norm=1e-3, norm_type='inf'), True), (dict(type='value', clip_value=1e-3), True),
    (dict(max_norm=1e-3, norm_type=1), False)])
def test_clipping_by_other_norms(clip, largest):
    model, wrapper, readings, _ = watched(clip_grad=dict(clip))
    wrapper.update_params(model(batch()).square().mean())
    flat = torch.cat([g.flatten() for g in reference_gradients().values()]).abs()
    size = float(flat.max() if largest else flat.sum())
    assert readings[0].factor == pytest.approx(1e-3 / size, rel=1e-4)


@pytest.mark.parametrize('bad', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_leaves_everything_as_it_is(bad):
    model, wrapper, readings, _ = watched(optimizer=torch.optim.AdamW, clip_grad=dict(max_norm=1))
    wrapper.update_params(model(batch()).square().mean())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = [s['exp_avg'].clone() for s in wrapper.optimizer.state.values()]
    output = model(batch(1)).square().mean()
    # the gradient of sqrt at zero is infinite, the loss is not
    wrapper.update_params(output * float('nan') if bad == 'loss'
                          else output + (output * 0).sqrt())
    reading = readings[1]
    assert reading.skipped and not reading.overflow
    assert reading.loss_finite == [bad == 'gradient']
    assert set(reading.bad_modules) == {'fuser', 'heads.map'}
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name])
    for moment, state in zip(moments, wrapper.optimizer.state.values(), strict=True):
        assert torch.equal(moment, state['exp_avg'])
    wrapper.update_params(model(batch(2)).square().mean())
    assert not readings[2].skipped
    assert not torch.equal(model.fuser.weight, weights['fuser.weight'])


def test_infinite_loss_with_finite_gradients():
    model, wrapper, readings, _ = watched()
    start = model.fuser.weight.detach().clone()
    wrapper.update_params(model(batch()).square().mean() + torch.tensor(float('inf')))
    assert readings[0].skipped and readings[0].gradient_finite
    assert torch.equal(model.fuser.weight, start)


def test_accumulation_is_one_update():
    model, wrapper, readings, _ = watched(accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 100)
    wrapper.update_params(model(batch()).square().mean())
    assert not readings
    wrapper.update_params(model(batch()).square().mean())
    assert len(readings) == 1
    assert readings[0].total == pytest.approx(norm(reference_gradients()), rel=1e-5)
    for factor in (float('nan'), 1.0, 1.0, 1.0):
        wrapper.update_params(factor * model(batch()).square().mean())
    assert [r.skipped for r in readings] == [False, True, False]
    assert readings[1].loss_finite == [False, True]


@pytest.fixture
def amp(monkeypatch):
    """AmpOptimWrapper on a CPU, with torch's own scaler for it."""
    import mmengine.optim.optimizer.amp_optimizer_wrapper as module
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)

    def build(scale=1024.0, **settings):
        model, readings = Model(), []
        wrapper = AmpOptimWrapper(
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **settings)
        wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        StepWatch(model, wrapper, on_step=readings.append).install()
        return model, wrapper, readings

    return build


@pytest.mark.parametrize('clip', [None, dict(max_norm=0.01)])
def test_a_loss_scale_is_taken_out(amp, clip):
    model, wrapper, readings = amp(clip_grad=clip)
    start = model.fuser.weight.detach().clone()
    wrapper.update_params(model(batch()).square().mean())
    size = norm(reference_gradients())
    assert readings[0].total == pytest.approx(size, rel=1e-5)
    assert readings[0].factor == pytest.approx(0.01 / size if clip else 1.0, rel=1e-5)
    expected = 0.1 * reference_gradients()['fuser.weight'] * readings[0].factor
    assert_close(start - model.fuser.weight.detach(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('clip', [None, dict(max_norm=0.01)])
def test_an_overflow_is_left_to_the_scaler(amp, clip):
    model, wrapper, readings = amp(clip_grad=clip)
    start = model.fuser.weight.detach().clone()
    output = model(batch()).square().mean()
    wrapper.update_params(output + (output * 0).sqrt())
    assert readings[0].overflow and readings[0].skipped
    assert wrapper.loss_scaler.get_scale() == 512
    assert torch.equal(model.fuser.weight, start)
    wrapper.update_params(model(batch()).square().mean())
    assert not readings[1].skipped and not torch.equal(model.fuser.weight, start)


def test_a_bad_loss_is_no_overflow_and_a_scale_cannot_fall_for_ever(amp):
    model, wrapper, readings = amp()
    wrapper.update_params(model(batch()).square().mean() * float('nan'))
    assert readings[0].skipped and not readings[0].overflow
    model, wrapper, readings = amp(scale=1.0)
    output = model(batch()).square().mean()
    wrapper.update_params(output + (output * 0).sqrt())
    assert readings[0].skipped and not readings[0].overflow


def test_updates_are_measured_when_asked_for():
    model, wrapper, readings, watch = watched()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    watch.measure_update = True
    for _ in range(2):
        wrapper.update_params(model(batch()).square().mean())
        if len(readings) == 1:
            moved = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    ratios = dict(zip(watch.ratio_names, readings[0].ratios.tolist(), strict=True))
    for name in ('fuser', 'heads.map', 'heads.unused'):
        assert ratios[f'module.{name}'] == pytest.approx(
            norm(moved, name) / norm(start, name), rel=1e-4)
    assert ratios['group.all'] == pytest.approx(norm(moved) / norm(start), rel=1e-4)
    assert readings[1].ratios is None
    plain, other = Model(), torch.optim.SGD
    optimizer = OptimWrapper(optimizer=other(plain.parameters(), lr=0.1))
    for _ in range(2):
        optimizer.update_params(plain(batch()).square().mean())
    assert torch.equal(plain.fuser.weight, model.fuser.weight)  # watching changes nothing


def test_a_frozen_module_is_not_measured():
    model, wrapper, readings, watch = watched()
    model.fuser.requires_grad_(False)
    watch.measure_update = True
    wrapper.update_params(model(batch()).square().mean())
    ratios = dict(zip(watch.ratio_names, readings[0].ratios.tolist(), strict=True))
    assert ratios['module.fuser'] != ratios['module.fuser'] and ratios['module.heads.map'] > 0


def test_removed_it_leaves_the_wrapper_as_it_was():
    model, wrapper, readings, watch = watched()
    watch.remove()
    assert not {'step', 'backward'} & set(vars(wrapper))
    wrapper.update_params(model(batch()).square().mean())
    assert not readings


def test_what_stood_there_before_stays_and_keeps_its_marks():
    model = Model()
    wrapper = OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    inner, calls = wrapper.step, []

    def counted(**kwargs):
        calls.append(1)
        inner(**kwargs)
    counted._with_counter = True
    wrapper.step = counted
    watch = StepWatch(model, wrapper, on_step=lambda reading: None)
    watch.install()
    assert wrapper.step._with_counter
    wrapper.update_params(model(batch()).square().mean())
    watch.remove()
    assert wrapper.step is counted and calls == [1]


def test_groups_are_named():
    model = Model()
    named = {id(p): name for name, p in model.named_parameters()}
    fresh = dict(params=list(model.heads.parameters()), name='fresh')
    single = [dict(params=[p]) for p in model.fuser.parameters()]
    assert group_labels([fresh, *single], named) == ['fresh', 'fuser', 'fuser']
    assert group_labels([dict(params=list(model.parameters()))], named) == ['all']
    split = [dict(params=list(model.heads.parameters()), fresh=True), *single]
    assert group_labels(split, named) == ['fresh', 'reused', 'reused']


def _process(rank, port, results):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    model, readings = Model(), []
    del model.heads['unused']
    parallel = nn.parallel.DistributedDataParallel(model)
    wrapper = OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    watch = StepWatch(model, wrapper, on_step=readings.append,
                      agree=lambda flag: dist.all_reduce(flag, op=dist.ReduceOp.MAX))
    watch.install()
    for step in range(3):
        # added, not multiplied: the gradients stay finite, only the loss of one process is not
        extra = float('inf') if (step, rank) == (1, 1) else 0.0
        wrapper.update_params(parallel(batch(rank)).square().mean() + extra)
    results.put((rank, [r.skipped for r in readings], [list(r.loss_finite) for r in readings],
                 [r.total for r in readings], model.fuser.weight.sum().item()))
    dist.destroy_process_group()


def test_processes_agree_on_what_is_skipped():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('fork')
    results = context.Queue()
    processes = [context.Process(target=_process, args=(rank, port, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    first, second = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert first[1] == second[1] == [False, True, False]
    assert first[2][1] == [True] and second[2][1] == [False]
    assert first[3] == second[3] and first[4] == second[4]
