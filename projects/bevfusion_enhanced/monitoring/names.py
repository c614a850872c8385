"""What the names of parameters and losses say: which module, which task, main or auxiliary."""
import re
from typing import Dict, Iterable, NamedTuple, Optional

_DEPTHS = {'encoders': 3, 'decoder': 2, 'task_decoders': 3, 'heads': 2, 'task_gca': 2}
_LAYER = re.compile(r'^(?:layer|d)(\d+)$')
_WEIGHTING = ('uncertainty', 'projection')  # terms of a task balance, no error of a prediction
TOTAL = 'loss'


class LossName(NamedTuple):
    """A logged loss.

    Attributes:
        task: whose it is; `model` where the name does not say.
        term: the rest of the name.
        layer: index of the decoder layer, or None.
        auxiliary: whether it only helps training: of a branch named aux, or of a layer that is not
            the last one.
        weighting: whether it belongs to how tasks are weighed, not to a prediction.
    """

    task: str
    term: str
    layer: Optional[int]
    auxiliary: bool
    weighting: bool

    @property
    def branch(self) -> str:
        """What an auxiliary loss hangs on: `layer<i>` or the branch's own name."""
        if self.layer is not None:
            return f'layer{self.layer}'
        return next((part for part in self.term.split('/') if part.startswith('aux')), 'main')


def module_of(parameter: str) -> str:
    """The module that a parameter is counted under, such as `encoders.camera.backbone`."""
    parts = parameter.split('.')[:-1] or parameter.split('.')
    return '.'.join(parts[:_DEPTHS.get(parts[0], 1)])


def is_loss(name: str) -> bool:
    """Whether a logged value is a part of the total loss, by MMEngine's rule."""
    return 'loss' in name and name != TOTAL


def read_loss_names(names: Iterable[str]) -> Dict[str, LossName]:
    """Read the losses among logged names; whether a layer is the last is judged by all of them."""
    parsed = {name: _split(name) for name in names if is_loss(name)}
    last: Dict[str, int] = {}
    for task, _, layer in parsed.values():
        if layer is not None:
            last[task] = max(last.get(task, 0), layer)
    return {name: LossName(
        task=task, term=term, layer=layer, weighting=term.split('/')[-1] in _WEIGHTING,
        auxiliary=(any(part.startswith('aux') for part in term.split('/'))
                   or (layer is not None and layer < last[task])))
        for name, (task, term, layer) in parsed.items()}


def _split(name: str) -> tuple:
    parts = name.split('/')
    if parts[0] != TOTAL or len(parts) < 2:
        return 'model', name, None
    layers = [int(found.group(1)) for found in map(_LAYER.match, parts[2:]) if found]
    return parts[1], '/'.join(parts[2:]), layers[0] if layers else None
