r"""How the tasks' losses become one: three published ways to choose what a config otherwise fixes.

Every task's losses are first multiplied by its `loss_scale`; a balance then weighs them, or changes
the gradients that they send into what the tasks share.

    encoders, fuser, decoder -> shared map --branch--> a map for each task -> gate, head -> losses
                                                                         balance <- all losses

Symbols: T tasks, L_i the sum of task i's losses, W weights that all tasks share, g_i the gradient
of L_i. Shapes: B samples, C channels, X and Y cells of the shared BEV map.
"""
from abc import ABCMeta, abstractmethod
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from mmdet3d.registry import MODELS
from mmengine.dist import all_reduce
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError

# {task: {name of the loss: scalar}}
LossesByTask = Dict[str, Dict[str, Tensor]]

# Gradients of a mean over a whole map are too small for float16: they are computed for the loss
# times this, and the factor is halved whenever it was too much.
HALF_PRECISION_SCALE = 2.0 ** 16


class SharedPart(NamedTuple):
    """What all tasks share, for one batch.

    Attributes:
        bev: the shared map (B, C, X, Y), before it was branched.
        branches: the map that each task's gate and head were given.
        parameters: all trainable weights that more than one task depends on.
        last_layer: those of them that are nearest to the heads.
    """

    bev: Tensor
    branches: Mapping[str, Tensor]
    parameters: Sequence[nn.Parameter]
    last_layer: Sequence[nn.Parameter]


class Balanced(NamedTuple):
    """Losses to be summed and minimised, by task; `stats` are only watched, by task and name."""

    losses: LossesByTask
    stats: Dict[str, Dict[str, Tensor]]


class TaskBalance(nn.Module, metaclass=ABCMeta):
    """A way to make one loss of several tasks' losses. Without one they are summed.

    Args:
        tasks: names of the T tasks; the detector gives them.

    Raises:
        ConfigError: with fewer than two tasks there is nothing to balance.
    """

    def __init__(self, *, tasks: Sequence[str]) -> None:
        super().__init__()
        if len(tasks) < 2:
            raise ConfigError(f'task_balance needs two tasks or more, the heads are {list(tasks)}: '
                              'leave task_balance out')
        self.tasks = tuple(tasks)

    def branch(self, bev: Tensor) -> Dict[str, Tensor]:
        """The map that each task's gate and head see, from the shared one (B, C, X, Y)."""
        return {task: bev for task in self.tasks}

    @abstractmethod
    def balance(self, losses: LossesByTask, shared: SharedPart) -> Balanced:
        """Weigh the losses of one batch; the losses given are not changed."""


@MODELS.register_module()
class UncertaintyWeighting(TaskBalance):
    """Weigh each task by how uncertain it is, which is learnt with the network.

    Kendall, Gal and Cipolla, 'Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics', CVPR 2018. With s_i = log sigma_i^2 learnt, sum exp(-s_i) L_i + s_i / 2
    is minimised. The paper has exp(-s_i) / 2 for a squared error; the constant only moves s_i.

    The log variances are weights of the model (`task_balance.log_variance.<task>`) and have the
    main optimizer; `paramwise_cfg` can give them another rate, and should give them no weight
    decay: `custom_keys={'task_balance': dict(decay_mult=0.0)}`.

    Args:
        tasks: see `TaskBalance`.
    """

    def __init__(self, *, tasks: Sequence[str]) -> None:
        super().__init__(tasks=tasks)
        self.log_variance = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(())) for task in tasks})

    def balance(self, losses: LossesByTask, shared: SharedPart) -> Balanced:
        """Multiply by exp(-s_i), and add s_i / 2 as the loss `uncertainty`."""
        weighed: LossesByTask = {}
        stats: Dict[str, Dict[str, Tensor]] = {}
        for task, named in losses.items():
            log_variance = self.log_variance[task]
            weight = torch.exp(-log_variance)
            weighed[task] = {name: weight * value for name, value in named.items()}
            weighed[task]['uncertainty'] = log_variance / 2
            stats[task] = dict(weight=weight.detach())
        return Balanced(losses=weighed, stats=stats)


@MODELS.register_module()
class GradNorm(TaskBalance):
    """Choose the weights so that every task pulls equally hard at the last layer they share.

    Chen, Badrinarayanan, Lee and Rabinovich, 'GradNorm: Gradient Normalization for Adaptive Loss
    Balancing in Deep Multitask Networks', ICML 2018. With G_i = |grad_W w_i L_i| for the last
    shared weights W, G their mean over tasks, and r_i the share of its first loss that task i has
    left over the mean of these shares, sum |G_i - G r_i^alpha| is lowered, the target being a
    constant.

    It is lowered here in log w_i and divided by G: the weights stay positive, and the step does not
    depend on the losses' units. As in the paper the weights sum to T. They are buffers, no weights
    of the network, and equal on all processes. A backward pass through the heads and the last
    shared layer for each task is what it costs, every `interval` iterations.

    Since it levels the losses' sizes, a task's `loss_scale` has no lasting effect.

    Args:
        tasks: see `TaskBalance`.
        alpha: how much harder a task that learns slower may pull; 0 makes all equal.
        lr: step size of the log weights.
        interval: iterations between two steps of the weights.

    Raises:
        ConfigError: `lr` or `interval` is not positive, or `alpha` is negative.
    """

    def __init__(self, *, tasks: Sequence[str], alpha: float = 1.5, lr: float = 0.025,
                 interval: int = 1) -> None:
        super().__init__(tasks=tasks)
        if lr <= 0 or interval < 1 or alpha < 0:
            raise ConfigError(f'GradNorm needs lr > 0, interval >= 1 and alpha >= 0, got lr={lr}, '
                              f'interval={interval}, alpha={alpha}')
        self.alpha, self.lr, self.interval = alpha, lr, interval
        self.register_buffer('weights', torch.ones(len(tasks)))
        self.register_buffer('first_losses', torch.zeros(len(tasks)))  # 0: not seen yet
        self.register_buffer('gradient_scale', torch.tensor(HALF_PRECISION_SCALE),
                             persistent=False)
        self.register_buffer('iterations', torch.zeros((), dtype=torch.long))
        self._calls: Optional[int] = None

    def balance(self, losses: LossesByTask, shared: SharedPart) -> Balanced:
        """Multiply by the weights; while training, step them for the next batch."""
        weights = self.weights.clone()
        totals = torch.stack([sum(losses[task].values()) for task in self.tasks])
        if self.training and totals.requires_grad and self._due():
            norms = self._gradient_norms(totals, shared.last_layer)
            self._step(totals.detach().float(), norms)
        weighed = {task: {name: weight * value for name, value in losses[task].items()}
                   for task, weight in zip(self.tasks, weights)}
        stats = {task: dict(weight=weight) for task, weight in zip(self.tasks, weights)}
        return Balanced(losses=weighed, stats=stats)

    def _due(self) -> bool:
        if self._calls is None:  # a resumed run goes on counting
            self._calls = int(self.iterations)
        due = self._calls % self.interval == 0
        self._calls += 1
        self.iterations += 1
        return due

    def _gradient_norms(self, totals: Tensor, last_layer: Sequence[nn.Parameter]) -> Tensor:
        """|grad_W L_i| (T,) without the weights; not finite where half precision was overrun."""
        norms = []
        for total in totals:
            gradients = torch.autograd.grad(self.gradient_scale * total, last_layer,
                                            retain_graph=True, allow_unused=True)
            norms.append(_flat(gradients, last_layer).norm() / self.gradient_scale)
        return torch.stack(norms)

    @torch.no_grad()
    def _step(self, totals: Tensor, norms: Tensor) -> None:
        """Move the weights by what the losses (T,) and their gradients' norms (T,) say."""
        all_reduce(totals, 'mean')
        all_reduce(norms, 'mean')
        usable = norms.isfinite().all() & totals.isfinite().all()
        self.gradient_scale.mul_(torch.where(norms.isfinite().all(), 1.0, 0.5))
        first = torch.where(self.first_losses > 0, self.first_losses, totals)
        left = totals / first.clamp(min=1e-12)                                           # (T,)
        pull = self.weights * norms                                                      # G_i
        mean = pull.mean().clamp(min=1e-30)
        target = mean * (left / left.mean().clamp(min=1e-12)).clamp(min=1e-12) ** self.alpha
        log_weights = self.weights.log() - self.lr * torch.sign(pull - target) * pull / mean
        weights = len(self.tasks) * torch.softmax(log_weights, dim=0)
        self.weights.copy_(torch.where(usable, weights.clamp(min=1e-8), self.weights))
        self.first_losses.copy_(torch.where(usable, first, self.first_losses))


@MODELS.register_module()
class PCGrad(TaskBalance):
    """Take from each task's gradient what points against another task's.

    Yu et al., 'Gradient Surgery for Multi-Task Learning', NeurIPS 2020: for every task i, and every
    other task j in random order, where g_i . g_j < 0 the part of g_i along g_j is removed; the sum
    of the results is what the shared weights follow. Heads and gates of one task keep their own
    gradient.

    With on='parameters', as in the paper, g_i are the gradients of all shared weights: the shared
    part is passed backward once for each task, the heads twice. Its modules must not recompute
    their activations (`with_cp=False`). With on='features' g_i are the gradients on the shared map;
    this costs next to nothing and resolves the conflicts on the map, not those that arise below.

    Of several processes each projects the gradients of its own samples before they are averaged.

    Args:
        tasks: see `TaskBalance`.
        on: 'parameters' or 'features'.

    Raises:
        ConfigError: `on` is neither.
    """

    def __init__(self, *, tasks: Sequence[str], on: str = 'parameters') -> None:
        super().__init__(tasks=tasks)
        if on not in ('parameters', 'features'):
            raise ConfigError(f"PCGrad.on must be 'parameters' or 'features', got {on!r}")
        self.on = on
        self.register_buffer('gradient_scale', torch.tensor(HALF_PRECISION_SCALE),
                             persistent=False)

    def branch(self, bev: Tensor) -> Dict[str, Tensor]:
        """One map for each task, cut off from the shared part or joined by the projection."""
        if not (self.training and bev.requires_grad):
            return super().branch(bev)
        if self.on == 'features':
            return dict(zip(self.tasks, _ProjectedBranches.apply(bev, len(self.tasks))))
        return {task: bev.detach().requires_grad_() for task in self.tasks}

    def balance(self, losses: LossesByTask, shared: SharedPart) -> Balanced:
        """The losses as they are; the shared weights get the projected gradient."""
        cut = self.on == 'parameters' and self.training and shared.bev.requires_grad
        if not cut:
            return Balanced(losses=losses, stats={})
        gradients = [
            self._shared_gradient(sum(losses[task].values()), shared.branches[task], shared)
            for task in self.tasks]
        projected, conflicts = project(gradients)
        scale = self.gradient_scale.clone()
        self.gradient_scale.mul_(torch.where(projected.isfinite().all(), 1.0, 0.5))
        deposit = _Deposit.apply(projected / scale, *shared.parameters)
        return Balanced(losses=dict(losses, shared=dict(projection=deposit)),
                        stats=dict(shared=dict(conflicts=conflicts)))

    def _shared_gradient(self, total: Tensor, branch: Tensor, shared: SharedPart) -> Tensor:
        """`gradient_scale` times the gradient of a task's loss by the shared weights, in a row."""
        at_map, = torch.autograd.grad(self.gradient_scale * total, [branch], retain_graph=True)
        gradients = torch.autograd.grad(shared.bev, shared.parameters, grad_outputs=at_map,
                                        retain_graph=True, allow_unused=True)
        return _flat(gradients, shared.parameters)


def project(gradients: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
    """Sum T gradients, each without what points against another one.

    Args:
        gradients: T of any one shape. Order among the others is drawn from torch's generator.

    Returns:
        The sum, and the share of pairs that pointed against each other (a scalar).
    """
    originals = [g.float() for g in gradients]
    squares = [g.square().sum().clamp(min=1e-30) for g in originals]
    total, against = torch.zeros_like(originals[0]), []
    for i, own in enumerate(originals):
        others = [j for j in range(len(originals)) if j != i]
        order = others if len(others) == 1 else [others[k] for k in torch.randperm(len(others))]
        kept = own
        for j in order:
            product = (kept * originals[j]).sum()
            kept = kept - torch.where(product < 0, product / squares[j], 0.0) * originals[j]
            against.append((own * originals[j]).sum() < 0)
        total = total + kept
    return total, torch.stack(against).float().mean()


class _ProjectedBranches(torch.autograd.Function):
    """The same map for each of T tasks; backward, the sum of their projected gradients."""

    @staticmethod
    def forward(ctx, bev: Tensor, tasks: int) -> Tuple[Tensor, ...]:
        """Return `bev` T times."""
        return tuple(bev.view_as(bev) for _ in range(tasks))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tuple[Tensor, None]:
        """Project, and sum."""
        return project(gradients)[0].to(gradients[0].dtype), None


class _Deposit(torch.autograd.Function):
    """Zero, whose gradient by the given parameters is given."""

    @staticmethod
    def forward(ctx, gradient: Tensor, *parameters: Tensor) -> Tensor:
        """Zero; `gradient` holds those of all parameters in a row."""
        ctx.save_for_backward(gradient)
        ctx.shapes = [(p.shape, p.dtype) for p in parameters]
        return gradient.new_zeros(())

    @staticmethod
    def backward(ctx, factor: Tensor) -> Tuple[Optional[Tensor], ...]:
        """Hand each parameter its part."""
        gradient, = ctx.saved_tensors
        parts = (factor * gradient).split([shape.numel() for shape, _ in ctx.shapes])
        return None, *(part.view(shape).to(dtype)
                       for part, (shape, dtype) in zip(parts, ctx.shapes))


def _flat(gradients: Sequence[Optional[Tensor]], parameters: Sequence[Tensor]) -> Tensor:
    """All gradients in a row, in float32; zeros for a parameter that has none."""
    return torch.cat([
        (torch.zeros_like(p) if g is None else g).reshape(-1).float()
        for g, p in zip(gradients, parameters)])


class GradientProbe:
    """How the tasks' gradients on the shared map relate, asked for now and then.

    Each time costs one more backward pass through the gates and heads, which does not reach the
    shared part.

    Attributes:
        due: whether to look at the next batch; taken back once that is done.
    """

    def __init__(self) -> None:
        self.due = False

    def look(self, losses: LossesByTask, branches: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Compare the tasks' gradients.

        Args:
            losses: of each task, with their graph.
            branches: the map (B, C, X, Y) that each task was given.

        Returns:
            `bev_gradient/<task>`, the norm of each task's gradient, and for each pair
            `cosine/<task>~<task>`; empty when not asked for, or where nothing is differentiated.
        """
        wanted, self.due = self.due, False
        tasks = [task for task in branches if task in losses]
        if not wanted or not all(branches[task].requires_grad for task in tasks):
            return {}
        gradients = {task: _map_gradient(sum(losses[task].values()), branches[task])
                     for task in tasks}
        norms = {task: gradient.norm() for task, gradient in gradients.items()}
        found = {f'bev_gradient/{task}': norm for task, norm in norms.items()}
        for i, first in enumerate(tasks):
            for second in tasks[i + 1:]:
                product = (gradients[first] * gradients[second]).sum()
                found[f'cosine/{first}~{second}'] = (
                    product / (norms[first] * norms[second]).clamp(min=1e-30))
        return found


def _map_gradient(total: Tensor, branch: Tensor) -> Tensor:
    half = branch.dtype == torch.float16
    scale = HALF_PRECISION_SCALE if half else 1.0
    gradient, = torch.autograd.grad(scale * total, [branch], retain_graph=True)
    return gradient.float() / scale


def shared_parameters(model: nn.Module, *, own: Sequence[str]) -> List[nn.Parameter]:
    """Trainable parameters of `model` that lie in none of the parts named `own` (prefixes)."""
    return [p for name, p in model.named_parameters()
            if p.requires_grad and not any(name.startswith(f'{part}.') for part in own)]
