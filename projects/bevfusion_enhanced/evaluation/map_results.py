"""The map task's result: counts of cells by sample, how they are kept, and IoU from them.

On disk: `map_results.npz`, compressed, without pickled objects: `tokens` (N,) and `descriptions`
(N,) of the samples' scenes, `histograms` (N, R + 1, C, 2, T + 1) int32 (see `map_counts.py`; the
last region lies in no ring), and `about`, JSON with the protocol and the conditions. Where masks
are kept, `map_masks/<token>.npz` holds, packed to bits, the true masks and the number of thresholds
that each probability reaches, from which other rings can be counted.

IoU of a class is tp / (tp + fp + fn + 1e-7) over the cells of all samples; `iou@max` is its best
over the thresholds, and the mean of `iou@max` that of the classes' best. Over the whole set a class
without any true cell scores 0. In a part of it (a ring, night, ...) such a class is left out, of
the part's mean as well: small parts lack classes by chance.

Shapes: N samples, R rings, C map classes, T thresholds, X and Y cells of the grid.
"""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np
import torch

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.evaluation.map_counts import counts_of, histogram, iou_from_counts
from bevfusion_enhanced.evaluation.protocol import map_protocol
from bevfusion_enhanced.evaluation.rings import Ring, check_rings, ring_name, rings_of_cells
from bevfusion_enhanced.evaluation.scene_kinds import SCENE_KINDS, scene_kinds

RESULTS_FILE = 'map_results.npz'
MASKS_FOLDER = 'map_masks'
_FIXED = 0.5
"""The threshold at which parts are scored beside their best one."""


@dataclass(frozen=True)
class MapResults:
    """Counts of a set of samples.

    Attributes:
        tokens: N, each once.
        descriptions: Of the samples' scenes, '' where unknown.
        histograms: (N, R + 1, C, 2, T + 1) int32.
        protocol: See `map_protocol`.
        conditions: How the predictions came about, for people.
    """

    tokens: Tuple[str, ...]
    descriptions: Tuple[str, ...]
    histograms: np.ndarray
    protocol: Mapping[str, Any]
    conditions: Mapping[str, Any]


def map_metrics(results: MapResults) -> Dict[str, float]:
    """`<class>/iou@<t>`, `<class>/iou@max`, the same for `mean`, and for parts of the set.

    Parts are rings, `0-15m/<class>/iou@0.50`, and kinds of scenes, `night/mean/iou@max`; they are
    scored at 0.5, where that is a threshold, and at each class's best threshold in that part.
    """
    thresholds = results.protocol['thresholds']
    counts = counts_of(results.histograms.sum(axis=(0, 1), dtype=np.int64))           # (T, C, 3)
    iou = iou_from_counts(counts)                                                     # (T, C)
    metrics: Dict[str, float] = {}
    for name, values in (*zip(results.protocol['classes'], iou.T, strict=True),
                         ('mean', iou.mean(axis=1))):
        for threshold, value in zip(thresholds, values, strict=True):
            metrics[f'{name}/iou@{threshold:.2f}'] = float(value)
        metrics[f'{name}/iou@max'] = float(values.max())
    metrics['mean/iou@max'] = float(iou.max(axis=0).mean())
    for part, histograms in parts(results):
        metrics.update({f'{part}/{key}': value for key, value in part_metrics(
            counts_of(histograms), results.protocol['classes'], thresholds).items()})
    return metrics


def parts(results: MapResults) -> Iterator[Tuple[str, np.ndarray]]:
    """(name, (C, 2, T + 1) histogram) of each ring and of each kind of scene that occurs."""
    by_ring = results.histograms.sum(axis=0, dtype=np.int64)
    for ring, counted in zip(check_rings(results.protocol['rings']), by_ring):
        yield ring_name(ring), counted
    by_sample = results.histograms.sum(axis=1, dtype=np.int64)
    for kind, members in samples_by_kind(results).items():
        if members.any():
            yield kind, by_sample[members].sum(axis=0)


def samples_by_kind(results: MapResults) -> Dict[str, np.ndarray]:
    """(N,) bool for each kind of scene."""
    kinds = [scene_kinds(description) for description in results.descriptions]
    return {kind: np.array([kind in found for found in kinds], dtype=bool) for kind in SCENE_KINDS}


def part_metrics(counts: np.ndarray, classes: Sequence[str],
                 thresholds: Sequence[float]) -> Dict[str, float]:
    """IoU of the classes with true cells at 0.5 and at the best threshold, and their mean.

    Args:
        counts: (T, C, 3).
        classes: C names.
        thresholds: T of them.
    """
    present = counts[0, :, 0] + counts[0, :, 2] > 0                                   # (C,)
    if not present.any():
        return {}
    iou = iou_from_counts(counts[:, present])
    columns = {'iou@max': iou.max(axis=0)}
    if _FIXED in thresholds:
        columns[f'iou@{_FIXED:.2f}'] = iou[list(thresholds).index(_FIXED)]
    metrics = {}
    names = [name for name, there in zip(classes, present, strict=True) if there]
    for column, values in columns.items():
        for name, value in zip((*names, 'mean'), (*values, values.mean()), strict=True):
            metrics[f'{name}/{column}'] = float(value)
    return metrics


def absent_classes(results: MapResults) -> List[str]:
    """Classes that no sample has a true cell of."""
    true = results.histograms.sum(axis=(0, 1), dtype=np.int64)[:, 1].sum(axis=-1)     # (C,)
    return [name for name, cells in zip(results.protocol['classes'], true, strict=True)
            if not cells]


def save_map_results(results: MapResults, folder: Path) -> Path:
    """Write `map_results.npz`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    about = json.dumps(dict(protocol=results.protocol, conditions=results.conditions))
    return _save(folder / RESULTS_FILE, tokens=np.array(results.tokens, dtype=np.str_),
                 descriptions=np.array(results.descriptions, dtype=np.str_),
                 histograms=results.histograms, about=np.array(about))


def load_map_results(path: Path) -> MapResults:
    """Read what `save_map_results` wrote.

    Raises:
        DataError: The file is missing, broken, or of something else.
    """
    content = _load(path, ('tokens', 'descriptions', 'histograms', 'about'))
    about = json.loads(str(content['about']))
    return MapResults(tokens=tuple(content['tokens'].tolist()),
                      descriptions=tuple(content['descriptions'].tolist()),
                      histograms=content['histograms'], protocol=about['protocol'],
                      conditions=about['conditions'])


def save_masks(folder: Path, token: str, *, levels: torch.Tensor, masks: torch.Tensor,
               num_thresholds: int) -> Path:
    """Write one sample's map below `folder`/map_masks, a few bits a cell.

    Args:
        folder: Of the results.
        token: The sample's.
        levels: (C, X, Y), from `reached_thresholds`.
        masks: (C, X, Y), 0 or 1.
        num_thresholds: T.
    """
    bits = np.arange(max(1, int(num_thresholds).bit_length()))
    planes = (levels.cpu().numpy()[None] >> bits[:, None, None, None]) & 1
    (folder / MASKS_FOLDER).mkdir(parents=True, exist_ok=True)
    return _save(_mask_file(folder, token), shape=np.array(levels.shape),
                 levels=np.packbits(planes.astype(bool)),
                 masks=np.packbits(masks.cpu().numpy().astype(bool)))


def load_masks(folder: Path, token: str) -> Tuple[torch.Tensor, torch.Tensor]:
    """The `levels` and `masks` of one sample, (C, X, Y) int64 each.

    Raises:
        DataError: They were not kept, or the file is broken.
    """
    content = _load(_mask_file(folder, token), ('shape', 'levels', 'masks'))
    shape = tuple(content['shape'].tolist())
    cells = int(np.prod(shape))
    planes = np.unpackbits(content['levels'])
    planes = planes[:len(planes) // cells * cells].reshape(-1, *shape)
    levels = (planes.astype(np.int64) << np.arange(len(planes))[:, None, None, None]).sum(axis=0)
    masks = np.unpackbits(content['masks'])[:cells].reshape(shape).astype(np.int64)
    return torch.from_numpy(levels), torch.from_numpy(masks)


def with_rings(results: MapResults, rings: Sequence[Ring], folder: Path) -> MapResults:
    """The same result counted by other rings, from the masks kept in `folder`.

    Raises:
        DataError: No masks were kept, or not of every sample, or the grid is not known.
    """
    rings = check_rings(rings)
    protocol = dict(results.protocol)
    if list(map(list, rings)) == [list(ring) for ring in protocol['rings']]:
        return results
    if not (folder / MASKS_FOLDER).is_dir():
        raise DataError(f'{folder}: cells were counted for the rings {protocol["rings"]} and no '
                        'masks were kept, so there is no counting for others; test again with '
                        '--save-masks')
    if protocol['xbound'] is None:
        raise DataError(f'{folder}: the grid of its masks is not known, so there are no rings')
    regions = torch.from_numpy(rings_of_cells(rings, xbound=protocol['xbound'],
                                              ybound=protocol['ybound']))
    counted = []
    for token in results.tokens:
        levels, masks = load_masks(folder, token)
        counted.append(histogram(levels, masks, num_thresholds=len(protocol['thresholds']),
                                 regions=regions, num_regions=len(rings) + 1))
    protocol['rings'] = [list(ring) for ring in rings]
    return MapResults(tokens=results.tokens, descriptions=results.descriptions,
                      histograms=np.stack(counted), protocol=protocol,
                      conditions=results.conditions)


def make_map_results(records: Sequence[Mapping[str, Any]], *, classes: Sequence[str],
                     thresholds: Sequence[float], rings: Sequence[Ring], grid: Mapping[str, Any],
                     dataset_meta: Mapping[str, Any],
                     conditions: Mapping[str, Any]) -> MapResults:
    """The result of a set of samples from one record each: token, description and histogram."""
    tokens = tuple(str(record['token']) for record in records)
    return MapResults(
        tokens=tokens, descriptions=tuple(record['description'] or '' for record in records),
        histograms=np.stack([record['histogram'] for record in records]),
        protocol=map_protocol(classes=classes, thresholds=thresholds, rings=rings, grid=grid,
                              tokens=tokens, version=dataset_meta.get('version'),
                              split=dataset_meta.get('split')),
        conditions=dict(conditions))


def _mask_file(folder: Path, token: str) -> Path:
    return folder / MASKS_FOLDER / f'{token}.npz'


def _save(path: Path, **arrays: np.ndarray) -> Path:
    temporary = path.with_name(f'.{path.name}.tmp')
    with open(temporary, 'wb') as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)
    return path


def _load(path: Path, names: Sequence[str]) -> Dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except OSError as error:
        raise DataError(f'map result {path}: {error.strerror or error}') from None
    except Exception as error:  # a broken archive fails in many ways: zlib, zipfile, headers
        raise DataError(f'map result {path} cannot be read ({type(error).__name__}: {error}); '
                        'test again') from None
