"""What is in a checkpoint, and what differs between two.

Files are looked through in pieces (`mapped_memory`), so a file of any size takes little memory.
Parameters are told from buffers by name and type, because a file does not say which is which.
"""
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .config_text import parse_config_text
from .fingerprint import META_KEY, class_lists_of, require_readable
from .finite import count_not_finite
from .geometry import lookup
from .mapped_memory import MappedFile, scan
from .matching import Shape, module_of
from .naming import Origin, recognise, translate
from .state_dict import StateDict, unwrap
from .storage import PathLike, read_checkpoint

NEEDED_TO_RESUME = ('meta', 'optimizer', 'message_hub')
_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')
_OPTIMIZERS = (({'exp_avg', 'exp_avg_sq'}, 'Adam or AdamW'), ({'momentum_buffer'}, 'SGD'),
               ({'square_avg'}, 'RMSprop'))
_TOLD = ('epoch', 'iter', 'time', 'seed', 'experiment_name', 'mmengine_version')


@dataclass(frozen=True)
class ModuleContent:
    """The tensors of one module.

    Attributes:
        module: Its name, as reports file tensors.
        tensors: Number of tensors.
        parameters: Number of learnable values.
        bytes: Of all its tensors.
        dtypes: Types of its tensors, without repetition.
        nan: Number of values that are NaN.
        inf: Number of values that are infinite.
    """

    module: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: Tuple[str, ...]
    nan: int
    inf: int


@dataclass(frozen=True)
class OptimizerContent:
    """One optimizer's state.

    Attributes:
        name: Its name among several; empty for the only one.
        kind: Its class where the file says it, otherwise what its state looks like.
        groups: Number of parameter groups.
        parameters: Number of parameters that have a state.
        rates: Learning rates of the groups, without repetition.
    """

    name: str
    kind: str
    groups: int
    parameters: int
    rates: Tuple[float, ...]


@dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint.

    Attributes:
        path: The file.
        size: Of the file, in bytes.
        origin: Where it comes from.
        notes: Which weights of it are looked at, where it holds several.
        metadata: What it says of itself, as text by name.
        entries: Names of what it holds beside weights and metadata.
        optimizers: Their states.
        lacking: What it would need so that training can go on from it; nothing where it can.
        modules: Its weights, in the order of the file.
    """

    path: str
    size: int
    origin: Origin
    notes: Tuple[str, ...]
    metadata: Mapping[str, str]
    entries: Tuple[str, ...]
    optimizers: Tuple[OptimizerContent, ...]
    lacking: Tuple[str, ...]
    modules: Tuple[ModuleContent, ...]

    @property
    def not_finite(self) -> int:
        """Number of values that are NaN or infinite."""
        return sum(module.nan + module.inf for module in self.modules)


@dataclass(frozen=True)
class ModuleDifference:
    """How far one module's values are apart in two checkpoints.

    Attributes:
        module: Its name.
        tensors: Number of tensors of equal name and shape in both.
        changed: How many of them hold other values.
        relative: Norm of the difference over the norm of the first one's floating point values;
            infinite where those are all 0, NaN where there is a NaN.
        largest: Largest absolute difference of two values.
    """

    module: str
    tensors: int
    changed: int
    relative: float
    largest: float


@dataclass(frozen=True)
class Differences:
    """What differs between the weights of two checkpoints, under our names.

    Attributes:
        only_first: Names that only the first has.
        only_second: Names that only the second has.
        shapes: (name, first, second) of tensors of other shapes.
        dtypes: (name, first, second) of tensors of other types.
        modules: Differences of values, by module.
    """

    only_first: Tuple[str, ...]
    only_second: Tuple[str, ...]
    shapes: Tuple[Tuple[str, Shape, Shape], ...]
    dtypes: Tuple[Tuple[str, str, str], ...]
    modules: Tuple[ModuleDifference, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.only_first or self.only_second or self.shapes or self.dtypes
                    or any(module.changed for module in self.modules))


def inspect(path: PathLike) -> Inspection:
    """Look through a checkpoint file, in pieces.

    Raises:
        CheckpointError: It cannot be read, holds no weights, or a newer version wrote it.
    """
    path = Path(path).expanduser()
    checkpoint = read_checkpoint(path, mmap=True, verify=True)
    mapped = MappedFile(path)
    meta = _mapping(checkpoint.get('meta'))
    require_readable(meta, source=str(path))
    unwrapped = unwrap(checkpoint, source=str(path))
    optimizers = _optimizers(checkpoint, meta)
    entries = [] if not unwrapped.wrappers or unwrapped.wrappers[0] not in checkpoint else [
        str(name) for name in checkpoint if name not in ('meta', unwrapped.wrappers[0])]
    return Inspection(
        path=str(path), size=path.stat().st_size, notes=unwrapped.notes, entries=tuple(entries),
        origin=recognise(checkpoint, source=str(path)), metadata=_told(meta),
        optimizers=optimizers, modules=tuple(_modules(tensors_of(unwrapped.weights), mapped)),
        lacking=tuple(name for name in NEEDED_TO_RESUME if not checkpoint.get(name)))


def diff(first: PathLike, second: PathLike) -> Differences:
    """Compare the weights of two checkpoint files, whatever each calls and stores them.

    Raises:
        CheckpointError: One cannot be read, or holds no weights.
    """
    states, mapped = [], []
    for path in (first, second):
        checkpoint = read_checkpoint(path, mmap=True, verify=True)
        mapped.append(MappedFile(path))
        states.append(tensors_of(
            translate(checkpoint, model={}, geometry={}, source=str(path)).weights))
    return compare(*states, mapped=tuple(mapped))


def compare(first: StateDict, second: StateDict, *,
            mapped: Tuple[MappedFile, ...] = ()) -> Differences:
    """See `diff`; of two state dicts."""
    shared = [name for name in first if name in second]
    same = [name for name in shared if first[name].shape == second[name].shape]
    return Differences(
        only_first=tuple(name for name in first if name not in second),
        only_second=tuple(name for name in second if name not in first),
        shapes=tuple((name, tuple(first[name].shape), tuple(second[name].shape))
                     for name in shared if first[name].shape != second[name].shape),
        dtypes=tuple((name, _dtype(first[name]), _dtype(second[name]))
                     for name in shared if first[name].dtype != second[name].dtype),
        modules=tuple(_compare_module(module, names, first, second, mapped)
                      for module, names in _by_module(same).items()))


def tensors_of(weights: Mapping[str, Any]) -> StateDict:
    """The tensors among weights, without what else a file of another program keeps there."""
    return OrderedDict((name, value) for name, value in weights.items() if torch.is_tensor(value))


def _modules(weights: StateDict, mapped: MappedFile) -> Iterable[ModuleContent]:
    for module, names in _by_module(weights).items():
        tensors = [weights[name] for name in names]
        counts = [_nan_and_inf(tensor, mapped) for tensor in tensors]
        yield ModuleContent(
            module=module, tensors=len(names),
            parameters=sum(weights[name].numel() for name in names
                           if is_parameter(name, weights[name])),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            dtypes=tuple(dict.fromkeys(_dtype(tensor) for tensor in tensors)),
            nan=sum(nan for nan, _ in counts), inf=sum(inf for _, inf in counts))


def is_parameter(name: str, value: Tensor) -> bool:
    """Whether a tensor of a file is one that is learnt, as far as name and type tell."""
    learns = value.is_floating_point() or value.is_complex()
    return learns and name.rpartition('.')[2] not in _BUFFERS


def _nan_and_inf(tensor: Tensor, mapped: MappedFile) -> Tuple[int, int]:
    nan = inf = 0
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0, 0
    for piece, in scan(tensor, mapped=(mapped,)):
        if count_not_finite(piece):
            wide = piece.float() if piece.element_size() < 2 else piece
            nan += int(torch.isnan(wide).sum())
            inf += int(torch.isinf(wide).sum())
    return nan, inf


def _optimizers(checkpoint: Mapping[str, Any], meta: Mapping[str, Any]
                ) -> Tuple[OptimizerContent, ...]:
    """Every optimizer's state, whether there is one or, as in MMEngine's dictionary, several."""
    saved = _mapping(checkpoint.get('optimizer'))
    states = {'': saved} if 'param_groups' in saved else saved
    names = _mapping(checkpoint.get('optimizer_names'))
    found = []
    for name, state in states.items():
        groups = _mapping(state).get('param_groups')
        if isinstance(groups, (list, tuple)):
            moments = _mapping(state.get('state'))
            kind = _mapping(names.get(name)).get('kind') or _optimizer_in_config(meta, str(name))
            found.append(OptimizerContent(
                name=str(name), kind=str(kind or _kind_by_state(moments)), groups=len(groups),
                parameters=len(moments), rates=tuple(dict.fromkeys(
                    float(group['lr']) for group in groups
                    if isinstance(_mapping(group).get('lr'), (int, float))))))
    return tuple(found)


def _optimizer_in_config(meta: Mapping[str, Any], name: str) -> Optional[str]:
    text = _mapping(meta.get(META_KEY)).get('config') or meta.get('cfg')
    if not isinstance(text, str):
        return None
    try:
        config = parse_config_text(text)
    except CheckpointError:
        return None
    key = f'optim_wrapper.{name}.optimizer.type' if name else 'optim_wrapper.optimizer.type'
    return lookup(config, key)


def _kind_by_state(moments: Mapping[Any, Any]) -> str:
    names = set(_mapping(next(iter(moments.values()), None)))
    return next((kind for needed, kind in _OPTIMIZERS if needed <= names), 'unknown')


def _told(meta: Mapping[str, Any]) -> Dict[str, str]:
    """What the metadata says, in words of one line."""
    record = _mapping(meta.get(META_KEY))
    told = {name: str(meta[name]) for name in _TOLD if meta.get(name) is not None}
    if record.get('version'):
        told['bevfusion_enhanced_version'] = str(record['version'])
    told.update({name: ', '.join(map(str, names)) for name, names in class_lists_of(meta).items()})
    for entry in ('geometry', 'info_files'):
        told.update({f'{entry}.{name}': str(value)
                     for name, value in _mapping(record.get(entry)).items()})
    return told


def _compare_module(module: str, names: Sequence[str], first: StateDict, second: StateDict,
                    mapped: Tuple[MappedFile, ...]) -> ModuleDifference:
    changed, squares, base, largest = 0, 0.0, 0.0, 0.0
    for name in names:
        a, b = first[name], second[name]
        differs = False
        for left, right in scan(a, b, mapped=mapped):
            differs = differs or not torch.equal(left, right.to(left.dtype))
            if a.is_floating_point() and left.numel():
                left = left.double()
                gap = right.double() - left
                squares += float(gap.square().sum())
                base += float(left.square().sum())
                largest = max(largest, float(gap.abs().max()))
        changed += differs
    relative = (squares / base) ** 0.5 if base else (float('inf') if squares else 0.0)
    return ModuleDifference(module=module, tensors=len(names), changed=changed,
                            relative=relative, largest=largest)


def _by_module(names: Iterable[str]) -> Dict[str, List[str]]:
    modules: Dict[str, List[str]] = OrderedDict()
    for name in names:
        modules.setdefault(module_of(name), []).append(name)
    return modules


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).rpartition('.')[2]


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
