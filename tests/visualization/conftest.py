"""A small sample with real files: six images, a scan, boxes and maps."""
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from sample_parts import CHANNELS, HEIGHT, WIDTH, YAWS, lidar_boxes, pinhole


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[..., Det3DDataSample]:
    """Makes the sample number `index`, its files below `tmp_path`."""

    def make(index: int = 0) -> Det3DDataSample:
        rng = np.random.default_rng(index)
        folder = tmp_path / f'data{index}'
        paths = []
        for channel in CHANNELS:
            path = folder / channel / f'log__{channel}__{index}.jpg'
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)).save(path)
            paths.append(str(path))
        scan = folder / 'scan.pcd.bin'
        rng.normal(scale=10., size=(200, 5)).astype(np.float32).tofile(scan)
        sample = Det3DDataSample()
        sample.set_metainfo(dict(
            sample_idx=index, token=f'token{index}', img_path=paths, lidar_path=str(scan),
            num_pts_feats=5, lidar2img=np.stack([pinhole(yaw) for yaw in YAWS]).astype(np.float32),
            lidar_aug_matrix=np.eye(4, dtype=np.float32)))
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=lidar_boxes((0., 10., -1., 4., 2., 2., np.pi / 2),
                                  (5., -9., -1., 1., 1., 2., 0.)),
            scores_3d=torch.tensor([0.9, 0.1]), labels_3d=torch.tensor([0, 8]))
        sample.pred_bev_map = PixelData(probs=torch.rand(6, 20, 20))
        sample.gt_bev_map = PixelData(masks=torch.zeros(6, 20, 20, dtype=torch.uint8))
        sample.eval_ann_info = dict(gt_bboxes_3d=lidar_boxes((0., 10., -1., 4., 2., 2., 1.5)),
                                    gt_labels_3d=np.array([0]))
        return sample

    return make
