"""Looking at the gradients between the backward pass and the optimizer's step.

MMEngine clips, steps and clears the gradients in one call: nothing is left to see afterwards.
`StepWatch` stands before the `step` of an optimizer wrapper, of whichever kind, and decides whether
it takes place. What it reads is one vector a step: the loss' finiteness and the norms by module.

Gradients under a loss scaler are still scaled at that point; since a norm is homogeneous, the norms
are divided by the scale. Whether a scaled gradient overflowed is the scaler's matter: it skips such
a step on its own, and has to be let do so, or its scale would never fall.
"""
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .names import module_of

UNNAMED = 'all'
MIN_SCALE = 1.0  # below it, an overflow is no longer a matter of the scale


@dataclass(frozen=True)
class StepReading:
    """One update of the weights, as it was about to happen.

    Attributes:
        total: 2-norm of the whole gradient before clipping; not finite for a bad one.
        by_module: 2-norms in the order of `StepWatch.modules`.
        factor: what clipping multiplies the gradient by; 1 where it does not bite.
        loss_finite: for each loss that was passed backward since the last update.
        gradient_finite: whether the total is.
        skipped: whether the weights were left as they are.
        overflow: whether that is a loss scaler looking for its scale, and nothing else.
        bad_modules: modules whose gradient is not finite.
        ratios: norm of the update over that of the weights, in the order of
            `StepWatch.ratio_names`; None where it was not measured.
    """

    total: float
    by_module: Sequence[float]
    factor: float
    loss_finite: Sequence[bool]
    gradient_finite: bool
    skipped: bool
    overflow: bool
    bad_modules: Sequence[str] = ()
    ratios: Optional[Tensor] = None


class StepWatch:
    """Reads every update of an optimizer wrapper, and leaves out those that would do damage.

    Args:
        model: whose parameters are named; the bare model, not a distributed wrapper.
        wrapper: an MMEngine optimizer wrapper over one optimizer.
        on_step: called with every reading, after the step or in its place.
        agree: makes a flag (a tensor, 0 or 1) the maximum over all processes, in place; not called
            with None.
    """

    def __init__(self, model: nn.Module, wrapper: Any, *,
                 on_step: Callable[[StepReading], None],
                 agree: Optional[Callable[[Tensor], None]] = None) -> None:
        self._wrapper, self._on_step, self._agree = wrapper, on_step, agree
        named = {id(p): name for name, p in model.named_parameters()}
        groups = wrapper.optimizer.param_groups
        self._parameters: List[Tensor] = [p for group in groups for p in group['params']]
        modules = [module_of(named.get(id(p), 'other')) for p in self._parameters]
        labels = [label for group, label in zip(groups, group_labels(groups, named))
                  for _ in group['params']]
        self.modules = sorted(set(modules))
        self.groups = sorted(set(labels))
        self.ratio_names = [*(f'module.{m}' for m in self.modules),
                            *(f'group.{g}' for g in self.groups)]
        self._module_index = [self.modules.index(m) for m in modules]
        self._group_index = [self.groups.index(g) for g in labels]
        self._members: Dict[Tuple, Tensor] = {}
        self._losses: List[Tensor] = []
        self._inner: Dict[str, Callable] = {}
        self._before: Dict[str, Optional[Callable]] = {}
        self.measure_update = False

    # ---- standing in front of the wrapper

    def install(self) -> None:
        """Stand before the wrapper's `backward` and `step`."""
        for name, ours in (('backward', self._backward), ('step', self._step)):
            self._inner[name] = getattr(self._wrapper, name)
            self._before[name] = vars(self._wrapper).get(name)
            # with the marks of what stands there, such as those that schedulers look for
            setattr(self._wrapper, name, wraps(self._inner[name])(partial(ours)))

    def remove(self) -> None:
        """Leave the wrapper as it was."""
        for name, before in self._before.items():
            if before is None:
                delattr(self._wrapper, name)
            else:
                setattr(self._wrapper, name, before)
        self._before.clear()

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        self._losses.append(loss.detach())
        self._inner['backward'](loss, **kwargs)

    def _step(self, **kwargs: Any) -> None:
        reading = self._read()
        if not reading.skipped:
            if self.measure_update:
                self.measure_update = False
                reading = replace(reading, ratios=self._step_and_compare(kwargs))
            else:
                self._inner['step'](**kwargs)
        elif self._scaler is not None and not reading.gradient_finite:
            self._inner['step'](**kwargs)  # leaves the weights alone, and lowers the scale
        self._on_step(reading)

    @property
    def _scaler(self) -> Optional[Any]:
        scaler = getattr(self._wrapper, 'loss_scaler', None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    # ---- reading

    @torch.no_grad()
    def _read(self) -> StepReading:
        present = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        gradients = [self._parameters[i].grad for i in present]
        device = gradients[0].device if gradients else torch.device('cpu')
        losses = torch.stack([loss.reshape(()).to(device, torch.float64)
                              for loss in self._losses]) if self._losses else None
        self._losses = []
        count = 0 if losses is None else len(losses)
        finite = torch.ones(0, dtype=torch.float64, device=device) if losses is None \
            else losses.isfinite().double()
        bad_loss = (1 - finite).amax().reshape(1) if count else finite.new_zeros(1)
        if self._agree is not None:
            self._agree(bad_loss)
        order, limit = self._clipping()
        squares, clipped = self._norms(gradients, present, device, order)
        total, *modules, clip_norm, bad, scale = torch.cat(
            [squares.sum().reshape(1).sqrt(), squares.sqrt(), clipped, bad_loss,
             self._scale(device)]).tolist()
        loss_finite = finite.tolist() if bad else [1.0] * count
        return self._judge(total / scale, [m / scale for m in modules], clip_norm / scale, limit,
                           loss_finite, bad_anywhere=bool(bad))

    def _judge(self, total: float, modules: Sequence[float], clip_norm: float,
               limit: Optional[float], loss_finite: Sequence[float], *,
               bad_anywhere: bool) -> StepReading:
        good = total == total and total != float('inf')
        factor = min(1.0, limit / clip_norm) if limit and good and clip_norm > 0 else 1.0
        overflow = not good and not bad_anywhere and self._scale_can_fall()
        return StepReading(total=total, by_module=modules, factor=factor,
                           loss_finite=[bool(f) for f in loss_finite], gradient_finite=good,
                           skipped=not good or bad_anywhere, overflow=overflow,
                           bad_modules=() if good else self._bad_modules())

    def _norms(self, gradients: List[Tensor], present: Sequence[int], device: torch.device,
               order: float) -> Tuple[Tensor, Tensor]:
        """Squared 2-norms by module (M,), and the norm (1,) that clipping looks at."""
        if not gradients:
            return (torch.zeros(len(self.modules), dtype=torch.float64, device=device),
                    torch.zeros(1, dtype=torch.float64, device=device))
        squares = norms_of(gradients).square()                                         # (P,)
        by_module = self._matrix(present, self._module_index, len(self.modules), device) @ squares
        if order == 2.0:
            return by_module, squares.sum().sqrt().reshape(1)
        return by_module, torch.linalg.vector_norm(norms_of(gradients, order), order).reshape(1)

    def _matrix(self, present: Sequence[int], index: Sequence[int], count: int,
                device: torch.device) -> Tensor:
        """(count, P) 1 where a parameter belongs; a product is the same every time, scatter is not.

        What is not finite in one module makes all of them so; `_bad_modules` then tells them apart.
        """
        key = (tuple(present), count, id(index), device)
        if key not in self._members:
            self._members = {k: v for k, v in self._members.items() if k[0] == key[0]}
            matrix = torch.zeros(count, len(present), dtype=torch.float64)
            for column, i in enumerate(present):
                matrix[index[i], column] = 1
            self._members[key] = matrix.to(device)
        return self._members[key]

    def _bad_modules(self) -> List[str]:
        return sorted({self.modules[self._module_index[i]]
                       for i, p in enumerate(self._parameters)
                       if p.grad is not None and not bool(p.grad.isfinite().all())})

    def _clipping(self) -> Tuple[float, Optional[float]]:
        """Which norm the wrapper clips by, and at which value."""
        settings: Mapping[str, Any] = getattr(self._wrapper, 'clip_grad_kwargs', None) or {}
        if 'max_norm' in settings:
            return float(settings.get('norm_type', 2.0)), float(settings['max_norm'])
        if 'clip_value' in settings:
            return float('inf'), float(settings['clip_value'])
        return 2.0, None

    def _scale(self, device: torch.device) -> Tensor:
        one = torch.ones(1, dtype=torch.float64, device=device)
        return one if self._scaler is None else self._scaler.scale(one).to(torch.float64)

    def _scale_can_fall(self) -> bool:
        if self._scaler is None or getattr(self._wrapper, '_scale_update_param', None) is not None:
            return False
        return float(self._scaler.get_scale()) > MIN_SCALE

    # ---- what a step does to the weights

    @torch.no_grad()
    def _step_and_compare(self, kwargs: Mapping[str, Any]) -> Tensor:
        """Step, and compare: the norm of the update over the norm of the weights, by name.

        NaN for what is frozen. Holds one copy of all weights meanwhile.
        """
        weights = [p.detach() for p in self._parameters]
        before = [w.clone() for w in weights]
        with torch.enable_grad():
            self._inner['step'](**kwargs)
        squares = [norms_of(before).square()]
        torch._foreach_sub_(before, weights)
        squares.append(norms_of(before).square())
        device, everything = weights[0].device, range(len(weights))
        matrix = torch.cat([
            self._matrix(everything, self._module_index, len(self.modules), device),
            self._matrix(everything, self._group_index, len(self.groups), device)])
        size, moved = (matrix @ s for s in squares)
        trained = torch.tensor([float(p.requires_grad) for p in self._parameters],
                               dtype=torch.float64, device=device)
        return torch.where((size > 0) & (matrix @ trained > 0), (moved / size).sqrt(), torch.nan)


def norms_of(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """Norm of each of P tensors: (P,) float64, on their device."""
    return torch.stack([n.to(torch.float64)
                        for n in torch._foreach_norm(list(tensors), order)])


def group_labels(groups: Sequence[Mapping[str, Any]], named: Mapping[int, str]) -> List[str]:
    """A name for each group of an optimizer: its own, `fresh` or `reused`, or that of its module.

    Groups that were split say with a true `fresh` which are new. MMEngine makes a group of every
    single parameter as soon as one is treated differently; those of one module are told as one.
    """
    if any(group.get('fresh') for group in groups):
        return [str(group.get('name') or ('fresh' if group.get('fresh') else 'reused'))
                for group in groups]
    if len(groups) == 1 and not groups[0].get('name'):
        return [UNNAMED]
    labels = []
    for group in groups:
        parameters = list(group['params'])
        own = named.get(id(parameters[0]), 'other') if parameters else 'other'
        labels.append(str(group.get('name') or module_of(own)))
    return labels
