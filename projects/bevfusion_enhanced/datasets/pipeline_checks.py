"""Whether a pipeline fits the samples that it is given, known before the first one is read."""
import os
from typing import Any, Iterator, Mapping, Sequence

from mmengine.logging import print_log

from bevfusion_enhanced.datasets.transforms.loading import LoadPointsWithSweeps
from bevfusion_enhanced.datasets.transforms.map_masks import LoadBEVMapMasks
from bevfusion_enhanced.datasets.transforms.object_sample import BEVFusionObjectSample
from bevfusion_enhanced.errors import ConfigError, DataError


def transforms_of(dataset: Any) -> Iterator[Any]:
    """Every transform of a dataset, also inside wrappers of datasets and of transforms."""
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            yield from transforms_of(inner)
    if hasattr(dataset, 'pipeline'):
        yield from _unwrapped(dataset.pipeline)


def _unwrapped(transform: Any) -> Iterator[Any]:
    yield transform
    inner = getattr(transform, 'transforms', None)
    if isinstance(inner, (list, tuple)):
        for step in inner:
            yield from _unwrapped(step)
    elif inner is not None:
        yield from _unwrapped(inner)


def check_pipeline_fits(pipeline: Any, *, metainfo: Mapping[str, Any], samples: Sequence[dict],
                        info_file: str) -> None:
    """Classes of transforms are those of the dataset, and sweeps that they ask for are there.

    Raises:
        ConfigError: Classes differ, so that labels would mean something else.
        DataError: There are no sweeps.
    """
    for transform in _unwrapped(pipeline):
        if isinstance(transform, BEVFusionObjectSample):
            _check_classes(transform.classes, metainfo, 'classes', 'BEVFusionObjectSample')
        elif isinstance(transform, LoadBEVMapMasks) and metainfo.get('map_classes'):
            _check_classes(transform.masks.classes, metainfo, 'map_classes', 'LoadBEVMapMasks')
        elif isinstance(transform, LoadPointsWithSweeps) and transform.sweeps_num:
            _check_sweeps(transform.sweeps_num, samples, info_file)


def _check_classes(classes: Sequence[str], metainfo: Mapping[str, Any], field: str,
                   transform: str) -> None:
    if list(classes) != list(metainfo[field]):
        raise ConfigError(f'{transform}.classes is {list(classes)}, but metainfo.{field} is '
                          f'{list(metainfo[field])}; make them agree, in order too')


def _check_sweeps(asked: int, samples: Sequence[dict], info_file: str) -> None:
    most = max(samples, key=lambda sample: len(sample.get('lidar_sweeps', ())))
    sweeps = most.get('lidar_sweeps', ())
    if not sweeps and len(samples) == 1 and not most.get('prev'):
        return  # the first of its scene
    if not sweeps:
        raise DataError(f'LoadPointsWithSweeps asks for {asked} sweeps, but info file {info_file} '
                        'lists none; set sweeps_num=0, or create it with tools/create_data.py '
                        '--max-sweeps 10')
    if len(sweeps) < asked:
        print_log(f'LoadPointsWithSweeps asks for {asked} sweeps, but no sample of {info_file} has '
                  f'more than {len(sweeps)}', logger='current', level=30)
    for sweep in sweeps[:asked]:
        path = sweep['lidar_points']['lidar_path']
        if not os.path.isfile(path):
            raise DataError(f'sample {most["token"]}: sweep {path} does not exist; unpack the '
                            'sweeps into sweeps/ of the dataset root, check data_prefix.sweeps, or '
                            'set sweeps_num=0')
