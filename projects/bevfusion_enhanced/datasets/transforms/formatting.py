"""From a pipeline's dictionary to what the model takes.

Shapes: N cameras, H and W of an image, P points, C map classes, X and Y cells of the map grid.
"""
from typing import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData, PixelData

META_KEYS = ('cam2img', 'lidar2cam', 'cam2lidar', 'lidar2img', 'img_aug_matrix', 'lidar_aug_matrix',
             'box_type_3d', 'box_mode_3d', 'sample_idx', 'token', 'lidar_path', 'img_path',
             'num_pts_feats', 'location', 'scene_name', 'scene_description', 'timestamp',
             'ego2global', 'camera_names', 'map_grid')


@TRANSFORMS.register_module()
class PackBEVFusionInputs(BaseTransform):
    """Pack what the pipeline read; a modality or a truth that it did not read is left out.

    Result: `inputs` with `img` (N, 3, H, W) uint8 and `points` (P, 5) float32; `data_samples`, a
    Det3DDataSample with `gt_instances_3d` (bboxes_3d, labels_3d), `gt_bev_map` (masks (C, X, Y)
    uint8) and the calibration as metainfo.

    Args:
        meta_keys: What goes into the metainfo, where the pipeline has it.
    """

    def __init__(self, *, meta_keys: Sequence[str] = META_KEYS) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack one sample; see the class."""
        inputs = {}
        if 'img' in results:
            images = torch.from_numpy(np.stack(results['img']))       # (N, H, W, 3)
            inputs['img'] = images.permute(0, 3, 1, 2).contiguous()   # (N, 3, H, W)
        if 'points' in results:
            inputs['points'] = results['points'].tensor.contiguous()  # (P, 5)

        sample = Det3DDataSample(
            metainfo={key: results[key] for key in self.meta_keys if key in results})
        if 'gt_bboxes_3d' in results:
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=results['gt_bboxes_3d'],
                labels_3d=torch.as_tensor(results['gt_labels_3d'], dtype=torch.long))
        if 'gt_bev_masks' in results:
            sample.gt_bev_map = PixelData(masks=torch.from_numpy(results['gt_bev_masks']))
        return {'inputs': inputs, 'data_samples': sample}
