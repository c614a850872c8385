import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from map_factory import MapWriter, write_grid_town
from nuscenes.map_expansion.map_api import NuScenesMap

from bevfusion_enhanced.datasets.map_masks import MapMasks, bev_pose, load_vector_map, map_file
from bevfusion_enhanced.datasets.vocabulary import MAP_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError

LOCATION = 'singapore-onenorth'
BOUND = [-50.0, 50.0, 0.5]
DEVKIT_LAYERS = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area',
                 'road_divider', 'lane_divider']


@pytest.fixture(scope='module')
def town(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('town')
    write_grid_town(root, location=LOCATION, size=(400.0, 400.0), block=40.0, corners=6)
    return root


def masks_of(root: Path, classes=MAP_CLASSES, raster: str = 'devkit') -> MapMasks:
    return MapMasks(data_root=root, classes=classes, xbound=BOUND, ybound=BOUND, raster=raster)


def pose(x: float, y: float, yaw: float, roll: float = 0.0) -> np.ndarray:
    about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)],
                        [0, np.sin(roll), np.cos(roll)]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x
    matrix[:3, 3] = x, y, 1.8
    return matrix


def random_poses(count: int) -> list:
    rng = np.random.default_rng(7)
    return [pose(*rng.uniform(70, 330, 2), rng.uniform(-np.pi, np.pi), rng.uniform(-0.03, 0.03))
            for _ in range(count)]


def devkit_masks(root: Path, lidar2global: np.ndarray) -> np.ndarray:
    x_axis = lidar2global[:3, 0]
    angle = np.degrees(np.arctan2(x_axis[1], x_axis[0]))
    masks = NuScenesMap(str(root), LOCATION).get_map_mask(
        (*lidar2global[:2, 3], 100, 100), angle, DEVKIT_LAYERS, (200, 200)).transpose(0, 2, 1)
    return np.concatenate([masks[:5], masks[5:].max(axis=0, keepdims=True)])


def test_equal_to_the_devkit(town):
    differing = []
    for lidar2global in random_poses(12):
        ours = masks_of(town).rasterise(location=LOCATION,
                                        bev2global=bev_pose(lidar2global, np.eye(4)))
        theirs = devkit_masks(town, lidar2global)
        assert ours.shape == theirs.shape == (6, 200, 200) and ours.dtype == np.uint8
        np.testing.assert_array_equal(ours[:5], theirs[:5])
        differing.append((ours != theirs).mean())
    # A divider's end on the upper border falls on the last pixel or outside by rounding noise.
    assert max(differing) < 1e-3 and np.mean(differing) < 3e-4


def test_rigid_augmentation_moves_the_devkit_patch(town):
    lidar2global, augmentation = random_poses(1)[0], pose(0.7, -1.3, 0.6)
    ours = masks_of(town).rasterise(location=LOCATION,
                                    bev2global=bev_pose(lidar2global, augmentation))
    theirs = devkit_masks(town, lidar2global @ np.linalg.inv(augmentation))
    assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize('mirror, axes', [((-1, 1), (1,)), ((1, -1), (2,)), ((-1, -1), (1, 2))])
def test_mirror_reverses_the_axes(town, mirror, axes):
    classes = ('drivable_area', 'walkway', 'carpark_area')
    lidar2global = random_poses(1)[0]
    drawer = masks_of(town, classes, raster='cell_center')
    plain = drawer.rasterise(location=LOCATION, bev2global=bev_pose(lidar2global, np.eye(4)))
    mirrored = drawer.rasterise(
        location=LOCATION, bev2global=bev_pose(lidar2global, np.diag([*mirror, 1.0, 1.0])))
    assert (mirrored != np.flip(plain, axes)).mean() < 0.005
    assert (mirrored != plain).mean() > 0.05


def test_whole_augmentation_warps_the_map(town):
    """Masks drawn through the augmentation = masks of a larger plain patch, warped by it."""
    classes = ('drivable_area', 'walkway')
    lidar2global = random_poses(2)[1]
    augmentation = np.diag([-1.0, 1, 1, 1]) @ pose(1.5, -2.0, 0.5)
    augmentation[:3] *= 1.1
    ours = masks_of(town, classes, 'cell_center').rasterise(
        location=LOCATION, bev2global=bev_pose(lidar2global, augmentation))
    wide = MapMasks(data_root=town, classes=classes, xbound=[-100, 100, 0.125],
                    ybound=[-100, 100, 0.125], raster='cell_center')
    source = wide.rasterise(location=LOCATION, bev2global=bev_pose(lidar2global, np.eye(4)))
    cells = np.stack(np.meshgrid(np.arange(-49.75, 50, 0.5), np.arange(-49.75, 50, 0.5),
                                 indexing='ij'), -1)
    inverse = np.linalg.inv(augmentation)
    plain = cells @ inverse[:2, :2].T + inverse[:2, 3]
    i, j = np.floor((plain + 100) / 0.125).astype(int).transpose(2, 0, 1)
    assert (ours != source[:, i, j]).mean() < 0.02  # borders are filled half a cell too far


def write_one(root: Path, **layers) -> MapMasks:
    writer = MapWriter((400, 400))
    for layer, points in layers.items():
        add = writer.line if layer.endswith('divider') else writer.polygon
        add(layer, np.asarray(points, dtype=float))
    load_vector_map.cache_clear()
    writer.write(root, LOCATION)
    return masks_of(root)


def test_axes_offsets_and_pixel_rules(tmp_path):
    drawer = write_one(tmp_path, carpark_area=[[210, 230], [220, 230], [220, 232], [210, 232]])
    masks = drawer.rasterise(location=LOCATION, bev2global=bev_pose(pose(200, 200, 0), np.eye(4)))
    x, y = np.nonzero(masks[MAP_CLASSES.index('carpark_area')])
    assert (x.min(), x.max()) == (120, 140)  # 10..20 m to the right, both borders filled
    assert (y.min(), y.max()) == (160, 164)  # 30..32 m ahead
    assert masks.sum() == 21 * 5


def test_scale_changes_lengths(tmp_path):
    drawer = write_one(tmp_path, walkway=[[190, 190], [210, 190], [210, 210], [190, 210]])
    masks = drawer.rasterise(location=LOCATION,
                             bev2global=bev_pose(pose(200, 200, 0), np.diag([1.2, 1.2, 1.2, 1])))
    assert masks.sum() == 49 ** 2  # 24 m instead of 20


def test_geometry_that_the_devkit_cannot_draw(tmp_path):
    zigzag = [[x, 200 + (60 if index % 2 else 0)] for index, x in enumerate(range(160, 240, 10))]
    drawer = write_one(tmp_path, road_divider=zigzag,
                       walkway=[[250, 190], [260, 190], [260, 210], [250, 210]])
    bev2global = bev_pose(pose(200, 200, 0), np.eye(4))
    masks = drawer.rasterise(location=LOCATION, bev2global=bev2global)
    with pytest.raises((TypeError, AttributeError)):
        devkit_masks(tmp_path, pose(200, 200, 0))
    assert cv2.connectedComponents(masks[5])[0] - 1 >= 3  # leaves and re-enters
    assert not masks[MAP_CLASSES.index('walkway')].any()  # touches the border from outside


def test_holes_are_cut_out(tmp_path):
    writer = MapWriter((400, 400))
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    writer.polygon('walkway', 200 + 20 * square, (200 + 5 * square,))
    writer.write(tmp_path, LOCATION)
    walkway = masks_of(tmp_path).rasterise(
        location=LOCATION, bev2global=bev_pose(pose(200, 200, 0), np.eye(4)))[2]
    assert walkway.sum() == 81 ** 2 - 21 ** 2 and not walkway[100, 100]


def test_cell_center_raster_is_half_a_cell_off(tmp_path):
    write_one(tmp_path, walkway=[[190.25, 190.25], [209.75, 190.25], [209.75, 209.75],
                                 [190.25, 209.75]])
    masks = masks_of(tmp_path, ('walkway',), 'cell_center').rasterise(
        location=LOCATION, bev2global=bev_pose(pose(200, 200, 0), np.eye(4)))
    np.testing.assert_array_equal(masks, masks[:, ::-1, ::-1])
    assert masks.sum() == 40 ** 2


def test_empty_patch_has_no_paint(town):
    masks = masks_of(town).rasterise(location=LOCATION,
                                     bev2global=bev_pose(pose(5000, 5000, 0.3), np.eye(4)))
    assert masks.shape == (6, 200, 200) and not masks.any()


def test_bad_requests_say_what_to_do(town, tmp_path):
    with pytest.raises(ConfigError, match=r"map classes: \['lanes'\] given; known"):
        masks_of(town, ('lanes',))
    with pytest.raises(ConfigError, match='raster'):
        masks_of(town, raster='pixel')
    with pytest.raises(ConfigError, match='xbound'):
        MapMasks(data_root=town, classes=MAP_CLASSES, xbound=[50, -50, 0.5], ybound=BOUND)
    with pytest.raises(DataError, match="no vector map of location 'boston-seaport'.*unpack"):
        masks_of(town).rasterise(location='boston-seaport', bev2global=np.eye(3)[:2])
    broken = map_file(tmp_path, LOCATION)
    broken.parent.mkdir(parents=True)
    for content in ('{"node": [', json.dumps({'node': []})):
        broken.write_text(content)
        with pytest.raises(DataError, match='cannot be read'):
            masks_of(tmp_path).rasterise(location=LOCATION, bev2global=np.eye(3)[:2])
