"""What a checkpoint was trained as, kept in its metadata: tensors, class lists, our version.

Two trainings have the same architecture when the names and shapes of their tensors agree and the
classes, in order, mean the same.
"""
import hashlib
import json
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch

from .matching import LoadReport, collapse

META_KEY = 'bevfusion_enhanced'
CLASS_LISTS = ('classes', 'map_classes')
_NAMED = 6


def make_fingerprint(state: Mapping[str, Any], *, version: str,
                     class_lists: Mapping[str, Sequence[str]]) -> Dict[str, Any]:
    """The record that goes into a checkpoint's metadata, of plain types only.

    Args:
        state: The model's state dict.
        version: Version of this package.
        class_lists: Names of the classes in the order of the labels, for example under `classes`
            and `map_classes`.
    """
    tensors = {key: list(value.shape) for key, value in state.items() if torch.is_tensor(value)}
    return {
        'version': version,
        'architecture': architecture_hash(state),
        'tensors': tensors,
        **{name: list(values) for name, values in class_lists.items()},
    }


def architecture_hash(state: Mapping[str, Any]) -> str:
    """SHA-256 of the names and shapes of a state dict, whatever their order."""
    tensors = {key: list(value.shape) for key, value in state.items() if torch.is_tensor(value)}
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


def class_lists_of(metadata: Optional[Mapping[str, Any]]) -> Dict[str, List[str]]:
    """The class lists in a dataset's `metainfo`, or in a checkpoint's `meta`, where it has any.

    A checkpoint that does not carry our record is asked for MMEngine's `dataset_meta`.
    """
    metadata = metadata or {}
    lowered = {str(key).lower(): value for key, value in metadata.items()}
    record = metadata.get(META_KEY) or metadata.get('dataset_meta') or lowered
    return {name: list(record[name]) for name in CLASS_LISTS
            if isinstance(record, Mapping) and record.get(name) is not None}


def explain_change(report: LoadReport, old: Mapping[str, Sequence[str]],
                   new: Mapping[str, Sequence[str]]) -> List[str]:
    """What differs between a checkpoint and a model, one phrase each; empty when nothing does.

    Args:
        report: The tensors compared.
        old: Class lists of the checkpoint.
        new: Class lists of this run. A list that only one side has is not compared.
    """
    present = [record.key for record in report.reused]
    theirs = present + [record.key for record in (*report.unexpected, *report.mismatched)]
    ours = present + [record.key for record in (*report.missing, *report.mismatched)]
    changes = [f'new {name}' for name in collapse([r.key for r in report.missing], present=theirs)]
    changes += [f'gone {name}'
                for name in collapse([r.key for r in report.unexpected], present=ours)]
    changes += [f'{r.key} {r.checkpoint_shape} -> {r.shape}' for r in report.mismatched]
    if len(changes) > _NAMED:
        changes = changes[:_NAMED] + [f'and {len(changes) - _NAMED} more']
    return changes + [f'{name} {list(old[name])} -> {list(new[name])}' for name in old
                      if name in new and list(old[name]) != list(new[name])]
