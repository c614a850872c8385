"""Checks of what a pipeline's steps need on disk and from each other, before it is built."""
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Sequence

from ...errors import ConfigError, DataError

_PASTE = 'BEVFusionObjectSample'
_MASKS = 'LoadBEVMapMasks'
_EPOCH_HOOK = 'DatasetHook'
_MOVES_THE_SCENE = ('BEVFusionGlobalRotScaleTrans', 'BEVFusionRandomFlip3D')
_BEFORE_PASTING = ('LoadPointsWithSweeps', 'LoadAnnotations3D')


def check_steps(pipeline: Sequence[Mapping[str, Any]], *, metainfo: Mapping[str, Any],
                hooks: Sequence[str], where: str) -> None:
    """GT database and maps are there, and what is pasted comes at the right place and ends.

    Args:
        pipeline: The steps.
        metainfo: Of the dataset.
        hooks: Types of all hooks of the config.
        where: Place of the dataset in the config.

    Raises:
        DataError: A GT database or the maps are missing.
        ConfigError: Pasting comes too early or too late, has other classes, or never stops.
    """
    steps = list(flatten(pipeline))
    types = [str(step.get('type')) for step in steps]
    for index, step in enumerate(steps):
        place = f'{where}.pipeline: {types[index]}'
        if types[index] == _MASKS and step.get('data_root') is not None:
            _require_folder(Path(step['data_root'], 'maps', 'expansion'), place)
        if types[index] == _PASTE:
            _check_pasting(step, metainfo, hooks, place)
            _check_order(types, index, place)


def hook_types(config: Mapping[str, Any]) -> List[str]:
    """Types of the hooks of a config, default and custom ones."""
    hooks = [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or ())]
    return [str(hook.get('type')) for hook in hooks if isinstance(hook, Mapping)]


def flatten(pipeline: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The steps of a pipeline, with those inside wrappers such as `RandomApply`."""
    for step in pipeline:
        yield step
        inner = step.get('transforms')
        if isinstance(inner, Sequence):
            yield from flatten([each for each in inner if isinstance(each, Mapping)])


def _check_pasting(step: Mapping[str, Any], metainfo: Mapping[str, Any], hooks: Sequence[str],
                   place: str) -> None:
    path = step.get('info_path')
    if path is not None and not Path(path).expanduser().is_file():
        raise DataError(f'{place}.info_path: GT database {path} does not exist; write it with '
                        'tools/create_data.py --root-path DATASET_ROOT --gt-database, or leave the '
                        'step out')
    classes, known = step.get('classes'), metainfo.get('classes')
    if classes is not None and known is not None and list(classes) != list(known):
        raise ConfigError(f'{place}.classes is {list(classes)}, but metainfo.classes is '
                          f'{list(known)}; make them agree, in order too')
    if step.get('stop_epoch') is not None and _EPOCH_HOOK not in hooks:
        raise ConfigError(f'{place}.stop_epoch is {step["stop_epoch"]}, but no hook tells the '
                          f'epoch; add dataset=dict(type={_EPOCH_HOOK!r}) to default_hooks')


def _check_order(types: Sequence[str], index: int, place: str) -> None:
    early = [name for name in types[:index] if name in _MOVES_THE_SCENE]
    if early:
        raise ConfigError(f'{place} comes after {early[0]}; put it before, so that what is pasted '
                          'is moved too')
    for name in _BEFORE_PASTING:
        if name in types[index:]:
            raise ConfigError(f'{place} comes before {name}; put it after')


def _require_folder(folder: Path, place: str) -> None:
    if not folder.expanduser().is_dir():
        raise DataError(f"{place}.data_root: no vector maps: {folder} does not exist; unpack "
                        "nuScenes' map expansion (v1.3) into maps/ of the dataset root, or leave "
                        'the map task out')
