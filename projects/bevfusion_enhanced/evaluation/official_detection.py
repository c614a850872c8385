"""nuScenes' own detection evaluation, run on a chosen set of samples and on parts of it.

The devkit's command insists on the samples of a named split. Its loaders, filters, matching and
scores are used here as they are, for exactly the samples that were predicted.
"""
import copy
from typing import Dict, List, Optional, Sequence

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
)
from nuscenes.eval.detection.algo import accumulate, calc_ap
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval

from bevfusion_enhanced.evaluation.rings import Ring, ring_name
from bevfusion_enhanced.evaluation.scene_kinds import SCENE_KINDS, scene_kinds


class SampleDetectionEval(DetectionEval):
    """The official evaluation of `results` over its own samples.

    Args:
        nusc: The database.
        config: The protocol, such as `config_factory('detection_cvpr_2019')`.
        results: Sample token -> records in submission form; no records at all are allowed.
    """

    def __init__(self, *, nusc: NuScenes, config: DetectionConfig,
                 results: Dict[str, List[dict]]) -> None:
        self.nusc = nusc
        self.cfg = config
        self.verbose = False
        self.meta: dict = {}
        self.sample_tokens = list(results)
        self.gt_boxes = self._filtered(
            load_gt_of_sample_tokens(nusc, self.sample_tokens, DetectionBox))
        self.pred_boxes = self._filtered(EvalBoxes.deserialize(results, DetectionBox))

    def precision_by_ring(self, rings: Sequence[Ring]) -> Dict[str, Dict[str, float]]:
        """Average precision of what lies in each ring around the ego, by class and in the mean.

        True and predicted boxes of a ring are matched among themselves, by the official rule. A
        class without a true box in a ring, or that is not evaluated so far out, is left out of it.

        Args:
            rings: Of the centre's distance, metres.

        Returns:
            {ring: {class: AP, 'mean': AP}}; no entry for a ring without any true box.
        """
        found = {}
        for ring in rings:
            true, predicted = (_within(boxes, ring) for boxes in (self.gt_boxes, self.pred_boxes))
            present = {box.detection_name for box in true.all}
            values = {name: self._precision(true, predicted, name)
                      for name in self.cfg.class_names if name in present}
            if values:
                found[ring_name(ring)] = {**values, 'mean': float(np.mean(list(values.values())))}
        return found

    def samples_by_kind(self) -> Dict[str, List[str]]:
        """Tokens of the samples of day, night and rain, by their scenes' descriptions."""
        members: Dict[str, List[str]] = {kind: [] for kind in SCENE_KINDS}
        for token in self.sample_tokens:
            scene = self.nusc.get('scene', self.nusc.get('sample', token)['scene_token'])
            for kind in scene_kinds(scene['description']):
                members[kind].append(token)
        return members

    def of_samples(self, tokens: Sequence[str]) -> Optional['SampleDetectionEval']:
        """The same evaluation of some of the samples, over the classes that have a true box there.

        Args:
            tokens: Of the samples, each one of this evaluation's.

        Returns:
            None where none of them has a true box.
        """
        part = copy.copy(self)
        part.sample_tokens = list(tokens)
        part.gt_boxes, part.pred_boxes = (_of_samples(boxes, tokens)
                                          for boxes in (self.gt_boxes, self.pred_boxes))
        present = {box.detection_name for box in part.gt_boxes.all}
        part.cfg = copy.copy(self.cfg)
        part.cfg.class_names = [name for name in self.cfg.class_names if name in present]
        return part if present else None

    def _precision(self, true: EvalBoxes, predicted: EvalBoxes, name: str) -> float:
        """The mean over the protocol's matching distances."""
        return float(np.mean([
            calc_ap(accumulate(true, predicted, name, self.cfg.dist_fcn_callable, distance),
                    self.cfg.min_recall, self.cfg.min_precision)
            for distance in self.cfg.dist_ths]))

    def _filtered(self, boxes: EvalBoxes) -> EvalBoxes:
        """Drop what the protocol ignores; the devkit's filter cannot take a set without any box."""
        if not boxes.all:
            return boxes
        return filter_eval_boxes(self.nusc, add_center_dist(self.nusc, boxes), self.cfg.class_range)


def _of_samples(boxes: EvalBoxes, tokens: Sequence[str]) -> EvalBoxes:
    chosen = EvalBoxes()
    for token in tokens:
        chosen.add_boxes(token, boxes[token])
    return chosen


def _within(boxes: EvalBoxes, ring: Ring) -> EvalBoxes:
    near, far = ring
    inside = EvalBoxes()
    for token in boxes.sample_tokens:
        inside.add_boxes(token, [box for box in boxes[token] if near <= box.ego_dist < far])
    return inside
