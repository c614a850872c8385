# Detection and map segmentation on one BEV, with the original BEVFusion's map head.
_base_ = [
    './_base_/models/bevfusion_swint_voxel0075.py', './_base_/datasets/nuscenes.py',
    './_base_/schedules/adamw_cosine_20e.py', './_base_/default_runtime.py'
]

model = dict(
    heads=dict(
        map=dict(
            type='BEVSegmentationHead',
            in_channels={{_base_.bev_channels}},
            grid_transform=dict(
                input_scope=[[-54.0, 54.0, 0.6], [-54.0, 54.0, 0.6]],
                output_scope=[{{_base_.map_bound}}, {{_base_.map_bound}}]),
            classes={{_base_.map_classes}},
            loss='focal')),
    loss_scale=dict(object=1.0, map=1.0))
