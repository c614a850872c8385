"""The names of the benchmarks, and where each is; nothing heavy is imported for it."""
from importlib import import_module
from typing import Callable, Dict

from bevfusion_enhanced.benchmarks.measure import Measurement

BENCHMARKS: Dict[str, str] = {
    'bev_pool': 'pooling:bev_pooling',
    'view_transform': 'pooling:view_transform',
    'voxelize': 'operators:voxelization',
    'depth_map': 'operators:depth_scatter',
    'heatmap_targets': 'operators:heatmap',
    'hungarian_cost': 'operators:hungarian_cost',
    'box_decoding': 'operators:box_decoding',
    'convolution': 'layers:convolution',
    'sparse_convolution': 'layers:sparse_convolution',
    'cross_attention': 'layers:cross_attention',
    'map_masks': 'map_drawing:map_masks',
    'map_masks_small': 'map_drawing:map_masks_small',
    'data_sample': 'data:data_sample',
    'model_forward': 'whole_model:model_forward',
    'mmdetection3d_forward': 'mmdetection3d:forward',
    'mmdetection3d_step': 'mmdetection3d:training_step',
    'training_step': 'whole_model:training_step',
    'training_step_bf16': 'whole_model:training_step_bf16',
    'bf16_forward': 'whole_model:bf16_forward',
    'startup_help': 'start_up:startup_help',
    'import': 'start_up:package_import',
    'partial_load': 'checkpoint_files:partial_load',
    'checkpoint_saving': 'checkpoint_files:checkpoint_saving',
    'health_hook': 'monitoring:health_hook',
    'scaling_points': 'growth:points',
    'scaling_cameras': 'growth:cameras',
    'scaling_image': 'growth:image',
    'scaling_bev': 'growth:bev_cells',
    'scaling_classes': 'growth:classes',
    'scaling_infos': 'growth:infos',
}
"""Name -> module of this package and function in it."""


def find(name: str) -> Callable[[], Measurement]:
    """The function of a benchmark; imports what it measures."""
    module, function = BENCHMARKS[name].split(':')
    return getattr(import_module(f'{__package__}.{module}'), function)
