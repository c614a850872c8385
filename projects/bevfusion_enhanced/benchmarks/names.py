"""The names of the benchmarks."""
from typing import Dict

NAMES: Dict[str, str] = {
    'bev_pool': 'pooling depth and context into the map',
    'view_transform': 'camera features to a map, convolutions included',
    'voxelize': 'points to voxels',
    'depth_map': 'points to depth maps of all cameras',
    'heatmap_targets': 'boxes to the dense heatmap',
    'hungarian_cost': 'proposals and boxes to pairs',
    'box_decoding': 'codes to boxes',
    'convolution': 'a 3x3 convolution of the map head, with its gradients',
    'sparse_convolution': 'a layer of the sparse encoder, with its gradients',
    'cross_attention': 'proposals that look at the map while training',
    'map_masks': 'map masks of a patch, map of official size',
    'map_masks_small': 'the same on a small map',
    'data_sample': 'one training sample by one worker, and its memory over 1,000',
    'model_forward': 'the whole model, prediction',
    'mmdetection3d_forward': 'prediction of boxes beside MMDetection3D itself',
    'mmdetection3d_step': 'the step of detection beside MMDetection3D itself',
    'training_step': 'the whole model, forward, backward and update',
    'training_step_bf16': 'the same in bfloat16',
    'bf16_forward': 'prediction in bfloat16, and what it costs in accuracy',
    'startup_help': 'tools/train.py --help',
    'import': 'import of the package',
    'partial_load': 'phase 3 into phase 4a',
    'checkpoint_saving': 'a step while a checkpoint is written',
    'health_hook': 'a step while the training is watched',
    'scaling_points': 'growth with the points of a cloud',
    'scaling_cameras': 'growth with the cameras',
    'scaling_image': 'growth with the pixels of an image',
    'scaling_bev': 'growth with the cells of the map',
    'scaling_classes': 'growth with the classes',
    'scaling_infos': 'growth with the samples of a dataset',
}
"""Name -> what is measured, in the order of the tables."""

NEED_CHECKOUT = ('mmdetection3d_forward', 'mmdetection3d_step')
"""These import MMDetection3D's BEVFusion from a checkout, for its wheel leaves that out."""
CHECKOUT = 'MMDETECTION3D'  # the environment variable that tells a measuring process its folder
