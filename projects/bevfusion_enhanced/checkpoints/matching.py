"""Which tensors of a checkpoint fit a model: a pure function of two state dicts.

A tensor fits when its name and its shape agree. Everything else is named: missing (in the model
alone, so freshly initialised), unexpected (in the checkpoint alone), mismatched (in both, with
other shapes, so freshly initialised too).
"""
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Any,
    Collection,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch

from ..errors import CheckpointError
from .class_matching import ClassMatch
from .families import family_of
from .state_dict import StateDict
from .suggestions import Suggestion

if TYPE_CHECKING:
    from .explain import Change

Shape = Tuple[int, ...]

# How many leading parts of a name make a module; one where the first part is not listed.
_MODULE_DEPTH = {'encoders': 3, 'decoder': 2, 'task_decoders': 3, 'heads': 2, 'task_gca': 2}
_ALMOST_NOTHING = 0.01


@lru_cache(maxsize=1 << 14)  # asked for each tensor several times
def module_of(key: str) -> str:
    """The module that a report files a tensor under, for example `encoders.camera.backbone`."""
    parts = key.split('.')
    depth = _MODULE_DEPTH.get(parts[0], 1)
    return '.'.join(parts[:-1][:depth]) or key


class TensorRecord(NamedTuple):
    """A tensor of the model, or (where it is unexpected) of the checkpoint.

    Attributes:
        key: Its name in the state dict.
        shape: Its shape there.
        parameters: Number of learnable values; 0 for a buffer.
        fresh: How many of them stay the model's own in a tensor that is reused: the entries of
            classes that the checkpoint lacks.
    """

    key: str
    shape: Shape
    parameters: int
    fresh: int = 0


class Mismatch(NamedTuple):
    """A tensor that both sides hold with other shapes; `parameters` counts the model's."""

    key: str
    shape: Shape
    checkpoint_shape: Shape
    parameters: int


class ModuleSummary(NamedTuple):
    """Counts of one module: (tensors, parameters) of each kind, and where it came from.

    `partly_fresh` counts the parameters that stay the model's own within reused tensors; those are
    not among the reused ones.
    """

    module: str
    reused: Tuple[int, int]
    missing: Tuple[int, int]
    unexpected: Tuple[int, int]
    mismatched: Tuple[int, int]
    source: Optional[str]
    partly_fresh: int = 0

    @property
    def fresh_parameters(self) -> int:
        """Parameters of the model that keep their own initialisation."""
        return self.missing[1] + self.mismatched[1] + self.partly_fresh

    @property
    def parameters(self) -> int:
        """All parameters of the module in the model."""
        return self.reused[1] + self.fresh_parameters

    @property
    def in_model(self) -> bool:
        """Whether the model has this module at all."""
        return bool(self.reused[0] or self.missing[0] or self.mismatched[0])


@dataclass(frozen=True)
class LoadReport:
    """What a load does to each tensor.

    Attributes:
        sources: The files, in order of preference.
        reused: Tensors taken from the checkpoint.
        missing: Tensors of the model that no checkpoint holds.
        unexpected: Tensors of the checkpoint that the model lacks.
        mismatched: Tensors held by both with other shapes.
        module_sources: The file that each module came from.
        shadowed: Modules that a later file holds too, and that file: not used.
        origins: What wrote each file, in words.
        notes: What was done to the weights on the way, such as a permuted layout.
        meaning: Geometry that differs with unchanged shapes (`explain.Change`).
        classes: What became of each head whose classes differ.
        suggestions: For each missing tensor the most alike unexpected one; never applied.
    """

    sources: Tuple[str, ...]
    reused: Tuple[TensorRecord, ...]
    missing: Tuple[TensorRecord, ...]
    unexpected: Tuple[TensorRecord, ...]
    mismatched: Tuple[Mismatch, ...]
    module_sources: Mapping[str, str] = field(default_factory=dict)
    shadowed: Tuple[Tuple[str, str], ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: Tuple[str, ...] = ()
    meaning: Tuple['Change', ...] = ()
    classes: Tuple[ClassMatch, ...] = ()
    suggestions: Tuple[Suggestion, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model was found, with all of its classes."""
        return not self.missing and not self.mismatched and not self.partly_fresh

    @property
    def fresh(self) -> Tuple[str, ...]:
        """Names of the model's tensors that keep their own initialisation, whole."""
        return tuple(record.key for record in (*self.missing, *self.mismatched))

    @property
    def partly_fresh(self) -> Tuple[str, ...]:
        """Names of reused tensors in which the entries of new classes are fresh."""
        return tuple(record.key for record in self.reused if record.fresh)

    def modules(self) -> List[ModuleSummary]:
        """Counts by module: those of the model in its order, then the checkpoint's others."""
        kinds = {'reused': self.reused, 'missing': self.missing, 'unexpected': self.unexpected,
                 'mismatched': self.mismatched}
        counts: Dict[str, Dict[str, List[int]]] = OrderedDict()
        partly: Dict[str, int] = Counter()
        for kind, records in kinds.items():
            for record in records:
                name, fresh = module_of(record.key), getattr(record, 'fresh', 0)
                module = counts.setdefault(name, {k: [0, 0] for k in kinds})
                module[kind][0] += 1
                module[kind][1] += record.parameters - fresh
                partly[name] += fresh
        return [ModuleSummary(module=name, source=self.module_sources.get(name),
                              partly_fresh=partly[name],
                              **{kind: (pair[0], pair[1]) for kind, pair in of_kind.items()})
                for name, of_kind in sorted(counts.items())]

    def fresh_modules(self) -> List[ModuleSummary]:
        """Modules of the model of which at least one tensor is fresh, in whole or in part."""
        return [module for module in self.modules()
                if module.missing[0] or module.mismatched[0] or module.partly_fresh]


def match(model: Mapping[str, Any], checkpoint: Mapping[str, Any], *,
          parameters: Optional[Collection[str]] = None, sources: Sequence[str] = ('checkpoint',),
          module_sources: Optional[Mapping[str, str]] = None,
          shadowed: Sequence[Tuple[str, str]] = (),
          partly_fresh: Optional[Mapping[str, int]] = None) -> LoadReport:
    """Compare a model's state dict with a checkpoint's. Neither is changed.

    Args:
        model: The model's state dict.
        checkpoint: The checkpoint's, as `weights_of` or `combine` returns it.
        parameters: Names of the model's parameters, so that buffers do not count as such;
            every tensor counts when this is left out.
        sources: The checkpoint's file names, for the report.
        module_sources: See `LoadReport`; from `combine`.
        shadowed: See `LoadReport`; from `combine`.
        partly_fresh: Fresh values of the checkpoint's tensors; from `class_matching`.
    """
    partly_fresh = partly_fresh or {}
    reused, missing, mismatched = [], [], []
    for key, value in model.items():
        shape = _shape(value)
        count = _count(value) if parameters is None or key in parameters else 0
        if key not in checkpoint:
            missing.append(TensorRecord(key, shape, count))
            continue
        theirs = checkpoint[key]
        if torch.is_tensor(theirs) and _shape(theirs) == shape:
            reused.append(TensorRecord(key, shape, count, min(partly_fresh.get(key, 0), count)))
        else:
            mismatched.append(Mismatch(key, shape, _shape(theirs), count))
    unexpected = [TensorRecord(key, _shape(value), _count(value))
                  for key, value in checkpoint.items() if key not in model]
    return LoadReport(
        sources=tuple(sources), reused=tuple(reused), missing=tuple(missing),
        unexpected=tuple(unexpected), mismatched=tuple(mismatched),
        module_sources=dict(module_sources or {}), shadowed=tuple(shadowed))


class Combined(NamedTuple):
    """Several checkpoints as one; see `combine`."""

    weights: StateDict
    module_sources: Dict[str, str]
    shadowed: List[Tuple[str, str]]


def combine(sources: Sequence[Tuple[str, StateDict]]) -> Combined:
    """Take each module, whole, from the first source that holds it.

    Args:
        sources: (name, state dict) in order of preference.

    Returns:
        The weights, the source of each module, and (module, source) of those left out because an
        earlier source held the module already.
    """
    weights: StateDict = OrderedDict()
    owner: Dict[str, str] = {}
    shadowed: Dict[Tuple[str, str], None] = OrderedDict()
    for name, state in sources:
        for key, value in state.items():
            module = module_of(key)
            if owner.setdefault(module, name) == name:
                weights[key] = value
            else:
                shadowed[(module, name)] = None
    return Combined(weights=weights, module_sources=owner, shadowed=list(shadowed))


def fill(model: Mapping[str, Any], checkpoint: Mapping[str, Any], report: LoadReport) -> StateDict:
    """The model's state dict with every reused tensor replaced by the checkpoint's.

    The result has exactly the model's names, so loading it leaves nothing missing or unexpected,
    and the model's `_metadata`, which says in which layout sparse weights are stored.
    """
    filled = OrderedDict(model)
    filled.update((record.key, checkpoint[record.key]) for record in report.reused)
    metadata = getattr(model, '_metadata', None)
    if metadata is not None:
        filled._metadata = metadata  # type: ignore[attr-defined]
    return filled


def require_related(report: LoadReport) -> None:
    """Refuse a checkpoint of something else.

    Raises:
        CheckpointError: Nothing, or less than 1 % of both model and checkpoint, fits.
    """
    reused = sum(record.parameters - record.fresh for record in report.reused)
    in_model = reused + sum(r.parameters for r in (*report.missing, *report.mismatched))
    in_checkpoint = reused + sum(r.parameters for r in (*report.unexpected, *report.mismatched))
    share = max(reused / max(in_model, 1), reused / max(in_checkpoint, 1))
    if report.reused and share >= _ALMOST_NOTHING:
        return
    theirs = ', '.join(sorted({module_of(r.key) for r in report.unexpected})[:4]) or 'none'
    ours = ', '.join(sorted({module_of(r.key) for r in report.missing})[:4]) or 'none'
    family = family_of([record.key for record in report.unexpected])
    looks = f'it looks like {family}' if family else '; '.join(report.origins.values())
    raise CheckpointError(
        f'{" + ".join(report.sources)} does not fit this model: {len(report.reused)} of '
        f'{len(report.reused) + len(report.fresh)} tensors agree in name and shape'
        f'{looks and f"; {looks}"} (modules only in the checkpoint: {theirs}; only in the model: '
        f'{ours}); give a checkpoint of this kind of model')


def require_complete(report: LoadReport) -> None:
    """Refuse a checkpoint that leaves a part of the model untrained.

    Raises:
        CheckpointError: A tensor of the model is missing, or has another shape.
    """
    if report.complete:
        return
    names = collapse(report.fresh, present=[record.key for record in report.reused])
    names += [f'{key} in part' for key in report.partly_fresh]
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    raise CheckpointError(
        f'{" + ".join(report.sources)} does not fit this config: '
        f'{len(report.fresh) + len(report.partly_fresh)} of '
        f'{len(report.reused) + len(report.fresh)} tensors of the model are missing or have '
        f'another shape ({", ".join(names[:4])}{more}); use the config that it was trained with')


def collapse(keys: Sequence[str], *, present: Collection[str]) -> List[str]:
    """Shorten names: `prefix.*` where no name in `present` starts with that prefix.

    The prefix is at least a module (`module_of`), and as short as that allows.
    """
    kept = set()
    for key in present:
        parts = key.split('.')
        kept.update('.'.join(parts[:n]) for n in range(1, len(parts)))
    shortened: Dict[str, None] = OrderedDict()
    for key in keys:
        parts = key.split('.')
        first = module_of(key).count('.') + 1
        prefixes = ('.'.join(parts[:n]) for n in range(first, len(parts)))
        whole = next((prefix for prefix in prefixes if prefix not in kept), None)
        shortened[f'{whole}.*' if whole else key] = None
    return list(shortened)


def _shape(value: Any) -> Shape:
    return tuple(value.shape) if torch.is_tensor(value) else ()


def _count(value: Any) -> int:
    return value.numel() if torch.is_tensor(value) else 0
