"""nuScenes' own detection evaluation, run on a chosen set of samples.

The devkit's command insists on the samples of a named split. Its loaders, filters, matching and
scores are used here as they are, for exactly the samples that were predicted.
"""
from typing import Dict, List, Tuple

from nuscenes import NuScenes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import (
    DetectionBox,
    DetectionConfig,
    DetectionMetricDataList,
    DetectionMetrics,
)
from nuscenes.eval.detection.evaluate import DetectionEval


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

    def _filtered(self, boxes: EvalBoxes) -> EvalBoxes:
        """Drop what the protocol ignores; the devkit's filter cannot take a set without any box."""
        if not boxes.all:
            return boxes
        return filter_eval_boxes(self.nusc, add_center_dist(self.nusc, boxes), self.cfg.class_range)


def evaluate_detection(
        *, nusc: NuScenes, config: DetectionConfig, results: Dict[str, List[dict]]
) -> Tuple[DetectionMetrics, DetectionMetricDataList]:
    """Official metrics of `results`, see `SampleDetectionEval`."""
    return SampleDetectionEval(nusc=nusc, config=config, results=results).evaluate()
