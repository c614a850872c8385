"""The two layouts of a sparse convolution's weight, told apart by shape.

spconv 1.x stores (kx, ky, kz, in, out), spconv 2.x and this project (out, kx, ky, kz, in). What a
state dict's `_metadata` says about it is not used: it is lost whenever a state dict is rebuilt,
and MMDetection3D, which goes by it, then permutes weights that were right. Permuting gives a view.
"""
from collections import Counter, OrderedDict
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .state_dict import StateDict

Shape = Tuple[int, ...]

SPARSE_PREFIX = 'encoders.lidar.backbone.'
V1, V2 = 'spconv 1.x', 'spconv 2.x'
_LARGEST_KERNEL = 7  # along one axis, where no model says which axes those are
_NAMED = 3


class Layout(NamedTuple):
    """How a file stores its sparse weights.

    Attributes:
        of_layer: V1 or V2 for each sparse weight.
        undecided: Layers whose shape fits both, decided by the others.
        lone: Whether no layer's shape could decide, so that the default was taken.
    """

    of_layer: Mapping[str, str]
    undecided: Tuple[str, ...]
    lone: bool

    @property
    def main(self) -> Optional[str]:
        """The layout of most layers; None without sparse weights."""
        return _most(self.of_layer.values())


def find_layout(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], *,
                default: str = V2) -> Layout:
    """Decide the layout of each sparse weight.

    A layer is decided by its own shape where only one layout gives the model's. The rest (both
    fit, or the model has no such layer) goes with most of the file's other layers.

    Args:
        weights: A checkpoint's weights under our names.
        model: The model's state dict; where it lacks a layer the shape itself is judged.
        default: For a file in which no shape decides.
    """
    fitting: Dict[str, List[str]] = OrderedDict()
    for name, value in weights.items():
        if _is_sparse(name, value):
            target = model.get(name)
            fitting[name] = (_fits_alone(tuple(value.shape)) if not torch.is_tensor(target)
                             else _fits(tuple(value.shape), tuple(target.shape)))
    common = _most([fits[0] for fits in fitting.values() if len(fits) == 1])
    return Layout(
        of_layer={name: fits[0] if len(fits) == 1 else common or default
                  for name, fits in fitting.items()},
        undecided=tuple(name for name, fits in fitting.items() if len(fits) == 2),
        lone=bool(fitting) and common is None)


def to_spconv2(weights: StateDict, layout: Layout) -> StateDict:
    """All weights, the sparse ones as (out, kx, ky, kz, in)."""
    return OrderedDict((name, permute_to_spconv2(value) if layout.of_layer.get(name) == V1
                        else value) for name, value in weights.items())


def to_spconv1(weights: StateDict) -> StateDict:
    """All weights, ours of the sparse encoder as (kx, ky, kz, in, out)."""
    return OrderedDict((name, value.permute(1, 2, 3, 4, 0) if _is_sparse(name, value) else value)
                       for name, value in weights.items())


def permute_to_spconv2(value: Tensor) -> Tensor:
    """(kx, ky, kz, in, out) as (out, kx, ky, kz, in), a view."""
    return value.permute(4, 0, 1, 2, 3)


def notes_on(layout: Layout) -> List[str]:
    """What a person should know about the layout, one phrase each."""
    count = sum(kind == V1 for kind in layout.of_layer.values())
    notes = [f'sparse weights in the layout of {V1}, permuted ({count} layers)'] if count else []
    if 0 < count < len(layout.of_layer):
        notes.append(f'{len(layout.of_layer) - count} sparse layers are in that of {V2} already')
    if layout.undecided:
        why = 'nothing tells otherwise' if layout.lone else 'most other layers are in it'
        notes.append(f'the shape of {_names(layout.undecided)} fits both layouts of spconv; read '
                     f'as that of {layout.of_layer[layout.undecided[0]]}, because {why}')
    return notes


def is_z_first(weights: Mapping[str, Tensor], name: str) -> bool:
    """Whether an encoder's last convolution folds the first axis: then that one is z, not x."""
    value = weights.get(name)
    shape = tuple(value.shape) if torch.is_tensor(value) else ()
    return len(shape) == 5 and (3, 1, 1) in (shape[:3], shape[1:4])


def _is_sparse(name: str, value: object) -> bool:
    return torch.is_tensor(value) and value.dim() == 5 and name.startswith(SPARSE_PREFIX)


def _fits(shape: Shape, target: Shape) -> List[str]:
    kinds = {V1: shape[-1:] + shape[:-1], V2: shape}
    return [kind for kind, permuted in kinds.items() if permuted == target]


def _fits_alone(shape: Shape) -> List[str]:
    kernels = {V1: shape[:3], V2: shape[1:4]}
    return [kind for kind, kernel in kernels.items() if _is_kernel(kernel)]


def _is_kernel(extent: Shape) -> bool:
    """Whether three axes may be those of a kernel: a small cube, or a column along z."""
    return (max(extent) <= _LARGEST_KERNEL and extent[0] == extent[1]
            and extent[0] in (1, extent[2]))


def _most(kinds: Iterable[str]) -> Optional[str]:
    ranking = Counter(kinds).most_common(1)
    return ranking[0][0] if ranking else None


def _names(names: Sequence[str]) -> str:
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(names[:_NAMED]) + more
