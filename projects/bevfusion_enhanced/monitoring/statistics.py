"""What is added up over an epoch, and the measurements that come of it.

Meters take numbers or small tensors and give `{name: number}` (names: see the package). Their state
is plain data, so that it can lie in a checkpoint. Tensors stay on their device until they are asked
for: no meter waits for the device while training.
"""
from array import array
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .names import TOTAL, is_loss, read_loss_names

Measurements = Dict[str, float]
_ROW = 'total'


class LossMeter:
    """Mean, first and last of every logged value; values that are not finite are left out."""

    def __init__(self) -> None:
        self._blocks: Dict[Tuple[str, ...], Dict[str, Any]] = {}

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take the logged scalars of one step."""
        names = tuple(values)
        if not names:
            return
        device = next(iter(values.values())).device
        row = torch.stack([v.detach().reshape(()).to(device, torch.float64)
                           for v in values.values()])
        finite = row.isfinite()
        clean = torch.where(finite, row, 0.0)
        block = self._blocks.get(names)
        if block is None:
            self._blocks[names] = dict(first_step=step, last_step=step, first=clean, last=clean,
                                       sum=clean.clone(), count=finite.double())
            return
        block['last_step'] = step
        block['last'] = torch.where(finite, clean, block['last'])
        block['first'] = torch.where(finite & (block['count'] == 0), clean, block['first'])
        block['sum'] += clean
        block['count'] += finite

    def partial(self) -> Dict[str, List[float]]:
        """(sum, count, first step, first, last step, last) of everything, for `merge`."""
        merged: Dict[str, List[float]] = {}
        for names, block in self._read().items():
            for name, *row in zip(names, block['sum'], block['count'], block['first'],
                                  block['last']):
                total, count, first, last = row
                if count:
                    merge_into(merged, {name: [total, count, block['first_step'], first,
                                               block['last_step'], last]})
        return merged

    def _read(self) -> Dict[Tuple[str, ...], Dict[str, Any]]:
        return {names: {key: value.tolist() if torch.is_tensor(value) else value
                        for key, value in block.items()}
                for names, block in self._blocks.items()}

    def state(self) -> List[Dict[str, Any]]:
        """Plain data."""
        return [dict(block, names=list(names)) for names, block in self._read().items()]

    def load(self, state: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Go on from `state`."""
        self._blocks = {tuple(block['names']): {
            key: torch.tensor(value, dtype=torch.float64, device=device)
            if isinstance(value, list) else value
            for key, value in block.items() if key != 'names'} for block in state}

    def reset(self) -> None:
        """Forget everything."""
        self._blocks = {}


def merge_into(merged: Dict[str, List[float]], other: Mapping[str, Sequence[float]]) -> None:
    """Add one `partial` to another, such as that of another process."""
    for name, (total, count, first_step, first, last_step, last) in other.items():
        known = merged.setdefault(name, [0.0, 0.0, first_step, first, last_step, last])
        known[0] += total
        known[1] += count
        if first_step < known[2]:
            known[2:4] = [first_step, first]
        if last_step > known[4]:
            known[4:6] = [last_step, last]


def measure_losses(partial: Mapping[str, Sequence[float]]) -> Measurements:
    """Measurements of an epoch's losses and of the cosines that were logged among the stats."""
    means = {name: row[0] / row[1] for name, row in partial.items()}
    found: Measurements = {}
    for name, row in partial.items():
        if name == TOTAL or is_loss(name):
            key = 'losses.total' if name == TOTAL else f'losses.term.{name}'
            found.update({f'{key}.mean': means[name], f'{key}.first': row[3],
                          f'{key}.last': row[5]})
    found.update(_by_task(means))
    return found


def _by_task(means: Mapping[str, float]) -> Measurements:
    names = read_loss_names(means)
    main: Dict[str, float] = {}
    auxiliary: Dict[str, Dict[str, float]] = {}
    layers: Dict[str, Dict[int, float]] = {}
    for name, loss in names.items():
        if loss.weighting:
            continue
        main.setdefault(loss.task, 0.0)
        if loss.auxiliary:
            by_branch = auxiliary.setdefault(loss.task, {})
            by_branch[loss.branch] = by_branch.get(loss.branch, 0.0) + means[name]
        else:
            main[loss.task] += means[name]
        if loss.layer is not None:
            by_layer = layers.setdefault(loss.task, {})
            by_layer[loss.layer] = by_layer.get(loss.layer, 0.0) + means[name]
    extra = {task: sum(by_branch.values()) for task, by_branch in auxiliary.items()}
    whole = sum(main.values()) + sum(extra.values())
    found: Measurements = {}
    if extra and sum(main.values()) > 0:
        found['losses.auxiliary_ratio'] = sum(extra.values()) / sum(main.values())
    for task, value in main.items():
        total = value + extra.get(task, 0.0)
        key = f'losses.task.{task}'
        found.update({f'{key}.mean': total, f'{key}.main': value})
        if whole > 0:
            found[f'{key}.share'] = total / whole
        if task in extra:
            found[f'{key}.auxiliary'] = extra[task]
            found.update({f'{key}.auxiliary.{branch}': mean
                          for branch, mean in auxiliary[task].items()})
            if value > 0:
                found[f'{key}.auxiliary_ratio'] = extra[task] / value
    for task, by_layer in layers.items():
        found.update({f'losses.layer.{task}.{i}': mean for i, mean in sorted(by_layer.items())})
        first, last = by_layer[min(by_layer)], by_layer[max(by_layer)]
        if len(by_layer) > 1 and last > 0:
            found[f'losses.depth.{task}'] = first / last
    return found


class CosineMeter:
    """Cosines between tasks' gradients, which are looked at now and then."""

    def __init__(self) -> None:
        self._values: Dict[str, List[Any]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take those of the logged scalars that are cosines."""
        for name, value in values.items():
            _, found, pair = name.partition('cosine/')
            if found:
                self._values.setdefault(pair, []).append(value.detach())

    def values(self) -> Dict[str, List[float]]:
        """The finite values seen, by pair of tasks."""
        self._values = {pair: torch.stack([torch.as_tensor(v, dtype=torch.float64).cpu()
                                           for v in seen]).tolist()
                        for pair, seen in self._values.items() if seen}
        return {pair: [v for v in seen if np.isfinite(v)] for pair, seen in self._values.items()}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `values` gave."""
        self._values = {pair: list(seen) for pair, seen in state.items()}

    def reset(self) -> None:
        """Forget everything."""
        self._values = {}


def measure_cosines(values: Mapping[str, Sequence[float]]) -> Measurements:
    """Mean, share below zero, and number of looks."""
    found: Measurements = {}
    for pair, seen in values.items():
        if len(seen):
            found.update({f'cosine.{pair}.mean': float(np.mean(seen)),
                          f'cosine.{pair}.negative_share': float(np.mean(np.less(seen, 0))),
                          f'cosine.{pair}.looks': float(len(seen))})
    return found


class GradientMeter:
    """Norms of the gradient at every update, in total and by module, before clipping.

    Args:
        modules: names of the modules, in the order of the norms.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = list(modules)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._steps = array('q')
        self._norms = array('f')           # a row for each step: total, then modules
        self._factors = array('f')         # of the clipping; 1 where it did not bite
        self.nonfinite = self.overflow = self.longest_row = 0

    def add(self, step: int, total: float, by_module: Sequence[float], factor: float) -> None:
        """Take the norms of one update, and what clipping multiplied the gradient by."""
        self._steps.append(step)
        self._norms.append(total)
        self._norms.extend(by_module)
        self._factors.append(factor)

    @property
    def newest(self) -> Dict[str, float]:
        """Norms of the last update, in total and by module; empty before the first."""
        if not self._steps:
            return {}
        return dict(zip([_ROW, *self.modules], self._norms[-(len(self.modules) + 1):]))

    def measure(self, *, warn_norm: float) -> Measurements:
        """Measurements of all steps that were added.

        Args:
            warn_norm: total norm above which a step is counted as over it.
        """
        tried = len(self._steps) + self.nonfinite + self.overflow
        found: Measurements = {'steps.updates': float(len(self._steps)),
                               'steps.nonfinite': float(self.nonfinite),
                               'steps.overflow': float(self.overflow),
                               'steps.overflow_share': self.overflow / max(tried, 1),
                               'steps.longest_row': float(self.longest_row)}
        if not self._steps:
            return found
        norms = np.asarray(self._norms).reshape(len(self._steps), -1).astype(np.float64)
        squares = np.square(norms)
        for column, name in enumerate([_ROW, *self.modules]):
            key = f'gradients.{name}' if name == _ROW else f'gradients.module.{name}'
            found.update(self._describe(key, norms[:, column]))
            if name != _ROW:
                found[f'{key}.share'] = float(
                    squares[:, column].sum() / max(squares[:, 0].sum(), 1e-30))
        found['gradients.total.share_over_warn'] = float(np.mean(norms[:, 0] > warn_norm))
        factors = np.asarray(self._factors)
        bitten = factors[factors < 1]
        found['gradients.clipped.share'] = len(bitten) / len(factors)
        if len(bitten):
            found['gradients.clipped.mean_factor'] = float(bitten.mean())
            found['gradients.clipped.strongest_factor'] = float(bitten.min())
        return found

    def _describe(self, key: str, values: np.ndarray) -> Measurements:
        lowest, highest = int(values.argmin()), int(values.argmax())
        return {f'{key}.steps': float(len(values)), f'{key}.median': float(np.median(values)),
                f'{key}.min': float(values[lowest]), f'{key}.min_step': float(self._steps[lowest]),
                f'{key}.max': float(values[highest]),
                f'{key}.max_step': float(self._steps[highest])}

    def state(self) -> Dict[str, Any]:
        """Plain data and tensors."""
        return dict(modules=self.modules, steps=torch.tensor(self._steps, dtype=torch.int64),
                    norms=torch.tensor(self._norms, dtype=torch.float32),
                    factors=torch.tensor(self._factors, dtype=torch.float32),
                    nonfinite=self.nonfinite, overflow=self.overflow, longest_row=self.longest_row)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; from nothing where the modules are others."""
        self.reset()
        if list(state['modules']) != self.modules:
            return
        self._steps.extend(state['steps'].tolist())
        self._norms.extend(state['norms'].tolist())
        self._factors.extend(state['factors'].tolist())
        self.nonfinite, self.overflow = state['nonfinite'], state['overflow']
        self.longest_row = state['longest_row']


class RatioMeter:
    """Norm of an update over the norm of what it updates, by name, at the steps measured.

    Args:
        names: in the order of the ratios, such as `module.fuser`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._rows: List[Tensor] = []

    def add(self, ratios: Tensor) -> None:
        """Take the ratios of one update, on any device; NaN where there is nothing to update."""
        self._rows.append(ratios.detach())

    def measure(self) -> Measurements:
        """Mean and maximum of each."""
        if not self._rows:
            return {}
        rows = torch.stack([row.double().cpu() for row in self._rows]).numpy()
        found: Measurements = {}
        for name, column in zip(self.names, rows.T):
            seen = column[np.isfinite(column)]
            if len(seen):
                found[f'updates.{name}.mean'] = float(seen.mean())
                found[f'updates.{name}.max'] = float(seen.max())
        return found

    def state(self) -> Dict[str, Any]:
        """Plain data."""
        return dict(names=self.names, rows=[row.tolist() for row in self._rows])

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from `state`; from nothing where the names are others."""
        same = list(state['names']) == self.names
        self._rows = [torch.tensor(row, dtype=torch.float64, device=device)
                      for row in state['rows']] if same else []

    def reset(self) -> None:
        """Forget everything."""
        self._rows = []


class RateMeter:
    """First, last and highest learning rate of each group of parameters."""

    def __init__(self) -> None:
        self.rates: Dict[str, List[float]] = {}

    def add(self, rates: Mapping[str, float]) -> None:
        """Take the rates at one step."""
        for name, rate in rates.items():
            known = self.rates.setdefault(name, [rate, rate, rate])
            known[1], known[2] = rate, max(known[2], rate)

    def measure(self) -> Measurements:
        """Measurements of all steps that were added."""
        return {f'learning_rate.{name}.{kind}': value for name, row in self.rates.items()
                for kind, value in zip(('first', 'last', 'max'), row)}

    def reset(self) -> None:
        """Forget everything."""
        self.rates = {}


def compare_with_previous(now: Mapping[str, float], before: Optional[Mapping[str, float]], *,
                          resumed: bool) -> Measurements:
    """How losses and gradients moved since the epoch before; empty for the first epoch.

    Args:
        now: this epoch's measurements.
        before: the previous epoch's, or None.
        resumed: whether the run was resumed since.
    """
    found: Measurements = {}
    if not before:
        return found
    for source, target in (('losses.total.mean', 'losses.total.rise'),
                           ('gradients.total.median', 'gradients.growth')):
        if before.get(source, 0) > 0 and source in now:
            found[target] = now[source] / before[source]
    if resumed and 'gradients.growth' in found:
        found['gradients.after_resume'] = found['gradients.growth']
    return found
