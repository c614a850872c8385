"""The geometry that weights were trained for, read from a config: what no tensor's shape says.

Conventions: ranges are (x, y, z minimum, then maximum), bounds and scopes (minimum, maximum, step),
both in metres in the LiDAR frame (depth bins: metres before the camera); image and feature sizes
are (height, width) in pixels and cells; grids are cells along x, y and, where there is a third, z.
"""
from types import MappingProxyType
from typing import Any, Dict, Mapping, Optional

_CAMERA = 'model.encoders.camera'
_LIDAR = 'model.encoders.lidar'
_OBJECT = 'model.heads.object'
_MAP = 'model.heads.map'

# Where each value stands in a config. `bev_grid` is computed, from all of what its key names.
config_keys: Mapping[str, str] = MappingProxyType({
    'point_cloud_range': f'{_LIDAR}.voxelize.point_cloud_range',
    'voxel_size': f'{_LIDAR}.voxelize.voxel_size',
    'max_num_points': f'{_LIDAR}.voxelize.max_num_points',
    'sparse_shape': f'{_LIDAR}.backbone.sparse_shape',
    'image_size': f'{_CAMERA}.vtransform.image_size',
    'feature_size': f'{_CAMERA}.vtransform.feature_size',
    'xbound': f'{_CAMERA}.vtransform.xbound',
    'ybound': f'{_CAMERA}.vtransform.ybound',
    'zbound': f'{_CAMERA}.vtransform.zbound',
    'dbound': f'{_CAMERA}.vtransform.dbound',
    'downsample': f'{_CAMERA}.vtransform.downsample',
    'window_size': f'{_CAMERA}.backbone.window_size',
    'bev_grid': f'{_CAMERA}.vtransform',
    'object_range': f'{_OBJECT}.bbox_coder.pc_range',
    'object_voxel_size': f'{_OBJECT}.bbox_coder.voxel_size',
    'object_out_size_factor': f'{_OBJECT}.bbox_coder.out_size_factor',
    'object_grid_size': f'{_OBJECT}.test_cfg.grid_size',
    'map_input_scope': f'{_MAP}.grid_transform.input_scope',
    'map_grid': f'{_MAP}.grid_transform.output_scope',
    'image_mean': 'model.data_preprocessor.mean',
    'image_std': 'model.data_preprocessor.std',
    'image_bgr_to_rgb': 'model.data_preprocessor.bgr_to_rgb',
})


def geometry_of(config: Mapping[str, Any]) -> Dict[str, Any]:
    """The geometry of a resolved config, in plain numbers and lists.

    Args:
        config: A config of MMEngine or a plain dictionary, with all of its bases in it.

    Returns:
        The values under the names of `config_keys`; what the config does not say is left out.
    """
    found = {name: lookup(config, key) for name, key in config_keys.items() if name != 'bev_grid'}
    geometry = {name: plain(value) for name, value in found.items() if value is not None}
    grid = _bev_grid(geometry)
    return geometry if grid is None else {**geometry, 'bev_grid': grid}


def lookup(config: Any, key: str) -> Any:
    """The value under a dotted key, or None where a part of the way is missing."""
    for part in key.split('.'):
        if not hasattr(config, 'keys') or part not in config:  # MMEngine's Config is no Mapping
            return None
        config = config[part]
    return config


def plain(value: Any) -> Any:
    """Tuples and lists alike as lists, mappings as dictionaries; the rest as it is."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def steps(bound: Any) -> Optional[int]:
    """Number of whole steps in (minimum, maximum, step); None where it is no such bound."""
    try:
        low, high, step = (float(number) for number in bound)
        return round((high - low) / step)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _bev_grid(geometry: Mapping[str, Any]) -> Any:
    """Cells along x and y of the camera's BEV map after downsampling."""
    cells = [steps(geometry.get(name)) for name in ('xbound', 'ybound')]
    downsample = geometry.get('downsample', 1)
    if None in cells or not isinstance(downsample, int) or downsample < 1:
        return None
    return [-(-count // downsample) for count in cells]
