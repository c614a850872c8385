"""Test-time augmentation of both tasks: several views of a scene, one prediction.

Every view is a forward pass of its own. Boxes and maps are brought back into the sensor's frame by
the view's `lidar_aug_matrix` and merged there, see `view_merging.py`.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.model import BaseTTAModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.view_merging import Scope, boxes_to_sensor, merge_boxes, merge_maps

METHODS = ('weighted', 'nms')


@MODELS.register_module()
class BEVFusionTTAModel(BaseTTAModel):
    """A model whose predictions are merged over the views of a `TestTimeAug` pipeline.

    Args:
        module: The model, or its config.
        map_scope: (first edge, last edge, step) of the map's grid along x and along y, metres;
            needed where there is a map task.
        map_anchors: For each map class the place in a cell that its value belongs to, 0.5 the
            centre; all centres where it is None. nuScenes' raster paints areas with 0, see
            `engine/configuration/tta.py`.
        box_merge: 'weighted' or 'nms'.
        iou_threshold: Overlap on the ground, from which boxes of two views are of one object.
        max_boxes: Boxes of a sample at most.
        data_preprocessor: For a model that has none.

    Raises:
        ConfigError: An unknown way to merge, or a map without `map_scope`.
    """

    def __init__(self, *, module: Union[Dict[str, Any], nn.Module],
                 map_scope: Optional[Scope] = None, map_anchors: Optional[Sequence[float]] = None,
                 box_merge: str = 'weighted', iou_threshold: float = 0.3, max_boxes: int = 500,
                 data_preprocessor: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(module=module, data_preprocessor=data_preprocessor)
        if box_merge not in METHODS:
            raise ConfigError(f'box_merge is {box_merge!r}; known: {list(METHODS)}')
        if not 0 < iou_threshold <= 1 or max_boxes < 1:
            raise ConfigError(f'iou_threshold is {iou_threshold}, max_boxes {max_boxes}; expected '
                              'an overlap above 0 up to 1, and at least one box')
        self.map_scope = map_scope
        self.map_anchors = map_anchors
        self.box_merge = box_merge
        self.iou_threshold = iou_threshold
        self.max_boxes = max_boxes

    @torch.no_grad()
    def merge_preds(self, data_samples_list: Sequence[Sequence[Det3DDataSample]]
                    ) -> List[Det3DDataSample]:
        """One prediction, in the sensor's frame, from those of each sample's views."""
        return [self._merge(views) for views in data_samples_list]

    def _merge(self, views: Sequence[Det3DDataSample]) -> Det3DDataSample:
        merged = views[0].new()
        matrices = [np.asarray(view.metainfo['lidar_aug_matrix']) for view in views]
        if 'pred_instances_3d' in merged:
            boxes, scores, labels = self._boxes(views, matrices)
            merged.pred_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[-1]), scores_3d=scores,
                labels_3d=labels)
        if 'pred_bev_map' in merged:
            merged.pred_bev_map = PixelData(probs=self._map(views, matrices))
        merged.set_metainfo(dict(lidar_aug_matrix=np.eye(4, dtype=np.float32)))
        return merged

    def _boxes(self, views: Sequence[Det3DDataSample],
               matrices: Sequence[np.ndarray]) -> Tuple[Tensor, Tensor, Tensor]:
        found = [view.pred_instances_3d for view in views]
        return merge_boxes(
            [boxes_to_sensor(view.bboxes_3d.tensor, matrix)
             for view, matrix in zip(found, matrices, strict=True)],
            [view.scores_3d for view in found], [view.labels_3d for view in found],
            method=self.box_merge, iou_threshold=self.iou_threshold, max_boxes=self.max_boxes)

    def _map(self, views: Sequence[Det3DDataSample], matrices: Sequence[np.ndarray]) -> Tensor:
        if self.map_scope is None:
            raise ConfigError('tta_model.map_scope is missing: the model predicts a map, and where '
                              'its cells lie has to be known')
        maps = [view.pred_bev_map.probs for view in views]
        anchors = self.map_anchors or [0.5] * len(maps[0])
        return merge_maps(maps, matrices, scope=self.map_scope, anchors=anchors)
