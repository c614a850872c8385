"""A TransFusion head's config over any grid, in the form of MMDetection3D's BEVFusion configs."""
from typing import Callable, Dict, Sequence

import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData


def build_head_config(*, grid: int = 48, voxel: float = 0.3, in_channels: int = 512,
                      hidden: int = 128, proposals: int = 200, layers: int = 1,
                      **changes: object) -> Dict:
    """The config of a head over `grid` x `grid` cells of 8 voxels, centred on the sensor."""
    half = grid * 8 * voxel / 2
    voxel_size, low = [voxel, voxel, 0.2], [-half, -half]
    grid_size = [grid * 8, grid * 8, 41]
    attention = dict(embed_dims=hidden, num_heads=8, dropout=0.1)
    config = dict(
        type='TransFusionHead', num_proposals=proposals, auxiliary=True, in_channels=in_channels,
        hidden_channel=hidden, num_classes=10, nms_kernel_size=3, bn_momentum=0.1,
        num_decoder_layers=layers,
        decoder_layer=dict(
            type='TransformerDecoderLayer', self_attn_cfg=attention, cross_attn_cfg=attention,
            ffn_cfg=dict(embed_dims=hidden, feedforward_channels=2 * hidden, num_fcs=2,
                         ffn_drop=0.1, act_cfg=dict(type='ReLU', inplace=True)),
            norm_cfg=dict(type='LN'),
            pos_encoding_cfg=dict(input_channel=2, num_pos_feats=hidden)),
        train_cfg=dict(
            dataset='nuScenes', point_cloud_range=[*low, -5.0, half, half, 3.0],
            grid_size=grid_size, voxel_size=voxel_size, out_size_factor=8, gaussian_overlap=0.1,
            min_radius=2, pos_weight=-1, code_weights=[1.0] * 8 + [0.2, 0.2],
            assigner=dict(
                type='HungarianAssigner3D',
                iou_calculator=dict(type='BboxOverlaps3D', coordinate='lidar'),
                cls_cost=dict(type='mmdet.FocalLossCost', gamma=2.0, alpha=0.25, weight=0.15),
                reg_cost=dict(type='BBoxBEVL1Cost', weight=0.25),
                iou_cost=dict(type='IoU3DCost', weight=0.25))),
        test_cfg=dict(dataset='nuScenes', grid_size=grid_size, out_size_factor=8,
                      voxel_size=voxel_size[:2], pc_range=low, nms_type=None),
        common_heads=dict(center=[2, 2], height=[1, 2], dim=[3, 2], rot=[2, 2], vel=[2, 2]),
        bbox_coder=dict(
            type='TransFusionBBoxCoder', pc_range=low, voxel_size=voxel_size[:2],
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0], score_threshold=0.0,
            out_size_factor=8, code_size=10),
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25,
                      reduction='mean', loss_weight=1.0),
        loss_heatmap=dict(type='mmdet.GaussianFocalLoss', reduction='mean', loss_weight=1.0),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25))
    config.update(changes)
    return config


@pytest.fixture()
def head_config() -> Callable[..., Dict]:
    return build_head_config


@pytest.fixture()
def detection_sample() -> Callable[..., Det3DDataSample]:
    def build(boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> Det3DDataSample:
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 9)
        sample = Det3DDataSample(metainfo=dict(token='abc'))
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
            labels_3d=torch.as_tensor(labels, dtype=torch.long))
        return sample

    return build
