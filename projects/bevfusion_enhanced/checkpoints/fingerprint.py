"""What a checkpoint was trained as, kept in its metadata.

The record says everything that a later run has to agree with: tensors, geometry, class lists, the
config, the data's info files, and the version that wrote it. It is of plain types only.
"""
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch

from ..errors import CheckpointError
from .config_text import parse_config_text
from .explain import CLASS_LISTS, name_tensors
from .geometry import geometry_of, lookup
from .matching import LoadReport
from .state_dict import weights_of

META_KEY = 'bevfusion_enhanced'
FORMAT = 2  # of this record; 1 had tensors and class lists alone
_CHUNK = 1 << 20

_digests: Dict[Tuple[str, int, int], str] = {}


def make_fingerprint(state: Mapping[str, Any], *, version: str,
                     class_lists: Mapping[str, Sequence[str]], config_text: str = '',
                     geometry: Optional[Mapping[str, Any]] = None,
                     info_digests: Optional[Mapping[str, str]] = None) -> Dict[str, Any]:
    """The record that goes into a checkpoint's metadata, of plain types only.

    Args:
        state: The model's state dict.
        version: Version of this package.
        class_lists: Names of the classes in the order of the labels, for example under `classes`
            and `map_classes`.
        config_text: The resolved config, as `Config.pretty_text`.
        geometry: See `geometry_of`.
        info_digests: See `info_digests`.
    """
    tensors = {key: list(value.shape) for key, value in state.items() if torch.is_tensor(value)}
    dtypes = {key: str(state[key].dtype).rpartition('.')[2] for key in tensors}
    return {
        'format': FORMAT,
        'version': version,
        'architecture': architecture_hash(state),
        'tensor_hash': _sha256({key: [tensors[key], dtypes[key]] for key in tensors}),
        'tensors': tensors,
        'dtypes': dtypes,
        **{name: list(values) for name, values in class_lists.items()},
        'geometry': dict(geometry or {}),
        'config': config_text,
        'info_files': dict(info_digests or {}),
    }


def architecture_hash(state: Mapping[str, Any]) -> str:
    """SHA-256 of the names and shapes of a state dict, whatever their order."""
    return _sha256({key: list(value.shape) for key, value in state.items()
                    if torch.is_tensor(value)})


def fingerprint_of(checkpoint: Mapping[str, Any], *, source: str = 'checkpoint'
                   ) -> Dict[str, Any]:
    """A checkpoint's fingerprint, made from what it holds where it does not carry one.

    Args:
        checkpoint: What `read_checkpoint` returned.
        source: The file's name, for errors.

    Raises:
        CheckpointError: It was written by a newer version, or holds no weights.
    """
    meta = _mapping(checkpoint.get('meta'))
    require_readable(meta, source=source)
    record = _mapping(meta.get(META_KEY))
    if record.get('format', 0) == FORMAT:
        return dict(record)
    text, geometry = _config_of(meta)
    return make_fingerprint(
        weights_of(checkpoint, source=source), version=str(record.get('version', '')),
        class_lists=class_lists_of(meta), config_text=text, geometry=geometry)


def trained_geometry(checkpoint: Mapping[str, Any], *, source: str = 'checkpoint'
                     ) -> Dict[str, Any]:
    """The geometry of a checkpoint's fingerprint alone; see `fingerprint_of`.

    Raises:
        CheckpointError: It was written by a newer version.
    """
    meta = _mapping(checkpoint.get('meta'))
    require_readable(meta, source=source)
    record = _mapping(meta.get(META_KEY))
    if record.get('format', 0) == FORMAT:
        return dict(record['geometry'])
    return _config_of(meta)[1]


def _config_of(meta: Mapping[str, Any]) -> Tuple[str, Dict[str, Any]]:
    """The config's text among metadata, and its geometry; nothing of one that cannot be read."""
    text = meta.get('cfg')
    text = text if isinstance(text, str) else ''
    try:
        return text, geometry_of(parse_config_text(text))
    except CheckpointError:
        return '', {}


def require_readable(meta: Optional[Mapping[str, Any]], *, source: str = 'checkpoint') -> None:
    """Refuse a checkpoint that a newer version of this package wrote.

    A checkpoint of another program, or one that says nothing, passes. Versions of one minor number
    read each other's files.

    Args:
        meta: The checkpoint's metadata.
        source: The file's name, for the error.

    Raises:
        CheckpointError: The record, or the version that wrote it, is newer than this one.
    """
    from .. import __version__
    record = _mapping(_mapping(meta).get(META_KEY))
    theirs = record.get('version', '')
    newer = _minor(theirs) is not None and (_minor(theirs) or ()) > (_minor(__version__) or ())
    record_format = record.get('format', 1)
    if newer or not isinstance(record_format, int) or record_format > FORMAT:
        raise CheckpointError(
            f'{source} was written by bevfusion_enhanced {theirs or "of a newer version"}, this is '
            f'{__version__}; update this one to read it')


def info_digests(config: Mapping[str, Any]) -> Dict[str, str]:
    """SHA-256 of each info file that a config's data loaders read, under its path.

    A file that is not there is left out. A file is read once in a process, unless it changes.

    Args:
        config: The resolved config.
    """
    digests = {}
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in _leaf_datasets(lookup(config, f'{name}.dataset')):
            file = dataset.get('ann_file')
            if isinstance(file, str) and file:
                path = Path(dataset.get('data_root') or '', file)
                digest = _file_digest(path.expanduser())
                if digest is not None:
                    digests[path.as_posix()] = digest
    return digests


def class_lists_of(metadata: Optional[Mapping[str, Any]]) -> Dict[str, List[str]]:
    """The class lists in a dataset's `metainfo`, or in a checkpoint's `meta`, where it has any.

    A checkpoint that does not carry our record is asked for MMEngine's `dataset_meta`. What is no
    list of names is passed over.
    """
    metadata = _mapping(metadata)
    lowered = {str(key).lower(): value for key, value in metadata.items()}
    record = _mapping(metadata.get(META_KEY) or metadata.get('dataset_meta') or lowered)
    lists = {name: record.get(name) for name in CLASS_LISTS}
    return {name: list(names) for name, names in lists.items() if isinstance(names, (list, tuple))
            and all(isinstance(item, str) for item in names)}


def explain_tensors(report: LoadReport) -> List[str]:
    """The tensors that differ between a checkpoint and a model, one phrase each, six at most."""
    names = [record.key for record in (
        *report.reused, *report.missing, *report.unexpected, *report.mismatched)]
    return name_tensors(
        [record.key for record in report.missing], [record.key for record in report.unexpected],
        [(record.key, record.checkpoint_shape, record.shape) for record in report.mismatched],
        names=names)


def _leaf_datasets(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The datasets inside wrappers such as RepeatDataset and ConcatDataset."""
    if not isinstance(dataset, Mapping):
        return
    inner = dataset.get('datasets') or dataset.get('dataset')
    if not inner:
        yield dataset
        return
    for item in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from _leaf_datasets(item)


def _file_digest(path: Path) -> Optional[str]:
    try:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
        if key not in _digests:
            digest = hashlib.sha256()
            with open(path, 'rb') as file:
                for chunk in iter(lambda: file.read(_CHUNK), b''):
                    digest.update(chunk)
            _digests[key] = digest.hexdigest()
        return _digests[key]
    except OSError:
        return None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _minor(version: Any) -> Optional[Tuple[int, int]]:
    found = re.match(r'(\d+)\.(\d+)', str(version))
    return (int(found.group(1)), int(found.group(2))) if found else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
