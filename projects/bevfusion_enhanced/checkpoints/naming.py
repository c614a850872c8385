"""Whose checkpoint is this, and what are its weights called here: pure functions, by names alone.

Weights keep their storage: a permuted one is a view, so a memory-mapped file stays unread. Only
the merging layers of a Swin Transformer by others (a few MB) are copied, into another order.
"""
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Collection, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .explain import Change
from .fingerprint import META_KEY
from .geometry_keys import add_geometry, compare_geometry, has_geometry, split_geometry
from .name_tables import (
    CAMERA_BACKBONE,
    TIMM_MODEL,
    ImageBackbone,
    find_image_backbone,
    is_classifier,
    is_detector_only,
    is_mmdet3d,
    is_ours,
    mmdet3d_to_native,
    native_to_mmdet3d,
    swin_to_mmdet,
    timm_names,
)
from .sparse_layout import (
    SPARSE_PREFIX,
    V1,
    V2,
    find_layout,
    is_z_first,
    notes_on,
    to_spconv1,
    to_spconv2,
)
from .state_dict import StateDict, Unwrapped, unwrap

TARGETS = ('native', 'mit', 'mmdet3d')

_NOTES = {
    'native': 'bevfusion_enhanced',
    'mit': 'the original BEVFusion, whose names are ours',
    'mmdet3d': "MMDetection3D's BEVFusion",
    'mmdet': "MMDetection's Swin Transformer, or a detector with it",
    'timm': 'timm',
    'swin': "Swin Transformer by its authors, or by timm before 0.8",
    'unknown': 'unknown origin: names and layouts are taken as they are',
}
_Z_FIRST = ('a detector of MMDetection3D, but not its BEVFusion: its sparse encoder indexes voxels '
            'z, y, x, ours x, y, z; names and layouts are taken as they are')


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        name: 'native' (ours), 'mit' (the original BEVFusion), 'mmdet3d', 'mmdet' (a Swin
            Transformer of MMDetection), 'timm', 'swin' (the authors') or 'unknown'.
        wrappers: What was around the weights, outermost first: entries such as `state_dict`,
            prefixes such as `module.`.
        note: The same for people.
    """

    name: str
    wrappers: Tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Translation:
    """A checkpoint's weights as ours.

    Attributes:
        weights: Under our names, sparse ones as (out, kx, ky, kz, in), without geometry. What has
            no name here keeps its own.
        origin: Where they come from.
        notes: What was chosen, permuted or left out, one phrase each.
        meaning: Geometry that the checkpoint was trained with and the config says otherwise.
    """

    weights: StateDict
    origin: Origin
    notes: Tuple[str, ...]
    meaning: Tuple[Change, ...]


class _Renamed(NamedTuple):
    weights: StateDict
    notes: List[str]


def recognise(checkpoint: Mapping[str, Any], *, model: Optional[Mapping[str, Tensor]] = None,
              source: str = 'checkpoint') -> Origin:
    """Tell a checkpoint's origin by the names in it.

    Args:
        checkpoint: What `read_checkpoint` returned.
        model: The state dict of the model that it is for; only with it can a timm network other
            than a Swin Transformer be told.
        source: The file's name, for the error.

    Raises:
        CheckpointError: It holds no weights.
    """
    return _origin(unwrap(checkpoint, source=source), checkpoint, model or {})


def translate(checkpoint: Mapping[str, Any], *, model: Mapping[str, Tensor],
              geometry: Mapping[str, Any], source: str = 'checkpoint') -> Translation:
    """Bring a checkpoint's weights under our names and into our layouts.

    Args:
        checkpoint: What `read_checkpoint` returned; not changed.
        model: The state dict of the model that it is for; its shapes tell the layout of sparse
            weights, its names the kind of image backbone. May be empty.
        geometry: The config's, from `geometry.geometry_of`. What it lacks is not compared.
        source: The file's name, for errors.

    Raises:
        CheckpointError: It holds no weights.
    """
    unwrapped = unwrap(checkpoint, source=source)
    origin = _origin(unwrapped, checkpoint, model)
    renamed = _rename(unwrapped.weights, origin.name, model)
    split = split_geometry(renamed.weights)
    layout = find_layout(split.weights, model, default=V1 if origin.name == 'mit' else V2)
    notes = [*unwrapped.notes, *renamed.notes, *notes_on(layout)]
    if split.geometry:
        leaves = sorted({name.rsplit('.', 1)[-1] for name in split.geometry})
        notes.append(f'{", ".join(leaves)} are geometry ({len(split.geometry)} tensors): compared '
                     'with the config, not loaded')
    return Translation(weights=to_spconv2(split.weights, layout), origin=origin,
                       notes=tuple(notes), meaning=compare_geometry(split.geometry, geometry))


def convert(weights: Mapping[str, Tensor], *, to: str, geometry: Mapping[str, Any]) -> StateDict:
    """Our weights as another code base loads them; `translate` brings back the same bits.

    Modules that the other one lacks (`task_gca`, and `heads.map` in MMDetection3D) keep our
    names. For MMDetection3D the result carries the `_metadata` without which its loading would
    permute sparse weights; a file that drops it (safetensors does) cannot be loaded there.

    Args:
        weights: As in `Translation.weights`.
        to: 'native', 'mit' or 'mmdet3d'.
        geometry: The config's; the references want it among the weights.

    Raises:
        CheckpointError: `to` is none of these, or geometry that is needed is missing.
    """
    if to not in TARGETS:
        raise CheckpointError(f'cannot convert to {to!r}; choose {", ".join(TARGETS)}')
    if to == 'native':
        return OrderedDict(weights)
    complete = add_geometry(weights, geometry)
    if to == 'mit':
        return to_spconv1(complete)
    renamed = OrderedDict((native_to_mmdet3d(name), value) for name, value in complete.items())
    renamed._metadata = _module_versions(renamed)  # type: ignore[attr-defined]
    return renamed


def _origin(unwrapped: Unwrapped, checkpoint: Mapping[str, Any],
            model: Mapping[str, Tensor]) -> Origin:
    names = unwrapped.weights.keys()
    if is_mmdet3d(names):
        name = 'mmdet3d'
        if is_z_first(unwrapped.weights, 'pts_middle_encoder.conv_out.0.weight'):
            return Origin(name='unknown', wrappers=unwrapped.wrappers, note=_Z_FIRST)
    elif is_ours(names):
        name = 'mit' if _is_original(unwrapped.weights, checkpoint) else 'native'
    else:
        backbone = find_image_backbone(names)
        name = backbone.kind if backbone else 'unknown'
        if backbone is None and _is_of_timm(unwrapped.weights, model):
            name = 'timm'
    return Origin(name=name, wrappers=unwrapped.wrappers, note=_NOTES[name])


def _is_original(weights: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> bool:
    """Whether weights under our names are the original's: geometry inside, or spconv 1.x."""
    meta = checkpoint.get('meta')
    if isinstance(meta, Mapping) and META_KEY in meta:
        return False
    return has_geometry(weights) or find_layout(weights, {}).main == V1


def _rename(weights: StateDict, origin: str, model: Mapping[str, Tensor]) -> _Renamed:
    if origin == 'mmdet3d':
        return _Renamed(_renamed(weights, {n: mmdet3d_to_native(n) for n in weights}), [])
    if origin in ('mmdet', 'swin', 'timm'):
        return _rename_image_backbone(weights, model)
    return _Renamed(weights, [])


def _rename_image_backbone(weights: StateDict, model: Mapping[str, Tensor]) -> _Renamed:
    """Weights of an image model under the names of our camera backbone, without its other end."""
    backbone = find_image_backbone(weights) or ImageBackbone('other', '')
    inside = {name: name[len(backbone.prefix):] for name in weights
              if name.startswith(backbone.prefix)}
    if backbone.kind == 'mmdet' or not _timm_targets(model) and backbone.kind != 'other':
        ours = {name: CAMERA_BACKBONE + swin_to_mmdet(short, kind=backbone.kind)
                for name, short in inside.items()}
        if backbone.kind != 'mmdet':
            weights = OrderedDict((name, _unfold_order(value) if '.downsample.' in name else value)
                                  for name, value in weights.items())
    else:
        found = _timm_mapping(inside.values(), model, kind=backbone.kind)
        ours = {name: found.get(short, TIMM_MODEL + short) for name, short in inside.items()}
    used = {name for name in weights if ours.get(name) in model}
    left_out = {
        'the classifier': [n for n, short in inside.items()
                           if is_classifier(short) and n not in used],
        'norms of levels that this model does not use': [
            n for n, short in inside.items()
            if model and re.match(r'norm\d\.', short) and n not in used],
        'what only an image detector has': [
            n for n in weights if n not in inside and is_detector_only(n)],
    }
    gone = {name for names in left_out.values() for name in names}
    kept = OrderedDict((name, value) for name, value in weights.items() if name not in gone)
    notes = [f'left out: {what} ({_modules(names)}; {len(names)} tensors)'
             for what, names in left_out.items() if names]
    return _Renamed(_renamed(kept, ours), notes)


def _timm_targets(model: Mapping[str, Tensor]) -> List[str]:
    """Names of the model's timm backbone, without their prefix; none where it has no such."""
    return [name[len(TIMM_MODEL):] for name in model if name.startswith(TIMM_MODEL)]


def _timm_mapping(names: Collection[str], model: Mapping[str, Tensor], *,
                  kind: str) -> Dict[str, str]:
    """{name in a file of a whole timm network: our name of the same in its backbone}."""
    present = set(names)
    pairs = ((next((n for n in timm_names(target, kind=kind) if n in present), None), target)
             for target in _timm_targets(model))
    return {name: TIMM_MODEL + target for name, target in pairs if name is not None}


def _is_of_timm(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> bool:
    """Whether most of the model's timm backbone is in the weights, in name and shape."""
    fitting = [ours for name, ours in _timm_mapping(weights, model, kind='other').items()
               if torch.is_tensor(weights[name]) and weights[name].shape == model[ours].shape]
    return len(fitting) * 2 > len(_timm_targets(model))


def _unfold_order(value: Tensor) -> Tensor:
    """Channels of four merged patches in the order of MMDetection's unfolding.

    Swin's authors put the patches of a 2 x 2 square one after the other, down before right:
    channel (x * 2 + y) * C + c. An unfolding has the places of a channel together, right before
    down: channel c * 4 + y * 2 + x. The channels are the last axis.
    """
    channels = value.shape[-1] // 4
    square = value.unflatten(-1, (2, 2, channels))                              # (..., x, y, c)
    return square.transpose(-1, -3).flatten(-3)                                 # (..., c, y, x)


def _renamed(weights: StateDict, names: Mapping[str, str]) -> StateDict:
    """`weights` under new names; a name that is taken already stays as it was."""
    renamed: StateDict = OrderedDict()
    for name, value in weights.items():
        new = names.get(name, name)
        renamed[new if new not in renamed else name] = value
    return renamed


def _module_versions(weights: Mapping[str, Tensor]) -> Dict[str, Dict[str, int]]:
    """What torch would note for these modules: 2 for norms with counters and sparse layers."""
    versions: Dict[str, Dict[str, int]] = OrderedDict()
    for name, value in weights.items():
        parts = name.split('.')[:-1]
        for depth in range(len(parts) + 1):
            versions.setdefault('.'.join(parts[:depth]), {'version': 1})
        sparse = value.dim() == 5 and mmdet3d_to_native(name).startswith(SPARSE_PREFIX)
        if sparse or name.endswith('.num_batches_tracked'):
            versions['.'.join(parts)] = {'version': 2}
    return versions


def _modules(names: Collection[str]) -> str:
    return ', '.join(f'{module}.*' for module in OrderedDict.fromkeys(n.split('.')[0]
                                                                      for n in names))
