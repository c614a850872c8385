"""Statistics of weights, by which damage shows, and buffers that a bad batch must not poison.

A batch whose forward pass is not finite leaves its mark in the running statistics of batch norms,
even where the step that follows is skipped: evaluation would be broken from then on.
"""
import math
from typing import Dict, List, Mapping, NamedTuple

import torch
from torch import Tensor, nn

from .step_watch import norms_of

# Root mean square and largest magnitude of a tensor.
TensorStatistics = List[float]
JUMP = 10.0         # factor by which no tensor of a healthy run changes from epoch to epoch
NOTABLE = 1e-2      # root mean square below which a factor means nothing
EXACT = 1e-3        # relative difference of weights that should be the very same
_RUNNING = ('running_mean', 'running_var')  # these begin at 0 and 1, wherever they belong


class WeightChange(NamedTuple):
    """A tensor that is not what it was.

    Attributes:
        name: of the tensor in the state dict.
        kind: 'not finite', 'zeroed', 'jumped' or 'differs'.
        before: root mean square before.
        now: root mean square now.
    """

    name: str
    kind: str
    before: float
    now: float

    def __str__(self) -> str:
        """One line."""
        return f'{self.name} {self.kind}: root mean square {self.before:.3g} -> {self.now:.3g}'


@torch.no_grad()
def statistics_of(model: nn.Module) -> Dict[str, TensorStatistics]:
    """[root mean square, largest magnitude] of every floating-point tensor that has elements."""
    tensors = {name: value for name, value in model.state_dict().items()
               if value.is_floating_point() and value.numel()}
    if not tensors:
        return {}
    values = list(tensors.values())
    rows = torch.stack([norms_of(values), norms_of(values, math.inf)], dim=1).tolist()
    return {name: [norm / math.sqrt(tensor.numel()), largest]
            for (name, tensor), (norm, largest) in zip(tensors.items(), rows)}


def weight_changes(before: Mapping[str, TensorStatistics], now: Mapping[str, TensorStatistics], *,
                   same: bool = False) -> List[WeightChange]:
    """Tensors that are not finite, or changed as training does not change them.

    Args:
        before: statistics of an earlier moment; tensors that only one side has are not compared.
        now: statistics of this moment.
        same: no step lies between: any difference counts.
    """
    changes = []
    for name, (size, largest) in now.items():
        old = before.get(name, [math.nan, math.nan])[0]
        if not (math.isfinite(size) and math.isfinite(largest)):
            changes.append(WeightChange(name, 'not finite', old, size))
        elif not math.isfinite(old):
            continue
        elif size == 0 and old > NOTABLE:
            changes.append(WeightChange(name, 'zeroed', old, size))
        elif not name.endswith(_RUNNING) and max(size, old) > NOTABLE and min(size, old) > 0 and (
                max(size, old) / min(size, old) > JUMP):
            changes.append(WeightChange(name, 'jumped', old, size))
        elif same and abs(size - old) > EXACT * max(size, old):
            changes.append(WeightChange(name, 'differs', old, size))
    return changes


class BufferGuard:
    """Keeps a copy of the running statistics, for when a batch poisons them.

    Args:
        model: the bare model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers: Dict[str, Tensor] = {
            name: buffer for name, buffer in model.named_buffers()
            if buffer is not None and name.endswith(_RUNNING)}
        self._kept = {name: buffer.clone() for name, buffer in self._buffers.items()}

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them as they are now; call it after steps that went well."""
        if self._buffers:
            torch._foreach_copy_(list(self._kept.values()), list(self._buffers.values()))

    @torch.no_grad()
    def restore(self) -> List[str]:
        """Put back those that are not finite any more, and name them; waits for the device."""
        names = list(self._buffers)
        if not names:
            return []
        sizes = norms_of(list(self._buffers.values()), math.inf).isfinite().tolist()
        poisoned = [name for name, finite in zip(names, sizes) if not finite]
        for name in poisoned:
            self._buffers[name].copy_(self._kept[name])
        return poisoned

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether all of them are finite; waits for the device."""
        values = list(self._buffers.values())
        return not values or bool(norms_of(values, math.inf).isfinite().all())
