"""Map files: what the untouched devkit reads, and that it agrees with the ground."""
import json
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
import pytest
from nuscenes.map_expansion.bitmap import BitMap
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.utils.map_mask import MapMask

from bevfusion_enhanced.synthetic.map_export import (
    SEMANTIC_PRIOR_NAMES,
    write_map_expansion,
    write_map_files,
)
from bevfusion_enhanced.synthetic.raster import DRIVABLE
from bevfusion_enhanced.synthetic.scene import Material, Town
from bevfusion_enhanced.synthetic.town import LOCATIONS, build_town

LAYERS = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'road_divider',
          'lane_divider']
KEYS = {'version', 'canvas_edge', 'arcline_path_3', 'connectivity', 'polygon', 'line', 'node',
        'drivable_area', 'road_segment', 'road_block', 'lane', 'ped_crossing', 'walkway',
        'stop_line', 'carpark_area', 'road_divider', 'lane_divider', 'traffic_light',
        'lane_connector'}
SIZE = 60.0
"""Side of the patches compared with the raster, in metres."""


@pytest.fixture(scope='module')
def towns() -> Dict[str, Town]:
    return {location: build_town(location=location, seed=0) for location in LOCATIONS}


@pytest.fixture(scope='module')
def root(towns: Dict[str, Town], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('nuscenes')
    for town in towns.values():
        write_map_files(town, root)
    return root


@pytest.fixture(scope='module')
def maps(root: Path) -> Dict[str, NuScenesMap]:
    return {location: NuScenesMap(str(root), location) for location in LOCATIONS}


def random_pose(rng: np.random.Generator, town: Town) -> Tuple[float, float, float]:
    x, y = rng.uniform(0.0, town.size)
    return float(x), float(y), float(rng.uniform(-180.0, 180.0))


@pytest.mark.parametrize('location', LOCATIONS)
def test_json_is_complete_and_small(root: Path, towns: Dict[str, Town], location: str) -> None:
    path = root / 'maps' / 'expansion' / f'{location}.json'
    records = json.loads(path.read_text())
    assert set(records) == KEYS and records['version'] == '1.3'
    assert records['canvas_edge'] == list(towns[location].size)
    assert path.stat().st_size < 1_500_000
    points = [(node['x'], node['y']) for node in records['node']]
    assert len(set(points)) == len(points)
    lines = {line['token']: line['node_tokens'] for line in records['line']}
    for layer in ('road_divider', 'lane_divider'):
        assert all(len(lines[record['line_token']]) == 2 for record in records[layer])
    assert all(len(polygon['exterior_node_tokens']) >= 3 for polygon in records['polygon'])
    for layer in KEYS - {'version', 'canvas_edge', 'arcline_path_3', 'connectivity'}:
        tokens = [record['token'] for record in records[layer]]
        assert len(set(tokens)) == len(tokens), layer
        assert tokens or layer == 'traffic_light', layer


@pytest.mark.parametrize('location', LOCATIONS)
def test_masks_at_random_poses(maps: Dict[str, NuScenesMap], towns: Dict[str, Town],
                               location: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        x, y, angle = random_pose(rng, towns[location])
        masks = maps[location].get_map_mask((x, y, 100.0, 100.0), angle, LAYERS, (200, 200))
        assert masks.shape == (len(LAYERS), 200, 200) and masks.max() <= 1


@pytest.mark.parametrize('layer,materials,least', [
    ('drivable_area', DRIVABLE, 0.97), ('carpark_area', (Material.CARPARK,), 0.97),
    ('walkway', (Material.WALKWAY,), 0.93), ('ped_crossing', (Material.PED_CROSSING,), 0.93),
    ('stop_line', (Material.STOP_LINE,), 0.7)])
def test_masks_agree_with_the_ground(maps: Dict[str, NuScenesMap], towns: Dict[str, Town],
                                     layer: str, materials: tuple, least: float) -> None:
    """At 0.1 m a pixel; the devkit fills both borders, which costs thin areas most."""
    rng = np.random.default_rng(2)
    both = either = 0
    for location in LOCATIONS:
        town = towns[location]
        for _ in range(3):
            x, y, angle = random_pose(rng, town)
            cells = round(SIZE / town.ground.resolution)
            mask = maps[location].get_map_mask((x, y, SIZE, SIZE), angle, [layer],
                                               (cells, cells))[0].astype(bool)
            painted = np.isin(ground_patch(town, x, y, angle, cells), materials)
            both += (mask & painted).sum()
            either += (mask | painted).sum()
    assert either > 0 and both / either > least


def ground_patch(town: Town, x: float, y: float, angle: float, cells: int) -> np.ndarray:
    """(cells, cells) materials where the devkit's pixels stand; terrain outside the town."""
    local = np.arange(cells) * SIZE / cells - SIZE / 2.0
    u, v = np.meshgrid(local, local)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    column = np.floor((x + c * u - s * v) / town.ground.resolution).astype(int)
    row = np.floor((y + s * u + c * v) / town.ground.resolution).astype(int)
    height, width = town.ground.labels.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    labels = town.ground.labels[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(inside, labels, int(Material.TERRAIN))


def test_lane_queries(maps: Dict[str, NuScenesMap], towns: Dict[str, Town]) -> None:
    location = LOCATIONS[0]
    town, nusc_map = towns[location], maps[location]
    names = [name for name, lane in town.lanes.items() if not lane.is_connector]
    for name in names[::7]:
        x, y = town.lanes[name].centreline[len(town.lanes[name].centreline) // 2]
        assert nusc_map.get_closest_lane(x, y, radius=2.0) == name
        assert nusc_map.record_on_point(x, y, 'lane') == name
        assert set(nusc_map.get_outgoing_lane_ids(name)) == set(town.lanes[name].successors)
    for name, points in nusc_map.discretize_lanes(names[::5], 1.0).items():
        line = town.lanes[name].centreline
        distance = np.linalg.norm(np.array(points)[:, None, :2] - line[None], axis=-1)
        assert distance.min(axis=0).max() < 0.75 and distance.min(axis=1).max() < 1.1


def test_stop_lines_name_their_crossings(maps: Dict[str, NuScenesMap]) -> None:
    for nusc_map in maps.values():
        cued = [record for record in nusc_map.stop_line if record['cue']]
        assert len(cued) > 0.7 * len(nusc_map.stop_line)
        assert all(len(record['cue']) == 1 for record in cued)


def test_images_load_in_the_devkit(root: Path, towns: Dict[str, Town]) -> None:
    for location, town in towns.items():
        prior = root / 'maps' / SEMANTIC_PRIOR_NAMES[location]
        assert prior.stat().st_size < 200_000
        assert BitMap(str(root), location, 'semantic_prior').image.shape == (
            town.ground.labels.shape)
        assert BitMap(str(root), location, 'basemap').image.shape[-1] == 3
        lanes = np.concatenate([lane.centreline for lane in town.lanes.values()])[::20]
        mask = MapMask(str(prior), resolution=town.ground.resolution)
        assert mask.is_on_mask(lanes[:, 0], lanes[:, 1]).mean() > 0.98
        houses = town.buildings
        assert not mask.is_on_mask(houses[:, 0], houses[:, 1]).any()


def test_same_town_same_bytes(towns: Dict[str, Town], root: Path, tmp_path: Path) -> None:
    location = LOCATIONS[3]
    write_map_expansion(build_town(location=location, seed=0), tmp_path / 'again.json')
    first = root / 'maps' / 'expansion' / f'{location}.json'
    assert (tmp_path / 'again.json').read_bytes() == first.read_bytes()
