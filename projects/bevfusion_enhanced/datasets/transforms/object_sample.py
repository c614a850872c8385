"""Pasting annotated objects of other scenes into a scan (GT sampling; Yan et al., SECOND, 2018).

Frame: LiDAR x right, y forward, z up, metres, before any augmentation of the scene: an object is
pasted where its own LiDAR saw it. Boxes are (x, y, z of the bottom centre, dx, dy, dz, yaw, vx,
vy).

Shapes: M boxes of the sample, K candidates, P points.
"""
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from torch import Tensor

from bevfusion_enhanced.datasets.box_points import points_in_boxes
from bevfusion_enhanced.datasets.map_masks import load_vector_map, map_file, require_maps
from bevfusion_enhanced.datasets.object_database import read_object_database
from bevfusion_enhanced.datasets.vocabulary import LINE_LAYERS, MAP_LAYERS
from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.ops.rotated_boxes import bev_overlap, nms_rotated

_GROUND = [0, 1, 3, 4, 6]
_HALF_A_TURN = 0.025  # seconds, of a LiDAR at 20 Hz
_AT_FIRST = -1


@TRANSFORMS.register_module()
class BEVFusionObjectSample(BaseTransform):
    """Fill a sample up with objects of a GT database, so that rare classes are seen more often.

    Only the scan and the boxes change. As in the original BEVFusion nothing is pasted into the
    images, which therefore do not show what the boxes say: a model that uses cameras should stop
    early or do without. The map does not change either, and neither does its ground truth; what
    stands in a house or on a lawn teaches the map task something wrong, which `only_on` prevents.

    An object that overlaps a box, or an object pasted before it, is left out. Points of the scan
    within a pasted box are removed, points of the object that are older than the scan's oldest are
    left out. It comes after `LoadAnnotations3D` and before all augmentations of the scene, which
    then move what was pasted like everything else.

    Required keys: `points`, `gt_bboxes_3d`, `gt_labels_3d`; with `only_on` those of
    `LoadBEVMapMasks`. Changed keys: `points`, `gt_bboxes_3d`, `gt_labels_3d`.

    Args:
        info_path: The database's info file, which tools/create_data.py --gt-database writes.
        classes: Names by label, as in the dataset's metainfo.
        sample_groups: By class, up to how many objects a sample is filled.
        data_root: Folder where the database's paths start; None is that of `info_path`.
        rate: Share of the lacking objects that is pasted.
        min_points: How many points an object must have: one number, or one a class.
        load_dim: Columns of the files of points.
        stop_epoch: Paste in this number of epochs only; needs `DatasetHook` among the hooks.
            None pastes always.
        only_on: Map classes on which an object must stand with its centre and corners: one list
            for all classes, or one a class (classes that are not named may stand anywhere).
        map_root: The dataset root, whose maps/expansion/ is read; for `only_on`.
        tries: How many candidates are drawn for each lacking object.

    Raises:
        ConfigError: A class or map class that does not exist, a number that is none, or a place in
            the pipeline after an augmentation of the scene.
        DataError: The database or the maps are not there.
    """

    def __init__(self, *, info_path: str, classes: Sequence[str],
                 sample_groups: Mapping[str, int], data_root: Optional[str] = None,
                 rate: float = 1.0, min_points: Union[int, Mapping[str, int]] = 5,
                 load_dim: int = 5, stop_epoch: Optional[int] = None,
                 only_on: Optional[Union[Sequence[str], Mapping[str, Sequence[str]]]] = None,
                 map_root: Optional[str] = None, tries: int = 1) -> None:
        if not 0 <= rate <= 1 or tries < 1 or load_dim < 5:
            raise ConfigError(f'rate {rate}, tries {tries}, load_dim {load_dim}: expected a rate '
                              'from 0 to 1, at least 1 try and at least 5 columns')
        by_class = min_points if isinstance(min_points, Mapping) else dict.fromkeys(classes,
                                                                                   min_points)
        for name, mapping in (('sample_groups', sample_groups), ('min_points', by_class)):
            _check_keys(name, mapping, classes)
        self.classes = tuple(classes)
        self.rate, self.tries, self.stop_epoch = rate, tries, stop_epoch
        self.targets = np.array([int(sample_groups.get(name, 0)) for name in classes])
        self.min_points = np.array([max(1, int(by_class.get(name, 1))) for name in classes])
        self.areas = _areas(only_on, classes)
        self.map_root = map_root
        if only_on is not None:
            if map_root is None:
                raise ConfigError('only_on needs map_root, the dataset root with maps/expansion/')
            require_maps(map_root)
        wanted = {name: int(count) for name, count in zip(classes, self.min_points)}
        self.database = read_object_database(
            Path(info_path), folder=Path(data_root or Path(info_path).parent), load_dim=load_dim,
            classes=[name if sample_groups.get(name) else '' for name in classes],
            min_points=wanted)
        self._epoch = torch.full((1,), _AT_FIRST)
        if stop_epoch is not None:  # workers that live on from epoch to epoch see it change
            self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch (from 0) the next samples are for, in all processes that load them."""
        self._epoch.fill_(epoch)

    @property
    def pasting(self) -> bool:
        """Whether this epoch is one to paste in."""
        return self.stop_epoch is None or int(self._epoch) < self.stop_epoch

    def transform(self, results: dict) -> dict:
        """Paste objects; see the class."""
        if not self.pasting:
            return results
        _check_place(results)
        chosen = self._free(self._draw(results['gt_labels_3d']), results)
        if not len(chosen):
            return results
        points, owner = self.database.points(chosen)
        scan = results['points'].tensor
        if scan.shape[1] > 4:
            oldest = float(scan[:, 4].max()) if len(scan) else 0.0
            recent = points[:, 4] <= oldest + _HALF_A_TURN
            points, owner = points[recent], owner[recent]
        labels = self.database.labels(chosen)
        kept = np.bincount(owner, minlength=len(chosen)) >= self.min_points[labels]
        points = torch.from_numpy(points[kept[owner]][:, :scan.shape[1]])
        self._paste(results, points, self.database.boxes[chosen[kept]], labels[kept])
        return results

    def _draw(self, labels: np.ndarray) -> np.ndarray:
        """Candidates (K,) for the lacking objects, in the order in which they are tried."""
        counts = self.database.counts
        present = np.bincount(np.asarray(labels)[np.asarray(labels) >= 0],
                              minlength=len(self.classes))
        lacking = np.rint(self.rate * (self.targets - present).clip(min=0)).astype(np.int64)
        lacking[counts == 0] = 0
        wanted = np.tile(np.repeat(np.arange(len(self.classes)), lacking), self.tries)
        return self.database.first[wanted] + (np.random.rand(len(wanted))
                                              * counts[wanted]).astype(np.int64)

    def _free(self, candidates: np.ndarray, results: dict) -> np.ndarray:
        """Those candidates that stand where they may, at most as many a class as are lacking."""
        labels = self.database.labels(candidates)
        lacking = np.bincount(labels, minlength=len(self.classes)) // self.tries
        on_map = self._on_map(candidates, labels, results)
        candidates, labels = candidates[on_map], labels[on_map]
        boxes = torch.from_numpy(self.database.boxes[candidates][:, _GROUND])
        present = results['gt_bboxes_3d'].tensor[:, _GROUND]
        alone = (~(bev_overlap(boxes, present) > 0).any(dim=1)).nonzero().flatten()
        order = -torch.arange(len(alone), dtype=torch.float32)
        alone = alone[nms_rotated(boxes[alone], order, iou_threshold=0.0)].numpy()
        candidates, labels = candidates[alone], labels[alone]
        rank = np.tril(labels[:, None] == labels).sum(axis=1) - 1  # of its class, which it is
        return candidates[rank < lacking[labels]]

    def _on_map(self, candidates: np.ndarray, labels: np.ndarray, results: dict) -> np.ndarray:
        """Which candidates (K,) stand on the map classes that their class asks for."""
        allowed = np.ones(len(candidates), dtype=bool)
        if not self.areas or not len(candidates):
            return allowed
        lidar2global = (np.asarray(results['ego2global'], np.float64)
                        @ np.asarray(results['lidar_points']['lidar2ego'], np.float64))
        vector_map = load_vector_map(map_file(self.map_root, results['location']))
        corners = _footprints(self.database.boxes[candidates]) @ lidar2global[:3, :3].T
        corners = (corners + lidar2global[:3, 3])[..., :2]                          # (K, 5, 2)
        for layers, is_bound in self.areas.items():
            members = is_bound[labels]
            allowed[members] = vector_map.covers(
                corners[members].reshape(-1, 2), layers).reshape(-1, 5).all(axis=1)
        return allowed

    def _paste(self, results: dict, points: Tensor, boxes: np.ndarray,
               labels: np.ndarray) -> None:
        before, scan = results['gt_bboxes_3d'], results['points']
        boxes = torch.from_numpy(boxes[:, :before.tensor.shape[1]])
        covered, _ = points_in_boxes(scan.tensor, boxes)
        outside = torch.ones(len(scan.tensor), dtype=torch.bool)
        outside[covered] = False
        results['points'] = scan.new_point(torch.cat([points, scan.tensor[outside]]))
        results['gt_bboxes_3d'] = before.new_box(torch.cat([before.tensor, boxes]))
        results['gt_labels_3d'] = np.concatenate(
            [np.asarray(results['gt_labels_3d']), labels]).astype(np.int64)


def _footprints(boxes: np.ndarray) -> np.ndarray:
    """Bottom centre and corners (K, 5, 3) of boxes (K, 7 or more)."""
    signs = np.array([[0, 0], [1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    offsets = boxes[:, None, 3:5] * signs                                           # (K, 5, 2)
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])                          # (K, 1)
    turned = np.stack([offsets[..., 0] * cos - offsets[..., 1] * sin,
                       offsets[..., 0] * sin + offsets[..., 1] * cos,
                       np.zeros(offsets.shape[:2])], axis=-1)
    return (boxes[:, None, :3] + turned).astype(np.float64)


def _areas(only_on: Union[None, Sequence[str], Mapping[str, Sequence[str]]],
           classes: Sequence[str]) -> Dict[Tuple[str, ...], np.ndarray]:
    """Sets of layers of the vector map -> which labels (C,) bool must stand on one of them."""
    if only_on is None:
        return {}
    if not isinstance(only_on, Mapping):
        only_on = dict.fromkeys(classes, only_on)
    _check_keys('only_on', only_on, classes)
    known = [name for name, layers in MAP_LAYERS.items() if not set(layers) & set(LINE_LAYERS)]
    for names in only_on.values():
        if isinstance(names, str) or not names or not set(names) <= set(known):
            raise ConfigError(f'only_on: {names!r} is no list of map classes with an area; known: '
                              f'{known}')
    layers = [tuple(layer for area in only_on.get(name, ()) for layer in MAP_LAYERS[area])
              for name in classes]
    return {each: np.array([other == each for other in layers]) for each in set(layers) - {()}}


def _check_keys(name: str, mapping: Mapping, classes: Sequence[str]) -> None:
    unknown = [key for key in mapping if key not in classes]
    if unknown:
        raise ConfigError(f'{name} names {unknown}; classes are {list(classes)}')


def _check_place(results: dict) -> None:
    missing = [key for key in ('points', 'gt_bboxes_3d', 'gt_labels_3d') if key not in results]
    if missing:
        raise ConfigError(f'BEVFusionObjectSample finds no {missing}; put it after '
                          'LoadPointsWithSweeps and LoadAnnotations3D')
    if not np.array_equal(results.get('lidar_aug_matrix', np.eye(4)), np.eye(4)):
        raise ConfigError('BEVFusionObjectSample comes after an augmentation of the scene; put it '
                          'before them, so that they move what is pasted')
