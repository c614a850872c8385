"""Ways to balance tasks: their mathematics, a problem on which a plain sum fails, the detector."""
import math
import multiprocessing
import re
import socket

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.optim import OptimWrapper
from test_bevfusion import batch, build, inputs_of, tiny_config  # noqa: F401
from torch import nn
from torch.testing import assert_close

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.task_balance import (
    GradientProbe,
    GradNorm,
    PCGrad,
    SharedPart,
    UncertaintyWeighting,
    project,
)

TASKS = ('big', 'small')
METHODS = [dict(type='UncertaintyWeighting'), dict(type='GradNorm'), dict(type='PCGrad'),
           dict(type='PCGrad', on='features')]


# ---- two tasks of very different units on one small network

class Toy(nn.Module):
    """A shared trunk and a linear head for each task."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(16, 4) for task in TASKS})


def balanced(balance, model, bev, losses_of):
    """The losses to be summed, as the detector computes them."""
    branches = balance.branch(bev)
    losses = {task: {'l2': losses_of(task, branches[task])} for task in TASKS}
    return balance.balance(losses, SharedPart(
        bev=bev, branches=branches, parameters=list(model.shared.parameters()),
        last_layer=list(model.shared[2].parameters())))


def left_over(balance, steps=800):
    """Train, and return for each task the share of its target's variance that is not explained."""
    model, generator = Toy(), torch.Generator().manual_seed(1)
    truth = {task: torch.randn(8, 4, generator=generator) for task in TASKS}
    unit = dict(big=10.0, small=0.1)
    parameters = [*model.parameters(), *(balance.parameters() if balance else ())]
    optimizer = torch.optim.Adam(parameters, lr=0.01)

    def error(task, bev):
        return (unit[task] * (model.heads[task](bev) - torch.tanh(x @ truth[task]))).square().mean()

    for _ in range(steps):
        x = torch.randn(64, 8, generator=generator)
        bev = model.shared(x)
        if balance is None:
            total = sum(error(task, bev) for task in TASKS)
        else:
            total = sum(value for named in balanced(balance, model, bev, error).losses.values()
                        for value in named.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    x = torch.randn(4096, 8, generator=generator)
    with torch.no_grad():
        bev = model.shared(x)
        return {task: float(error(task, bev) / (
            unit[task] * torch.tanh(x @ truth[task])).square().mean()) for task in TASKS}


def test_a_plain_sum_neglects_the_small_task():
    errors = left_over(None)
    assert errors['big'] < 0.01 and errors['small'] > 0.55


@pytest.mark.parametrize('balance, small', [
    (UncertaintyWeighting(tasks=TASKS), 0.25), (GradNorm(tasks=TASKS), 0.35),
    (PCGrad(tasks=TASKS), 0.40), (PCGrad(tasks=TASKS, on='features'), 0.45)],
    ids=['uncertainty', 'gradnorm', 'pcgrad', 'pcgrad on features'])
def test_a_balance_learns_both(balance, small):
    errors = left_over(balance)
    assert errors['big'] < 0.15 and errors['small'] < small


# ---- mathematics

def test_uncertainty_is_the_papers_objective():
    balance = UncertaintyWeighting(tasks=TASKS)
    with torch.no_grad():
        balance.log_variance['big'].fill_(math.log(4.0))
    losses = dict(big=dict(a=torch.tensor(8.0), b=torch.tensor(4.0)),
                  small=dict(a=torch.tensor(1.0)))
    found, stats = balance.balance(losses, None)
    assert {k: float(v.detach()) for k, v in found['big'].items()} == pytest.approx(
        dict(a=2.0, b=1.0, uncertainty=math.log(2.0)))  # L / sigma^2 + log sigma
    assert float(found['small']['uncertainty'].detach()) == 0 and stats['big']['weight'] == 0.25
    total = sum(v for named in found.values() for v in named.values())
    total.backward()  # d/ds (L exp(-s) + s / 2)
    assert_close(balance.log_variance['big'].grad, torch.tensor(-12 / 4 + 0.5))
    assert set(losses['big']) == {'a', 'b'}


def linear_case(scales):
    """Losses scale_i * (w . x_i), whose gradients by w are scale_i * x_i."""
    model = nn.Module()
    model.shared = nn.ModuleList([nn.Linear(2, 1, bias=False)])
    weight = model.shared[0].weight
    losses = {'big': {'l': (scales[0] * weight * torch.tensor([[3.0, 4.0]])).sum()},
              'small': {'l': (scales[1] * weight * torch.tensor([[0.0, 1.0]])).sum()}}
    return losses, SharedPart(bev=weight, branches={}, parameters=[weight], last_layer=[weight])


def test_gradnorm_steps_down_the_papers_loss():
    balance = GradNorm(tasks=TASKS, alpha=0.0, lr=0.1)
    losses, shared = linear_case((1.0, 1.0))
    first = balance.balance(losses, shared)
    assert first.stats['big']['weight'] == 1 and torch.equal(first.losses['big']['l'],
                                                             losses['big']['l'])
    pull = torch.tensor([5.0, 1.0])  # mean 3: the first is above, the second below
    log_weights = -0.1 * torch.tensor([1.0, -1.0]) * pull / 3
    assert_close(balance.weights, 2 * torch.softmax(log_weights, dim=0))
    balance.lr = 0.02
    for _ in range(300):
        balance.balance(losses, shared)
    weights = balance.weights
    assert float(weights.sum()) == pytest.approx(2)
    assert float(weights[0] * 5 / weights[1]) == pytest.approx(1, rel=0.05)  # equal pulls


def test_gradnorm_lets_the_slower_task_pull_harder():
    balance = GradNorm(tasks=TASKS, alpha=1.0, lr=0.05)
    _, shared = linear_case((1.0, 1.0))
    with torch.no_grad():
        shared.last_layer[0].copy_(torch.tensor([[1.0, 1.0]]))
    for scale in (1.0, *[0.25] * 400):  # the first task has a quarter of its loss left
        losses, _ = {'big': {'l': scale * (shared.bev * torch.tensor([[3.0, 4.0]])).sum()},
                     'small': {'l': (shared.bev * torch.tensor([[0.0, 5.0]])).sum()}}, None
        balance.balance(losses, shared)
    pulls = balance.weights * torch.tensor([0.25 * 5.0, 5.0])
    assert float(pulls[1] / pulls[0]) == pytest.approx(4.0, rel=0.2)  # r_i are 0.4 and 1.6


def test_gradnorm_waits_evaluates_and_goes_on():
    balance = GradNorm(tasks=TASKS, interval=3)
    losses, shared = linear_case((1.0, 1.0))
    seen = []
    for _ in range(4):
        balance.balance(losses, shared)
        seen.append(balance.weights.tolist())
    assert seen[0] == seen[1] == seen[2] != seen[3]
    balance.eval()
    balance.balance(losses, shared)
    assert balance.weights.tolist() == seen[3]
    again = GradNorm(tasks=TASKS, interval=3)
    again.load_state_dict(balance.state_dict())
    assert again.weights.tolist() == seen[3]
    again.train().balance(losses, shared)
    assert again.weights.tolist() == seen[3]  # the fifth call
    nothing = {task: {'l': value['l'] * float('nan')} for task, value in losses.items()}
    again.balance(nothing, shared)
    again.balance(nothing, shared)
    assert again.weights.tolist() == seen[3] and again.gradient_scale == 2.0 ** 15


def test_projection_by_hand():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    total, conflicts = project([a, b])
    # a without its part along b is (1/2, 1/2), b without its part along a is (0, 1)
    assert_close(total, torch.tensor([0.5, 1.5]))
    assert conflicts == 1
    total, conflicts = project([a, torch.tensor([1.0, 1.0])])
    assert_close(total, torch.tensor([2.0, 1.0]))
    assert conflicts == 0


def test_projection_of_three_tasks_never_points_against_the_last_one():
    gradients = list(torch.randn(3, 5, generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(0)
    total, _ = project(gradients)
    torch.manual_seed(0)
    expected = torch.zeros(5)
    for i in range(3):
        others = [j for j in range(3) if j != i]
        kept = gradients[i].clone()
        for k in torch.randperm(2).tolist():
            other = gradients[others[k]]
            if kept @ other < 0:
                kept -= (kept @ other) / (other @ other) * other
        expected += kept
    assert_close(total, expected)


def toy_gradients(balance):
    """Gradients of all weights of the toy under a balance, and of each task alone."""
    model, generator = Toy(), torch.Generator().manual_seed(5)
    x = torch.randn(32, 8, generator=generator)
    target = dict(zip(TASKS, torch.randn(2, 32, 4, generator=generator)))

    def error(task, bev):
        return (model.heads[task](bev) - target[task]).square().mean()

    shared = list(model.shared.parameters())
    alone = {task: torch.autograd.grad(error(task, model.shared(x)), shared) for task in TASKS}
    found = balanced(balance, model, model.shared(x), error)
    total = sum(value for named in found.losses.values() for value in named.values())
    total.backward()
    return model, alone, float(total.detach()), found


def test_pcgrad_on_parameters_is_the_projection_of_the_tasks_gradients():
    model, alone, total, found = toy_gradients(PCGrad(tasks=TASKS))
    flat = [torch.cat([g.flatten() for g in alone[task]]) for task in TASKS]
    expected, conflicts = project(flat)
    given = torch.cat([p.grad.flatten() for p in model.shared.parameters()])
    assert_close(given, expected, rtol=1e-4, atol=1e-7)
    assert found.stats['shared']['conflicts'] == conflicts
    assert float(found.losses['shared']['projection'].detach()) == 0
    _, _, plain_total, _ = toy_gradients(UncertaintyWeighting(tasks=TASKS))  # weights of one
    assert total == pytest.approx(plain_total)


def test_heads_keep_their_own_gradient():
    for balance in (PCGrad(tasks=TASKS), PCGrad(tasks=TASKS, on='features')):
        model = toy_gradients(balance)[0]
        plain = toy_gradients(UncertaintyWeighting(tasks=TASKS))[0]  # weights of one
        for ours, theirs in zip(model.heads.parameters(), plain.heads.parameters(), strict=True):
            assert_close(ours.grad, theirs.grad)


def test_pcgrad_on_features_projects_on_the_map():
    balance = PCGrad(tasks=TASKS, on='features')
    bev = torch.zeros(1, 2, 1, 1, requires_grad=True)
    branches = balance.branch(bev * 1)
    pulls = {'big': torch.tensor([1.0, 0.0]), 'small': torch.tensor([-1.0, 1.0])}
    sum((branches[task].flatten() * pulls[task]).sum() for task in TASKS).backward()
    assert_close(bev.grad.flatten(), torch.tensor([0.5, 1.5]))


def test_half_precision_gradients_do_not_vanish():
    bev = torch.ones(1, 4, 1, 1, dtype=torch.float16, requires_grad=True)
    probe = GradientProbe()
    probe.due = True
    total = bev.float().sum()
    found = probe.look({'a': {'l': 1e-8 * total}, 'b': {'l': -2e-8 * total}}, dict(a=bev, b=bev))
    assert found['cosine/a~b'].item() == pytest.approx(-1, abs=1e-3)
    assert found['bev_gradient/b'].item() == pytest.approx(4e-8, rel=0.05)


def test_the_probe_looks_once_when_asked():
    probe, bev = GradientProbe(), torch.ones(1, 2, 1, 1, requires_grad=True)
    losses = {'a': {'l': (bev.flatten() * torch.tensor([1., 0.])).sum()},
              'b': {'l': (bev.flatten() * torch.tensor([1., 1.])).sum(), 'm': bev.sum() * 0}}
    branches = dict(a=bev, b=bev)
    assert probe.look(losses, branches) == {}
    probe.due = True
    assert probe.look(losses, branches)['cosine/a~b'].item() == pytest.approx(0.5 ** 0.5)
    assert probe.look(losses, branches) == {} and bev.grad is None
    probe.due = True
    with torch.no_grad():
        detached = {'a': {'l': torch.tensor(1.)}, 'b': {'l': torch.tensor(1.)}}
    assert probe.look(detached, dict(a=bev.detach(), b=bev.detach())) == {}


# ---- in the detector

@pytest.mark.parametrize('config, gca', [
    *((method, None) for method in METHODS), (METHODS[2], 'shared'), (METHODS[2], 'task_specific')])
def test_the_detector_trains_with_one_line_of_config(config, gca, batch):  # noqa: F811
    gates = dict(mode=gca, in_channels=16) if gca else None
    model = build(tiny_config(task_balance=dict(config), task_gca=gates)).train()
    model.init_weights()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logs = []
    for _ in range(4):
        model.gradient_probe.due = True
        logs.append(model.train_step(batch, optimizer))
    squares = [sum(float(v) for k, v in log.items() if k.endswith('/square')) for log in logs]
    assert squares[-1] < 0.9 * squares[0]
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert -1 <= float(logs[0]['stats/cosine/object~map']) <= 1
    model.eval()
    with torch.no_grad():  # a loss without gradients, such as one of a validation
        losses = model.loss(*inputs_of(model, batch))
    assert all(value.isfinite() for value in losses.values())


def test_without_a_balance_nothing_is_added(batch):  # noqa: F811
    model = build(tiny_config())
    assert not any('balance' in key for key in model.state_dict())
    assert model.task_balance is None


@pytest.mark.parametrize('config, message', [
    (dict(type='GradNorm', lr=0.0), 'GradNorm needs lr > 0'),
    (dict(type='PCGrad', on='weights'), "must be 'parameters' or 'features', got 'weights'")])
def test_bad_settings(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        MODELS.build(dict(config, tasks=TASKS))
    with pytest.raises(ConfigError, match='needs two tasks or more'):
        MODELS.build(dict(type='PCGrad', tasks=['map']))


def _process(rank, port, results):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    balance = GradNorm(tasks=TASKS, lr=0.1)
    for step in range(3):
        losses, shared = linear_case((1.0 + rank, 1.0 + step))
        balance.balance(losses, shared)
    results.put((rank, balance.weights.tolist(), balance.first_losses.tolist()))
    dist.destroy_process_group()


def test_processes_have_the_same_weights():
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
    assert first[1:] == second[1:] and first[1] != [1.0, 1.0]
