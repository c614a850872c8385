"""The camera against plain projection: masks, occlusion, paint, light."""
import json
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bevfusion_enhanced.synthetic import camera, dataset, rig, shading
from bevfusion_enhanced.synthetic.light import daylight, night
from bevfusion_enhanced.synthetic.plan import plan_scenes
from bevfusion_enhanced.synthetic.recorder import scene_light, seconds
from bevfusion_enhanced.synthetic.scene import CLASSES, SCENERY, Ground, Material, Snapshot

DAY = daylight(azimuth=0.7, elevation=0.8)
RIG = {sensor.name: sensor for sensor in rig.scaled(0.25)}
ROAD = Ground(labels=np.full((400, 400), Material.ROAD, np.uint8), resolution=0.25)


def snapshot(boxes, class_ids=None, colours=None):
    boxes = np.asarray(boxes, float).reshape(-1, 7)
    count = len(boxes)
    return Snapshot(boxes=boxes,
                    class_ids=np.zeros(count, int) if class_ids is None else np.array(class_ids),
                    colours=(np.full((count, 3), 128, np.uint8) if colours is None
                             else np.array(colours, np.uint8)),
                    intensities=np.full(count, 30, np.float32))


def pose(name='CAM_FRONT', x=50.0, y=50.0, yaw=0.0):
    ego2global = np.eye(4)
    ego2global[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    ego2global[:2, 3] = x, y
    return ego2global @ RIG[name].sensor2ego


def shoot(world, *, name='CAM_FRONT', ground=ROAD, light=DAY, seed=0, cam2global=None):
    sensor = RIG[name]
    return camera.render(snapshot=world, ground=ground, intrinsic=sensor.intrinsic,
                         cam2global=pose(name) if cam2global is None else cam2global,
                         width=sensor.width, height=sensor.height, light=light,
                         rng=np.random.default_rng(seed))


def project(points, cam2global, intrinsic):
    """(N, 3) global points to (N, 2) pixels and (N,) depths."""
    local = (points - cam2global[:3, 3]) @ cam2global[:3, :3]
    pixels = local @ intrinsic.T
    return pixels[:, :2] / pixels[:, 2:], local[:, 2]


def corners(box):
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return box[:3] + (signs * box[3:6] / 2) @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def hull_mask(box, cam2global, sensor):
    pixels, depth = project(corners(box), cam2global, sensor.intrinsic)
    assert depth.min() > 0
    hull = cv2.convexHull((pixels - 0.5).astype(np.float32))
    mask = np.zeros((sensor.height, sensor.width), np.uint8)
    return cv2.fillConvexPoly(mask, np.rint(hull).astype(np.int32), 1).astype(bool)


def iou(a, b):
    return np.sum(a & b) / np.sum(a | b)


@pytest.mark.parametrize('name, x, y', [('CAM_FRONT', 62, 50), ('CAM_FRONT', 69, 54),
                                        ('CAM_BACK', 40, 49), ('CAM_BACK_LEFT', 45, 63),
                                        ('CAM_FRONT_RIGHT', 57, 42)])
@pytest.mark.parametrize('yaw', [0, 0.5, 2.2])
def test_box_fills_the_hull_of_its_corners(name, x, y, yaw):
    box = np.array([x, y, 0.85, 4.6, 1.9, 1.7, yaw])
    image = shoot(snapshot([box]), name=name)
    assert iou(image.box_index == 0, hull_mask(box, pose(name), RIG[name])) > 0.9


def test_near_box_hides_far_box():
    near, far = [60, 50, 1.5, 4, 6, 3, 0], [75, 50, 0.8, 4, 2, 1.6, 0]
    image = shoot(snapshot([far, near]))
    assert image.covered[0] > 50 and image.visible[0] == 0
    assert image.visible[1] == image.covered[1] == np.sum(image.box_index == 1)


def test_half_hidden_box_is_half_visible():
    near, far = [60, 53, 1.5, 0.1, 6, 3, 0], [61, 50.016, 0.8, 0.1, 2, 1.6, 0]
    image = shoot(snapshot([far, near]))
    assert image.visible[0] / image.covered[0] == pytest.approx(0.5, abs=0.05)


def test_empty_world_is_ground_below_sky():
    image = shoot(snapshot([]))
    assert image.rgb.shape == (225, 400, 3) and image.rgb.dtype == np.uint8
    assert image.box_index.shape == (225, 400) and image.box_index.dtype == np.int32
    assert np.all(image.box_index[:100] == camera.SKY)
    assert np.all(image.box_index[150:] == camera.GROUND)
    assert len(image.covered) == len(image.visible) == 0


def test_night_is_darker():
    world = snapshot([[62, 50, 0.85, 4.6, 1.9, 1.7, 0]])
    assert shoot(world, light=night()).rgb.mean() < 0.5 * shoot(world).rgb.mean()


def test_same_generator_same_bytes():
    world = snapshot([[62, 50, 0.85, 4.6, 1.9, 1.7, 0]])
    first, second, other = (shoot(world, seed=seed).rgb for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def brute_force(boxes, cam2global, sensor):
    """Nearest box per pixel by clipping every pixel's ray at each face of every box."""
    column, row = np.meshgrid(np.arange(sensor.width) + 0.5, np.arange(sensor.height) + 0.5)
    pixels = np.stack([column, row, np.ones_like(row)], -1).reshape(-1, 3)
    rays = pixels @ np.linalg.inv(sensor.intrinsic).T @ cam2global[:3, :3].T
    depth, index = np.full(len(rays), np.inf), np.where(rays[:, 2] < 0, camera.GROUND, camera.SKY)
    for k, box in enumerate(boxes):
        cos, sin = np.cos(box[6]), np.sin(box[6])
        start, stop = np.full(len(rays), -np.inf), np.full(len(rays), np.inf)
        for axis, half in zip(([cos, sin, 0], [-sin, cos, 0], [0, 0, 1]), box[3:6] / 2,
                              strict=True):
            at, along = np.dot(cam2global[:3, 3] - box[:3], axis), rays @ axis
            a, b = (-half - at) / along, (half - at) / along
            start, stop = np.maximum(start, np.minimum(a, b)), np.minimum(stop, np.maximum(a, b))
        nearer = (start < stop) & (start > camera.NEAR) & (start < depth)
        depth[nearer], index[nearer] = start[nearer], k
    return index.reshape(sensor.height, sensor.width)


@pytest.mark.parametrize('seed, name', enumerate(rig.CAMERAS))
def test_agrees_with_brute_force(seed, name):
    rng = np.random.default_rng(seed)
    sizes = rng.uniform([0.4, 0.4, 0.5], [14, 5, 6], (60, 3))
    angle, distance = rng.uniform(-np.pi, np.pi, 60), rng.uniform(3, 80, 60)
    boxes = np.column_stack([50 + distance * np.cos(angle), 50 + distance * np.sin(angle),
                             sizes[:, 2] / 2, sizes, rng.uniform(-np.pi, np.pi, 60)])
    image = shoot(snapshot(boxes, rng.integers(-1, 10, 60)), name=name)
    assert np.mean(image.box_index >= 0) > 0.1
    assert np.mean(image.box_index == brute_force(boxes, pose(name), RIG[name])) > 0.999
    np.testing.assert_array_equal(image.visible,
                                  np.bincount(image.box_index[image.box_index >= 0], minlength=60))
    assert np.all(image.visible <= image.covered)


def test_covered_pixels_are_those_of_the_box_alone():
    rng = np.random.default_rng(4)
    boxes = np.column_stack([rng.uniform(56, 80, 12), rng.uniform(42, 58, 12), np.ones(12),
                             rng.uniform(1, 5, (12, 2)), np.full(12, 2), rng.uniform(-3, 3, 12)])
    alone = [shoot(snapshot([box])).visible[0] for box in boxes]
    np.testing.assert_array_equal(shoot(snapshot(boxes)).covered, alone)


@pytest.mark.parametrize('material', list(Material), ids=lambda m: m.name)
def test_painted_ground_projects_to_its_colour(material):
    """Squares of one material, looked up where they project, have that material's colour."""
    other = Material.WALKWAY if material == Material.ROAD else Material.ROAD
    tile = np.arange(400) // 12
    labels = np.where((tile[:, None] + tile) % 2 == 0, material, other).astype(np.uint8)
    ground = Ground(labels=labels, resolution=0.25)
    image = shoot(snapshot([]), ground=ground)
    sensor, cells = RIG['CAM_FRONT'], np.argwhere(labels == material)
    points = np.column_stack([(cells[:, ::-1] + 0.5) * 0.25, np.zeros(len(cells))])
    pixels, depth = project(points, pose(), sensor.intrinsic)
    column, row = np.floor(pixels).astype(int).T
    seen = (depth > 3) & (depth < 9) & (column >= 0) & (column < 400) & (row >= 0) & (row < 225)
    assert seen.sum() > 100
    colours = image.rgb[row[seen], column[seen]].astype(float)
    upright = DAY.on_normals(np.array([[0, 0, 1.0]]))
    own, bars, wrong = (np.linalg.norm(colours - shade * upright, axis=1) for shade in
                        shading.MATERIAL_COLOURS[[material] * 2 + [other]] * [[1], [0.65], [1]])
    if material == Material.PED_CROSSING:
        own = np.minimum(own, bars)
    assert np.mean(own < wrong) > 0.9


def test_painted_line_leads_back_to_its_material():
    """Every bright pixel of the ground lies on paint: pixel -> ray -> plane -> raster."""
    labels = np.full((400, 400), Material.ROAD, np.uint8)
    labels[206:208] = Material.LANE_DIVIDER
    labels[:, 250:254] = Material.STOP_LINE
    labels[190:191] = Material.ROAD_DIVIDER
    image = shoot(snapshot([]), ground=Ground(labels=labels, resolution=0.25))
    row, column = np.nonzero((image.rgb.min(2) > 175) & (image.box_index == camera.GROUND))
    sensor, cam2global = RIG['CAM_FRONT'], pose()
    pixels = np.stack([column + 0.5, row + 0.5, np.ones(len(row))])
    rays = cam2global[:3, :3] @ np.linalg.inv(sensor.intrinsic) @ pixels
    reach = -cam2global[2, 3] / rays[2]
    x, y = cam2global[:2, 3, None] + rays[:2] * reach
    near = reach < 15
    assert near.sum() > 100
    found = labels[(y[near] / 0.25).astype(int), (x[near] / 0.25).astype(int)]
    assert np.isin(found, (Material.LANE_DIVIDER, Material.STOP_LINE)).mean() > 0.95


def test_ground_under_a_box_is_in_its_shadow():
    box = [60, 50, 2.5, 4, 2, 1.0, 0]  # afloat, so that the ground under it is in sight
    lit, shadowed = shoot(snapshot([])).rgb, shoot(snapshot([box])).rgb
    pixels, _ = project(np.array([[60.0, 50, 0]]), pose(), RIG['CAM_FRONT'].intrinsic)
    column, row = np.floor(pixels[0]).astype(int)
    assert shadowed[row, column].mean() < 0.8 * lit[row, column].mean()


@pytest.mark.parametrize('yaw, red', [(0.0, True), (np.pi, False)])
def test_tail_lights_tell_rear_from_front(yaw, red):
    box, colour = [62, 50, 0.85, 4.6, 1.9, 1.7, yaw], [[60, 60, 200]]
    image = shoot(snapshot([box], colours=colour))
    shown = image.rgb[image.box_index == 0].astype(int)
    assert np.any(shown[:, 0] > 2 * shown[:, 1:].max(1) + 20) == red


@pytest.mark.parametrize('class_id', [SCENERY, *range(len(CLASSES))])
def test_every_class_keeps_some_of_its_colour_and_has_details(class_id):
    box = [58, 52, 1.0, 3, 2, 2.0, 0.4]
    shown = [shoot(snapshot([box], [class_id], [colour])) for colour in ([200, 40, 40],
                                                                         [40, 40, 200])]
    red, blue = (image.rgb[image.box_index == 0].astype(int) for image in shown)
    assert (red - blue)[:, 0].mean() > 5 and (blue - red)[:, 2].mean() > 5
    assert red.std(0).max() > 10


def test_faces_towards_the_sun_are_brighter():
    wall = [[62, 50, 2, 1, 12, 4, 0]]
    front, back = (shoot(snapshot(wall, [4]), light=daylight(azimuth=a, elevation=0.4)).rgb
                   for a in (np.pi, 0.0))
    assert front[100:112, 190:210].mean() > 1.5 * back[100:112, 190:210].mean()


def test_two_pictures_agree_on_the_texture_of_the_ground():
    rng, sensor, light = np.random.default_rng(0), RIG['CAM_FRONT'], replace(DAY, noise=0.0)
    points = np.column_stack([rng.uniform(58, 66, 400), rng.uniform(49, 51, 400), np.zeros(400)])
    views = []
    for x in (50.0, 51.0):
        image = shoot(snapshot([]), cam2global=pose(x=x), light=light)
        pixels, _ = project(points, pose(x=x), sensor.intrinsic)
        column, row = np.floor(pixels).astype(int).T
        views.append(image.rgb[row, column].mean(1))
    assert np.corrcoef(*views)[0, 1] > 0.5


def test_looking_at_the_sky_only_and_the_ground_only():
    up, down = np.eye(4), np.diag([1.0, -1, -1, 1])
    up[:3, 3] = down[:3, 3] = 50, 50, 2
    assert np.all(shoot(snapshot([]), cam2global=up).box_index == camera.SKY)
    assert np.all(shoot(snapshot([]), cam2global=down).box_index == camera.GROUND)


def test_distant_box_sinks_in_haze():
    near, far = (shoot(snapshot([[x, 50, 5, 1, 60, 10, 0]], [4], [[30, 30, 30]]))
                 for x in (65, 250))
    assert far.rgb[far.box_index == 0].mean() > near.rgb[near.box_index == 0].mean() + 30


def load_tables(root):
    return {name: {record['token']: record for record in
                   json.loads((root / 'v1.0-mini' / f'{name}.json').read_text())}
            for name in ('sample', 'sample_data', 'sample_annotation', 'ego_pose', 'scene',
                         'calibrated_sensor')}


def rigid(record):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(np.roll(record['rotation'], -1)).as_matrix()
    matrix[:3, 3] = record['translation']
    return matrix


def annotated_box(record):
    width, length, height = record['size']
    yaw = Rotation.from_quat(np.roll(record['rotation'], -1)).as_euler('ZYX')[0]
    return np.array([*record['translation'], length, width, height, yaw])


def table_sensor(record, shot):
    return rig.Sensor(name='', translation=record['translation'], rotation=record['rotation'],
                      intrinsic=np.array(record['camera_intrinsic']), time_offset=0,
                      width=shot['width'], height=shot['height'])


def test_annotated_cars_cover_their_pixels_in_the_dataset(tiny_dataset):
    """Hulls from the tables alone, pixels from a picture that equals the stored one."""
    manifest = json.loads((tiny_dataset / dataset.MANIFEST).read_text())
    settings = dataset.Settings(**{f.name: manifest[f.name] for f in fields(dataset.Settings)})
    plan = next(plan for plan in plan_scenes(settings.scenes) if not plan.is_night)
    traffic = dataset._simulate((plan, settings))
    ground = dataset._town(plan.location, settings.seed).ground
    tables, overlaps = load_tables(tiny_dataset), []
    for shot in tables['sample_data'].values():
        sample = tables['sample'][shot['sample_token']]
        if shot['height'] == 0 or tables['scene'][sample['scene_token']]['name'] != plan.name:
            continue
        sensor = table_sensor(tables['calibrated_sensor'][shot['calibrated_sensor_token']], shot)
        cam2global = rigid(tables['ego_pose'][shot['ego_pose_token']]) @ sensor.sensor2ego
        world = traffic.snapshot(seconds(plan, shot['timestamp']))
        image = camera.render(snapshot=world, ground=ground, cam2global=cam2global,
                              intrinsic=sensor.intrinsic, width=sensor.width,
                              height=sensor.height, light=scene_light(plan, settings.seed),
                              rng=np.random.default_rng(0))
        stored = cv2.imread(str(tiny_dataset / shot['filename']))[..., ::-1]
        assert np.abs(stored.astype(int) - image.rgb).mean() < 8
        boxes = [annotated_box(record) for record in tables['sample_annotation'].values()
                 if record['sample_token'] == sample['token']]
        centres = traffic.snapshot(seconds(plan, sample['timestamp'])).boxes[:, :3]
        overlaps += overlaps_of_near_cars(boxes, centres, world, image, cam2global, sensor)
    assert len(overlaps) >= 3
    assert min(overlaps) > 0.7


def overlaps_of_near_cars(annotated, centres, world, image, cam2global, sensor):
    """IoU of hull and pixels of each unoccluded car within 20 m of the camera and all in front."""
    overlaps = []
    for box in annotated:
        index = np.linalg.norm(centres - box[:3], axis=1).argmin()
        depth = project(corners(box), cam2global, sensor.intrinsic)[1]
        near = np.linalg.norm(box[:2] - cam2global[:2, 3]) < 20 and depth.min() > 0.5
        whole = image.visible[index] == image.covered[index] > 40
        if near and whole and world.class_ids[index] == CLASSES.index('car'):
            overlaps.append(iou(image.box_index == index, hull_mask(box, cam2global, sensor)))
    return overlaps
