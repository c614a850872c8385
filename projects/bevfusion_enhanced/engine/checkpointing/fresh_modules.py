"""Training of fresh modules beside reused ones: their own rate, a freeze, a warm-up.

After a load in part, some tensors come from a checkpoint (reused) and some are new (fresh). The
rates are told apart by parameter groups: every group of the optimizer is split in two, so that
`paramwise_cfg` keeps its say within each part.
"""
from dataclasses import dataclass
from typing import Any, Collection, Dict, List, Optional, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from ...errors import ConfigError
from ..resume.optimizer_state import names_of, wrappers_of
from ..resume.schedule_state import schedulers_of
from .checkpoint_saving import SafeCheckpointHook

_FRESH = 'fresh'  # marks a parameter group
_DDP_OPTIONS = ('device_ids', 'broadcast_buffers', 'find_unused_parameters', 'static_graph',
                'gradient_as_bucket_view')


@dataclass(frozen=True)
class FreshOptions:
    """How fresh modules train; nothing is done by default.

    Attributes:
        lr_mult: Their rate, as a multiple of the rate that they would have.
        freeze_epochs: Epochs during which everything reused stands still.
        warmup_iters: Iterations over which their rate rises linearly to its full value.
    """

    lr_mult: float = 1.
    freeze_epochs: int = 0
    warmup_iters: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range, under the name that a config gives it."""
        for name, option, least in (('fresh_lr_mult', self.lr_mult, 0),
                                    ('freeze_reused_epochs', self.freeze_epochs, -1),
                                    ('fresh_warmup_iters', self.warmup_iters, -1)):
            if isinstance(option, bool) or not isinstance(option, (int, float)) or option <= least:
                raise ConfigError(f'PartialLoadCheckpointHook.{name} is {option!r}; give a number '
                                  f'{"above 0" if least == 0 else "of 0 or more"}')

    @property
    def active(self) -> bool:
        """Whether anything is asked for."""
        return self != FreshOptions()

    @property
    def splits_groups(self) -> bool:
        """Whether fresh parameters need parameter groups of their own."""
        return self.lr_mult != 1 or self.warmup_iters > 0


def split_groups(runner: Runner, model: nn.Module, fresh: Collection[str], *, lr_mult: float
                 ) -> None:
    """Split every parameter group into reused and fresh, and multiply the rate of the fresh.

    The reused groups come first, each part in the order it had. Schedulers, which keep one value
    for each group, are told.

    Args:
        runner: With optimizers and schedulers built and no step taken.
        model: The model without its wrapper.
        fresh: Names of the fresh tensors.
        lr_mult: See `FreshOptions`.
    """
    schedulers = schedulers_of(runner)
    for key, wrapper in wrappers_of(runner.optim_wrapper).items():
        _split(wrapper, names_of(wrapper, model), set(fresh), lr_mult, schedulers.get(key, []))


def group_lines(optim_wrapper: OptimWrapper, model: nn.Module, fresh: Collection[str], *,
                frozen: Collection[str] = ()) -> List[str]:
    """A line for each kind of parameter group: rate at full height, tensors, parameters."""
    counts: Dict[Tuple[str, ...], List[int]] = {}
    for key, wrapper in wrappers_of(optim_wrapper).items():
        for group, names in zip(wrapper.optimizer.param_groups, names_of(wrapper, model),
                                strict=True):
            rate, decay = group.get('initial_lr', group['lr']), group.get('weight_decay', 0)
            for name, parameter in zip(names, group['params'], strict=True):
                part = 'fresh' if name in fresh else 'reused'
                part += ', frozen' if name in frozen else ''
                row = (key, part, f'lr {rate:.4g}', f'weight decay {decay:.4g}')
                total = counts.setdefault(row, [0, 0])
                total[0] += 1
                total[1] += parameter.numel()
    return [f'parameter group {" ".join(filter(None, (key, part)))}: {rate}, {decay}, '
            f'{tensors} tensors, {parameters:,} parameters'
            for (key, part, rate, decay), (tensors, parameters) in counts.items()]


class FreshModulesHook(Hook):
    """Freezes what was reused, warms up what is fresh. Made by `PartialLoadCheckpointHook`.

    Everything follows from the names and the iteration, so a resumed run goes on in the middle.
    It comes before every other hook: schedulers never see a rate that is warming up.

    Args:
        options: At least one of them set.
        model: The model without its wrapper.
        fresh: Names of the fresh tensors, buffers included.
    """

    priority = 'VERY_HIGH'

    def __init__(self, *, options: FreshOptions, model: nn.Module, fresh: Collection[str]) -> None:
        self.options = options
        self.model = model
        self.fresh = frozenset(fresh)
        self._frozen: Dict[str, nn.Parameter] = {}
        self._norms: List[nn.Module] = []
        self._rates: List[Tuple[Dict[str, Any], float]] = []

    def before_train(self, runner: Runner) -> None:
        """Freeze, unless the time is over, and tell about the groups."""
        if self._epoch(runner) < self.options.freeze_epochs:
            self._freeze(runner)
        for line in group_lines(runner.optim_wrapper, self.model, self.fresh, frozen=self._frozen):
            runner.logger.info(line)

    def before_train_epoch(self, runner: Runner) -> None:
        """Release at the start of an epoch."""
        self._release_when_due(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep frozen norms still, which `model.train()` wakes, and lower warming rates."""
        if self._frozen:
            self._release_when_due(runner)  # loops by iteration have no epochs of their own
        for norm in self._norms:
            norm.eval()
        factor = min((runner.iter + 1) / max(self.options.warmup_iters, 1), 1.)
        for wrapper in wrappers_of(runner.optim_wrapper).values():
            groups = [group for group in wrapper.optimizer.param_groups if group.get(_FRESH)]
            if factor < 1:
                self._rates += [(group, group['lr']) for group in groups]
                for group in groups:
                    group['lr'] *= factor
            if groups:
                runner.message_hub.update_scalar('train/fresh_lr', groups[0]['lr'])

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        """Give the schedulers back the rates that they set."""
        for group, rate in self._rates:
            group['lr'] = rate
        self._rates = []

    def _freeze(self, runner: Runner) -> None:
        reused = {name: parameter for name, parameter in self.model.named_parameters()
                  if name not in self.fresh and parameter.requires_grad}
        if not any(parameter.requires_grad and name in self.fresh
                   for name, parameter in self.model.named_parameters()):
            runner.logger.warning('freeze_reused_epochs: nothing is fresh, so nothing is frozen')
            return
        self._frozen = reused
        self._norms = [module for name, module in self.model.named_modules()
                       if isinstance(module, _NormBase) and not self._holds_fresh(name, module)]
        for parameter in reused.values():
            parameter.requires_grad_(False)
            parameter.grad = None  # so that optimizers pass it over, weight decay included
        _wrap_again(runner)
        runner.logger.info(f'frozen until epoch {self.options.freeze_epochs}: {len(reused)} reused '
                           f'parameters and {len(self._norms)} norms')

    def _release_when_due(self, runner: Runner) -> None:
        if not self._frozen or self._epoch(runner) < self.options.freeze_epochs:
            return
        for parameter in self._frozen.values():
            parameter.requires_grad_(True)
        self.model.train()  # a backbone may keep norms of its own still
        runner.logger.info(f'released after epoch {self.options.freeze_epochs}: '
                           f'{len(self._frozen)} reused parameters and {len(self._norms)} norms')
        self._frozen, self._norms = {}, []
        _wrap_again(runner)

    def _holds_fresh(self, name: str, module: nn.Module) -> bool:
        return any(f'{name}.{key}' in self.fresh for key in module.state_dict())

    @staticmethod
    def _epoch(runner: Runner) -> int:
        """Whole epochs trained, also where a loop counts iterations alone."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            return runner.epoch
        return runner.iter // len(runner.train_dataloader)


def _split(wrapper: OptimWrapper, names: List[List[str]], fresh: Collection[str], lr_mult: float,
           schedulers: List[_ParamScheduler]) -> None:
    groups = wrapper.optimizer.param_groups
    reused_groups, fresh_groups = [], []
    for index, (group, part) in enumerate(zip(groups, names, strict=True)):
        for chosen, is_fresh in ((reused_groups, False), (fresh_groups, True)):
            inside = [parameter for parameter, name in zip(group['params'], part, strict=True)
                      if (name in fresh) == is_fresh]
            if inside:
                chosen.append((index, {**group, 'params': inside}))
    for _, group in fresh_groups:
        group[_FRESH] = True
        for key in [key for key in group if key == 'lr' or key.endswith('_lr')]:
            group[key] *= lr_mult
    origins = [index for index, _ in reused_groups + fresh_groups]
    if wrapper.base_param_settings is not None:
        origins.append(len(groups))
    elif len(origins) > 1:
        wrapper.base_param_settings = {**groups[0], 'params': torch.tensor([0.])}
        origins.append(0)
    for scheduler in schedulers:
        _spread(scheduler, origins, len(reused_groups), len(fresh_groups), lr_mult)
    groups[:] = [group for _, group in reused_groups + fresh_groups]


def _spread(scheduler: _ParamScheduler, origins: List[int], reused: int, fresh: int,
            lr_mult: float) -> None:
    """Give a scheduler one value for each group, from that of the group it was split off."""
    factors = [lr_mult if reused <= place < reused + fresh and scheduler.param_name == 'lr' else 1
               for place in range(len(origins))]
    for name in ('base_values', '_last_value'):
        old = getattr(scheduler, name)
        setattr(scheduler, name, [old[index] * factor
                                  for index, factor in zip(origins, factors, strict=True)])
    if hasattr(scheduler, 'min_values'):
        scheduler.min_values = [scheduler.min_values[index] for index in origins]


def _wrap_again(runner: Runner) -> None:
    """Distributed training fixes at its start which parameters get gradients: start it again.

    Raises:
        ConfigError: The model is wrapped in something else than DistributedDataParallel.
    """
    wrapped = runner.model
    if not is_model_wrapper(wrapped):
        return
    if not isinstance(wrapped, DistributedDataParallel):
        raise ConfigError(f'freeze_reused_epochs works with DistributedDataParallel, not with '
                          f'{type(wrapped).__name__}; leave it out')
    for hook in runner.hooks:  # all processes get the weights of the first anew
        if isinstance(hook, SafeCheckpointHook):
            hook.wait_for_copy()
    options = {name: getattr(wrapped, name) for name in _DDP_OPTIONS if hasattr(wrapped, name)}
    if hasattr(wrapped, 'detect_anomalous_params'):
        options['detect_anomalous_params'] = wrapped.detect_anomalous_params
    runner.model = type(wrapped)(module=wrapped.module, **options)
