"""A whole checkpoint brought into another code base's form: weights, and what says what they are.

The weights themselves are `naming`'s work. Here is what goes around them: the geometry that the
references keep among their weights and we keep in the metadata, class names, and what is left out.
"""
from collections import OrderedDict
from typing import Any, Dict, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .averaging import average, require_finite
from .explain import CLASS_LISTS
from .families import family_of
from .fingerprint import META_KEY, class_lists_of, fingerprint_of, make_fingerprint
from .geometry_keys import split_geometry, stored_geometry
from .inspection import tensors_of
from .name_tables import mmdet3d_to_native
from .naming import Translation, convert, translate
from .state_dict import StateDict, unwrap

_DETECTORS = ('native', 'mit', 'mmdet3d')
_BACKBONES = ('mmdet', 'timm', 'swin')
_KEPT = ('epoch', 'iter', 'time', 'seed', 'experiment_name', 'mmengine_version', 'cfg',
         'dataset_meta')


class Converted(NamedTuple):
    """A checkpoint to write, and what there is to say about how it came to be."""

    checkpoint: Dict[str, Any]
    notes: Tuple[str, ...]


def convert_checkpoint(checkpoint: Mapping[str, Any], *, to: str, geometry: Mapping[str, Any],
                       source: str) -> Converted:
    """Weights and metadata of a checkpoint in another form; training's state is left out.

    Args:
        checkpoint: What `read_checkpoint` returned; not changed.
        to: 'native', 'mit' or 'mmdet3d'.
        geometry: Of a config, where one is given; otherwise what the checkpoint says counts.
        source: The file's name, for errors.

    Raises:
        CheckpointError: It is of another kind of model, holds NaN or Inf, or the geometry that the
            other form needs is not known.
    """
    from .. import __version__
    record = fingerprint_of(checkpoint, source=source)
    translation = translate(checkpoint, model={}, geometry=geometry, source=source)
    if not (_is_ours(checkpoint) and to == 'native'):
        _require_known(translation, to=to, source=source)
    tensors = tensors_of(translation.weights)
    require_finite(tensors, source=source)
    known = {**record['geometry'], **_stored(checkpoint), **geometry}
    weights = _contiguous(convert(tensors, to=to, geometry=known))
    metadata = checkpoint.get('meta') if isinstance(checkpoint.get('meta'), Mapping) else {}
    meta = {name: metadata[name] for name in _KEPT if name in metadata}
    classes = class_lists_of(metadata)
    if to == 'native':
        ours = _is_ours(checkpoint)
        meta[META_KEY] = make_fingerprint(
            weights, version=__version__, class_lists=classes, geometry=known,
            config_text=record['config'] if ours else '',
            info_digests=record.get('info_files') if ours else {})
    elif classes:
        meta['dataset_meta'] = {**(meta.get('dataset_meta') or {}), **classes}
    return Converted({'meta': meta, 'state_dict': weights}, (
        f'from {translation.origin.note}', *translation.notes,
        *(f'differs in meaning: {change}' for change in translation.meaning),
        *_left_out(checkpoint, unwrap(checkpoint, source=source).wrappers)))


def average_checkpoints(checkpoints: Sequence[Mapping[str, Any]], *, sources: Sequence[str]
                        ) -> Converted:
    """The mean of several checkpoints of one model, with the metadata of the last.

    Args:
        checkpoints: What `read_checkpoint` returned; not changed.
        sources: The files' names.

    Raises:
        CheckpointError: See `average`.
    """
    unwrapped = [unwrap(checkpoint, source=source)
                 for checkpoint, source in zip(checkpoints, sources, strict=True)]
    weights = average([tensors_of(item.weights) for item in unwrapped], sources=sources)
    last = checkpoints[-1]
    stored = last.get(unwrapped[-1].wrappers[0], last) if unwrapped[-1].wrappers else last
    metadata = getattr(stored, '_metadata', None)
    if metadata is not None:
        weights._metadata = metadata  # type: ignore[attr-defined]
    meta = last.get('meta') if isinstance(last.get('meta'), Mapping) else {}
    kept = {name: meta[name] for name in (*_KEPT, META_KEY) if name in meta}
    notes = [f'{source}: {note}' for source, item in zip(sources, unwrapped, strict=True)
             for note in item.notes]
    return Converted({'meta': {**kept, 'averaged_from': list(map(str, sources))},
                      'state_dict': weights},
                     (*notes, f'the mean of {len(checkpoints)}; integers and metadata are those of '
                      f'{sources[-1]}'))


def native_fingerprint(checkpoint: Mapping[str, Any], *, source: str) -> Dict[str, Any]:
    """A checkpoint's fingerprint (see `fingerprint_of`), a foreign one's under our names.

    Raises:
        CheckpointError: It holds no weights, or a newer version wrote it.
    """
    record = fingerprint_of(checkpoint, source=source)
    if _is_ours(checkpoint):
        return record
    translation = translate(checkpoint, model={}, geometry={}, source=source)
    return make_fingerprint(
        translation.weights, version='', geometry={**record['geometry'], **_stored(checkpoint)},
        class_lists={name: record[name] for name in CLASS_LISTS if name in record})


def _require_known(translation: Translation, *, to: str, source: str) -> None:
    name = translation.origin.name
    if name in _DETECTORS or (name in _BACKBONES and to == 'native'):
        return
    if name in _BACKBONES:
        raise CheckpointError(f'{source} holds an image backbone alone ({translation.origin.note})'
                              f'; convert it with --to native')
    family = family_of(translation.weights)
    raise CheckpointError(f'{source} is {f"of {family}" if family else "of unknown origin"}, not '
                          'of a BEVFusion; convert reads ours, the original\'s and '
                          'MMDetection3D\'s')


def _is_ours(checkpoint: Mapping[str, Any]) -> bool:
    meta = checkpoint.get('meta')
    return isinstance(meta, Mapping) and META_KEY in meta


def _stored(checkpoint: Mapping[str, Any]) -> Dict[str, Any]:
    """The geometry that a reference keeps among its weights."""
    weights = unwrap(checkpoint).weights
    tensors = {mmdet3d_to_native(name): value for name, value in weights.items()
               if torch.is_tensor(value)}
    return stored_geometry(split_geometry({**weights, **tensors}).geometry)


def _contiguous(weights: Mapping[str, Tensor]) -> StateDict:
    """In the layout that their shape says, with the versions that the state dict carries."""
    plain: StateDict = OrderedDict((name, value.contiguous()) for name, value in weights.items())
    metadata = getattr(weights, '_metadata', None)
    if metadata is not None:
        plain._metadata = metadata  # type: ignore[attr-defined]
    return plain


def _left_out(checkpoint: Mapping[str, Any], wrappers: Tuple[str, ...]) -> Tuple[str, ...]:
    if not wrappers or wrappers[0] not in checkpoint:
        return ()
    names = [str(name) for name in checkpoint if name not in ('meta', wrappers[0])]
    return (f'left out: {", ".join(names)}',) if names else ()
