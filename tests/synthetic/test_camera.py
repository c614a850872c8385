"""The camera against plain projection: masks, occlusion, paint, light."""
import cv2
import numpy as np
import pytest

from bevfusion_enhanced.synthetic import camera, rig, shading
from bevfusion_enhanced.synthetic.light import daylight, night
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
