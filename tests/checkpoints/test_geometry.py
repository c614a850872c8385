"""Geometry as a config says it, without building what it describes."""
from pathlib import Path

import pytest
from mmengine.config import Config

from bevfusion_enhanced.checkpoints.geometry import (
    config_keys,
    geometry_of,
    lookup,
    plain,
    steps,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.fixture(scope='module')
def full():
    return Config.fromfile(CONFIGS / 'phase4a_task_gca.py', import_custom_modules=False)


def test_every_value_of_a_full_config_is_found_and_plain(full):
    geometry = geometry_of(full)
    assert set(geometry) == set(config_keys)
    assert geometry['point_cloud_range'] == [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
    assert geometry['voxel_size'] == [0.075, 0.075, 0.2]
    assert geometry['image_size'] == [256, 704] and geometry['dbound'] == [1.0, 60.0, 0.5]
    assert geometry['map_grid'] == [[-50.0, 50.0, 0.5]] * 2
    assert type(geometry['map_grid'][0]) is list and type(geometry['window_size']) is int


def test_a_plain_dictionary_gives_the_same(full):
    assert geometry_of(plain(full.to_dict())) == geometry_of(full)


def test_the_bev_grid_is_what_the_heads_see(full):
    geometry = geometry_of(full)
    factor = geometry['object_out_size_factor']
    assert geometry['bev_grid'] == [cells // factor for cells in geometry['object_grid_size'][:2]]
    assert geometry['bev_grid'] == [180, 180]


def test_missing_parts_are_left_out():
    assert geometry_of({}) == {} and geometry_of({'model': {'encoders': None}}) == {}
    only = {'model': {'encoders': {'lidar': {'voxelize': {'voxel_size': (1, 1, 2)}}}}}
    assert geometry_of(only) == {'voxel_size': [1, 1, 2]}


def test_broken_bounds_give_no_grid_and_no_traceback():
    for bound in ('wide', [0, 1], [0, 1, 0], [0, 1, None], [0, float('inf'), 1]):
        config = {'model': {'encoders': {'camera': {'vtransform': {
            'xbound': bound, 'ybound': [0, 4, 1], 'downsample': 2}}}}}
        assert 'bev_grid' not in geometry_of(config) and steps(bound) is None


def test_lookup_follows_keys_and_stops_at_what_holds_none(full):
    assert lookup(full, 'model.heads.map.classes')[0] == 'drivable_area'
    assert lookup(full, 'model.heads.map.classes.0') is None
    assert lookup(full, 'model.nothing') is None
