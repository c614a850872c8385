"""IoU of the map task over a whole dataset, by the protocol of BEVFusion (Liu et al., 2023).

For each map class and threshold t, a cell is predicted where its probability is at least t. Cells
that are true and predicted, predicted only, and true only are counted over all samples; IoU = tp /
(tp + fp + fn + 1e-7). `iou@max` is a class's best IoU over the thresholds, its mean is the mean of
these: it chooses the thresholds by the truth it is scored against. `iou@0.50` does not. A class
that occurs in no ground truth scores 0, also where it is predicted nowhere.

Shapes: T thresholds, R rings, C map classes, X and Y cells of the grid.
"""
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from mmdet3d.registry import METRICS
from mmengine.logging import MMLogger

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.evaluation.map_counts import THRESHOLDS, histogram, reached_thresholds
from bevfusion_enhanced.evaluation.map_results import (
    MapResults,
    absent_classes,
    make_map_results,
    map_metrics,
    samples_by_kind,
    save_map_results,
    save_masks,
)
from bevfusion_enhanced.evaluation.once_per_sample import OncePerSampleMetric
from bevfusion_enhanced.evaluation.rings import DEFAULT_RINGS, Ring, check_rings, rings_of_cells


@METRICS.register_module()
class BEVMapIoUMetric(OncePerSampleMetric):
    """Map IoU at each threshold and at the best of them, per class and mean, and for parts.

    Keys: `map/<class>/iou@<t>`, `map/<class>/iou@max`, `map/mean/iou@<t>`, `map/mean/iou@max`;
    fractions of one. Parts of the set: `map/<part>/<class>/iou@0.50` and `.../iou@max`, where a
    part is a ring around the vehicle, such as `0-15m`, or `day`, `night` or `rain` by the scene's
    description; `map_results.py` says how parts are scored. Samples carry `pred_bev_map.probs` and
    `gt_bev_map.masks`, (C, X, Y), and in their metainfo `token`, `scene_description` and
    `map_grid`; what is kept of a sample, and exchanged between processes, are counts.

    Args:
        thresholds: Of the probability, ascending.
        classes: Names of the C classes; None takes `map_classes` of the dataset's metainfo.
        rings: Distances from the LiDAR by which cells are told apart, metres; cells farther away
            count in the whole only. Without `map_grid` in the samples there are none.
        by_scene: Score day, night and rain.
        results_dir: Folder in which `map_results.npz` is kept; none is where it is None.
        save_masks: Keep every sample's map as well, packed to bits.
        collect_device: Where processes exchange counts: 'cpu' or 'gpu'.
        prefix: Replaces 'map' in the keys.

    Raises:
        ConfigError: No thresholds, rings that are none, or class names that are not there.
        DataError: A sample without prediction or truth, or of another shape or grid.
    """

    default_prefix = 'map'

    def __init__(self, *, thresholds: Sequence[float] = THRESHOLDS,
                 classes: Optional[Sequence[str]] = None,
                 rings: Sequence[Sequence[float]] = DEFAULT_RINGS, by_scene: bool = True,
                 results_dir: Optional[str] = None, save_masks: bool = False,
                 collect_device: str = 'cpu', prefix: Optional[str] = None) -> None:
        super().__init__(results_dir=results_dir, collect_device=collect_device, prefix=prefix)
        if (not thresholds or not all(0 < threshold < 1 for threshold in thresholds)
                or list(thresholds) != sorted(set(thresholds))):
            raise ConfigError(f'thresholds are {list(thresholds)}; expected some between 0 and 1, '
                              'ascending')
        self.thresholds = tuple(thresholds)
        self.classes = classes
        self.rings = check_rings(rings)
        self.by_scene = by_scene
        self.save_masks = save_masks
        self._grid: Optional[Mapping[str, Any]] = None
        self._regions: Optional[torch.Tensor] = None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the cells of each sample."""
        for sample in data_samples:
            probs, masks = _maps(sample)
            self._use_grid(sample)
            levels = reached_thresholds(probs, self.thresholds)
            token = _token(sample)
            self.results.append(dict(
                token=token, grid=self._grid,
                description=sample.get('scene_description') if self.by_scene else None,
                histogram=histogram(levels, masks, num_thresholds=len(self.thresholds),
                                    regions=self._regions, num_regions=len(self._used_rings) + 1)))
            if self.save_masks:
                self._save_masks(token, levels, masks)

    def score(self, records: List[dict]) -> Dict[str, float]:
        """IoU from the counts of all samples; keeps the counts where that was asked for."""
        if not records:
            raise DataError('no map was predicted, so there is no IoU; the dataset is empty')
        results = self._results(records)
        absent = absent_classes(results)
        if absent:
            MMLogger.get_current_instance().warning(
                f'map classes {absent} occur in no ground truth of this set; they score 0')
        if any(results.descriptions):
            counts = {kind: int(members.sum()) for kind, members in
                      samples_by_kind(results).items()}
            MMLogger.get_current_instance().info(
                f'map: samples by the description of their scene: {counts} of {len(records)}')
        if self.results_dir is not None:
            save_map_results(results, self.results_dir)
        return map_metrics(results)

    def _results(self, records: List[dict]) -> MapResults:
        grids = [record['grid'] for record in records]
        other = next((grid for grid in grids if grid != grids[0]), grids[0])
        if other != grids[0]:
            raise DataError(f'samples have maps of different grids, {grids[0]} and {other}; they '
                            'cannot be scored together')
        grid = grids[0] or {}
        classes = list(self._class_names(records[0]['histogram'].shape[1]))
        if grid.get('classes', classes) != classes:
            raise ConfigError(f'the true maps are of {grid["classes"]}, the metric names them '
                              f'{classes}; give both the same classes in the same order')
        return make_map_results(
            records, classes=classes, thresholds=self.thresholds,
            rings=self.rings if grid else (), grid=grid, dataset_meta=self.dataset_meta or {},
            conditions=self.conditions)

    @property
    def _used_rings(self) -> Tuple[Ring, ...]:
        return self.rings if self._grid else ()

    def _use_grid(self, sample: dict) -> None:
        """Learn from the first sample what the cells are; where that is unknown, have no rings."""
        grid = sample.get('map_grid')
        if grid == self._grid:
            return
        self._grid = grid
        self._regions = None if grid is None else torch.from_numpy(rings_of_cells(
            self.rings, xbound=grid['xbound'], ybound=grid['ybound']))
        shape = sample['gt_bev_map']['masks'].shape[1:]
        if self._regions is not None and tuple(shape) != tuple(self._regions.shape):
            raise DataError(f'sample {_token(sample)}: the true map is {tuple(shape)}, but its '
                            f'grid {grid} has {tuple(self._regions.shape)} cells')

    def _save_masks(self, token: Optional[str], levels: torch.Tensor, masks: torch.Tensor) -> None:
        if self.results_dir is None:
            raise ConfigError('save_masks needs results_dir, the folder to write to')
        if token is None:
            raise DataError('save_masks: a sample has no token to name its file by; add token to '
                            'the meta keys of the packing step')
        save_masks(self.results_dir, token, levels=levels, masks=masks,
                   num_thresholds=len(self.thresholds))

    def _class_names(self, count: int) -> Sequence[str]:
        classes = self.classes or (self.dataset_meta or {}).get('map_classes')
        if not classes or len(classes) != count:
            raise ConfigError(f'map_classes are {classes}, the masks have {count} channels; name '
                              "the classes in the dataset's metainfo.map_classes")
        return classes


def _token(sample: dict) -> Optional[Any]:
    return sample.get('token', sample.get('sample_idx'))


def _maps(sample: dict) -> Tuple[torch.Tensor, torch.Tensor]:
    """Predicted probabilities and true masks of a sample, (C, X, Y) each."""
    for field, step in (('pred_bev_map', 'give the model a map head'),
                        ('gt_bev_map', 'add LoadBEVMapMasks to the test pipeline')):
        if field not in sample:
            raise DataError(f'sample {_token(sample)} has no {field}, so there is no map to score; '
                            f'{step}')
    probs = sample['pred_bev_map']['probs']
    masks = torch.as_tensor(sample['gt_bev_map']['masks'])
    if probs.shape != masks.shape:
        raise DataError(f'sample {_token(sample)}: predicted map is {tuple(probs.shape)}, the true '
                        f'one {tuple(masks.shape)}; the head and LoadBEVMapMasks must have the '
                        'same classes, xbound and ybound')
    return probs, masks
