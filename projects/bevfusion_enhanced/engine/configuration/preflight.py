"""Checks of a config before anything heavy is built: each failure is one line.

A config that passes may still be wrong; what is checked here is what people get wrong most:
paths, class names, and a model that asks for data which the pipeline does not load.
"""
import difflib
import os
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Sequence, Tuple

from ...checkpoints.folder import template_in
from ...checkpoints.loading import parse_sources
from ...checkpoints.storage import read_checkpoint
from ...checkpoints.trust import trust_files
from ...datasets.vocabulary import DETECTION_CLASSES, MAP_LAYERS
from ...errors import CheckpointError, ConfigError, DataError
from ..runs.run_folder import list_checkpoints, refuse_used_folder, require_writable
from .config import checkpoint_folder
from .preflight_data import check_steps, flatten, hook_types

_LOADERS = {'train': ('train_dataloader', 'val_dataloader'), 'test': ('test_dataloader',)}
_URL = ('http://', 'https://', 'torchvision://', 'open-mmlab://', 'openmmlab://', 'modelzoo://')


def check_config(config: Mapping[str, Any], *, mode: str) -> None:
    """Check everything that can be known from a config and the files it names.

    Args:
        config: The resolved config, with `work_dir`, `load_from` and `resume` set.
        mode: 'train' or 'test': which data loaders are used.

    Raises:
        ConfigError: A part of the config is missing or contradicts another.
        DataError: A dataset root or an info file is missing.
        CheckpointError: A checkpoint is missing or no checkpoint, or the work dir is in use.
    """
    if not isinstance(config.get('model'), Mapping):
        raise ConfigError('the config has no model=dict(...); start from one in configs/')
    check_work_dir(config['work_dir'])
    check_modalities_of_model(config['model'])
    for name in _LOADERS[mode]:
        loader = config.get(name)
        if loader is None and name == 'val_dataloader':
            continue
        if loader is None:
            raise ConfigError(f'the config has no {name}=dict(...), which {mode}ing needs')
        for where, dataset in leaf_datasets(loader.get('dataset') or {}, f'{name}.dataset'):
            check_dataset(dataset, config['model'], where=where, training=name.startswith('train'))
            check_steps(dataset.get('pipeline') or (), metainfo=dataset.get('metainfo') or {},
                        hooks=hook_types(config), where=where)
    check_checkpoints(config, mode=mode)


def check_work_dir(work_dir: str) -> None:
    """The run's folder can be created and written to.

    Raises:
        ConfigError: It, or a folder above it, is a file or is read-only.
    """
    folder = Path(work_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f'work dir {work_dir}: {folder} is a file; give another --work-dir')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f'work dir {work_dir}: no permission to write in {folder}; give another '
                          '--work-dir')


def check_modalities_of_model(model: Mapping[str, Any]) -> None:
    """A model of ours has at least one encoder and at least one head.

    Raises:
        ConfigError: It has none of one kind.
    """
    for part, examples in (('encoders', 'camera=..., lidar=...'), ('heads', 'object=..., map=...')):
        if isinstance(model.get(part), Mapping) and not any(model[part].values()):
            raise ConfigError(f'model.{part} is empty; name at least one: dict({examples})')


def leaf_datasets(dataset: Mapping[str, Any], where: str
                  ) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """(place in the config, dataset) for each dataset inside wrappers such as CBGSDataset."""
    if isinstance(dataset.get('dataset'), Mapping):
        yield from leaf_datasets(dataset['dataset'], f'{where}.dataset')
    elif isinstance(dataset.get('datasets'), Sequence):
        for index, inner in enumerate(dataset['datasets']):
            yield from leaf_datasets(inner, f'{where}.datasets[{index}]')
    else:
        yield where, dataset


def check_dataset(dataset: Mapping[str, Any], model: Mapping[str, Any], *, where: str,
                  training: bool) -> None:
    """The dataset's files exist, its classes are known, its pipeline loads what the model reads.

    Raises:
        DataError: See `check_config`.
        ConfigError: See `check_config`.
    """
    check_files(dataset, where=where)
    metainfo = dataset.get('metainfo') or {}
    if 'NuScenes' in str(dataset.get('type')):  # other datasets have other classes
        for name, known in (('classes', DETECTION_CLASSES), ('map_classes', tuple(MAP_LAYERS))):
            check_class_names(metainfo.get(name) or (), known, where=f'{where}.metainfo.{name}')
    check_heads(_section(model, 'heads'), metainfo, where=where)
    if dataset.get('pipeline'):
        check_pipeline(dataset['pipeline'], model, where=where, training=training)


def check_files(dataset: Mapping[str, Any], *, where: str) -> None:
    """The dataset's root and info file exist.

    Raises:
        DataError: One of them does not.
    """
    root = dataset.get('data_root')
    if root and not Path(root).expanduser().is_dir():
        raise DataError(f'{where}.data_root: folder {root} does not exist; create it with '
                        'tools/create_synthetic_nuscenes.py, or set it to your nuScenes root')
    ann_file = dataset.get('ann_file')
    if ann_file:
        path = Path(root or '', ann_file).expanduser()
        if not path.is_file():
            raise DataError(f'{where}.ann_file: info file {path} does not exist; write it with '
                            f'tools/create_data.py --root-path {root or "DATA_ROOT"}')
        if path.stat().st_size == 0:
            raise DataError(f'{where}.ann_file: info file {path} is empty; write it again with '
                            f'tools/create_data.py --root-path {root or "DATA_ROOT"}')


def check_class_names(classes: Sequence[str], known: Sequence[str], *, where: str) -> None:
    """Every class is one of those that the data has, once.

    Raises:
        ConfigError: One is not.
    """
    for name in classes:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f'did you mean {close[0]!r}?' if close else f'known: {", ".join(known)}'
            raise ConfigError(f'{where}: unknown class {name!r}; {hint}')
    if len(set(classes)) != len(classes):
        raise ConfigError(f'{where}: a class is listed twice: {", ".join(classes)}')


def check_heads(heads: Mapping[str, Any], metainfo: Mapping[str, Any], *, where: str) -> None:
    """The heads predict the classes that the dataset has, in its order.

    Raises:
        ConfigError: The number of classes, or their names, disagree.
    """
    classes = metainfo.get('classes')
    number = (heads.get('object') or {}).get('num_classes')
    if classes is not None and number is not None and number != len(classes):
        raise ConfigError(f'model.heads.object.num_classes is {number}, but '
                          f'{where}.metainfo.classes lists {len(classes)}; make them agree')
    map_classes = metainfo.get('map_classes')
    predicted = (heads.get('map') or {}).get('classes')
    if map_classes is not None and predicted is not None and list(map_classes) != list(predicted):
        raise ConfigError(f'model.heads.map.classes is {list(predicted)}, but '
                          f'{where}.metainfo.map_classes is {list(map_classes)}; make them agree')


def check_pipeline(pipeline: Sequence[Mapping[str, Any]], model: Mapping[str, Any], *, where: str,
                   training: bool) -> None:
    """The pipeline loads the images, points and map masks that the model asks for.

    Raises:
        ConfigError: It does not.
    """
    loads = [str(step.get('type')) for step in flatten(pipeline)]
    loads = [name for name in loads if 'Load' in name]
    encoders, heads = _section(model, 'encoders'), _section(model, 'heads')
    needs = [('Image', encoders.get('camera'), 'model.encoders.camera', 'LoadMultiViewImages'),
             ('Points', encoders.get('lidar'), 'model.encoders.lidar', 'LoadPointsWithSweeps')]
    if training:
        needs += [('Map', heads.get('map'), 'model.heads.map', 'LoadBEVMapMasks'),
                  ('Annotations3D', heads.get('object'), 'model.heads.object', 'LoadAnnotations3D')]
    for word, part, asked_by, step in needs:
        if part and not any(word in name for name in loads):
            raise ConfigError(
                f'{asked_by} is configured, but {where}.pipeline loads no {word.lower()}; add '
                f'dict(type={step!r}, ...) or leave {asked_by} out')


def check_checkpoints(config: Mapping[str, Any], *, mode: str) -> None:
    """Every checkpoint that the config names can be read, none of an earlier run is in the way.

    Raises:
        CheckpointError: See `check_config`.
    """
    sources = named_checkpoints(config)
    for path in sources:
        if not path.startswith(_URL) and not (config.get('resume') and Path(path).is_dir()):
            read_checkpoint(path, mmap=True, verify=True)
    for where, path in pretrained_paths(config['model'], 'model'):
        if not path.startswith(_URL) and not Path(path).expanduser().is_file():
            raise CheckpointError(f'{where}: checkpoint {path} does not exist; download it there, '
                                  'or leave init_cfg out')
    if mode != 'train':
        return
    require_writable(config['work_dir'])
    folder, template = checkpoint_folder(config), template_in(config)
    if not config.get('resume'):
        refuse_used_folder(folder, template=template)
    elif not sources and not list_checkpoints(folder, template=template):
        raise CheckpointError(f'--resume: {folder} holds no checkpoint; leave --resume out to '
                              'start, or name a file')


def named_checkpoints(config: Mapping[str, Any]) -> List[str]:
    """Paths of the checkpoints in `load_from`, without the modules they are assigned to."""
    sources = config.get('load_from')
    sources = [sources] if isinstance(sources, str) else list(sources or ())
    if config.get('resume'):
        return sources
    return list(dict.fromkeys(source.path for source in parse_sources(sources)))


def trust_named_checkpoints(config: Mapping[str, Any]) -> None:
    """Trust every checkpoint that this run may read: `--trust-checkpoint`."""
    paths = named_checkpoints(config)
    paths += [path for _, path in pretrained_paths(config['model'], 'model')]
    if config.get('resume'):
        folders = [path for path in paths if Path(path).is_dir()] or [checkpoint_folder(config)]
        paths += [str(path) for folder in folders for path in list_checkpoints(
            folder, template=template_in(config))]
    trust_files(path for path in paths if not path.startswith(_URL))


def pretrained_paths(node: Any, where: str) -> Iterator[Tuple[str, str]]:
    """(place in the config, path) of every `init_cfg=dict(type='Pretrained', checkpoint=...)`."""
    if isinstance(node, Mapping):
        if node.get('type') == 'Pretrained' and isinstance(node.get('checkpoint'), str):
            yield f'{where}.checkpoint', node['checkpoint']
        for key, value in node.items():
            yield from pretrained_paths(value, f'{where}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from pretrained_paths(value, f'{where}[{index}]')


def _section(model: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A dictionary within the model's config; empty for a model that has no such dictionary."""
    value = model.get(name)
    return value if isinstance(value, Mapping) else {}
