"""The LiDAR against plain geometry: one ray and one box at a time."""
import numpy as np
import pytest

from bevfusion_enhanced.synthetic import lidar, rig
from bevfusion_enhanced.synthetic.scene import SCENERY, Ground, Material, Snapshot

ROAD = Ground(labels=np.full((200, 200), Material.ROAD, np.uint8), resolution=0.5)
LIDAR2EGO = rig.nominal()[-1].sensor2ego


def snapshot(boxes, class_ids=None):
    boxes = np.asarray(boxes, float).reshape(-1, 7)
    count = len(boxes)
    return Snapshot(boxes=boxes,
                    class_ids=np.zeros(count, int) if class_ids is None else np.array(class_ids),
                    colours=np.full((count, 3), 128, np.uint8),
                    intensities=np.linspace(20, 60, count).astype(np.float32))


def pose(x=50.0, y=50.0, yaw=0.0):
    ego2global = np.eye(4)
    ego2global[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    ego2global[:2, 3] = x, y
    return ego2global @ LIDAR2EGO


def fire(boxes, *, seed=0, columns=360, lidar2global=None, ground=ROAD):
    return lidar.scan(snapshot=snapshot(boxes), ground=ground, columns=columns,
                      lidar2global=pose() if lidar2global is None else lidar2global,
                      rng=np.random.default_rng(seed))


def to_global(points, lidar2global):
    return points[:, :3] @ lidar2global[:3, :3].T + lidar2global[:3, 3]


def in_box(points, box):
    """(P, 3) global points in the box's frame, over its half size: inside is within 1."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = (points - box[:3]) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return local / (box[3:6] / 2)


def random_boxes(rng, count=40):
    sizes = rng.uniform([0.4, 0.4, 0.5], [12, 4, 5], (count, 3))
    angle, distance = rng.uniform(-np.pi, np.pi, count), rng.uniform(8, 90, count)
    return np.column_stack([50 + distance * np.cos(angle), 50 + distance * np.sin(angle),
                            sizes[:, 2] / 2, sizes, rng.uniform(-np.pi, np.pi, count)])


def brute_force(boxes, lidar2global, columns):
    """Nearest box and its range per ray, by clipping the ray at each face of every box."""
    origin, rays = lidar2global[:3, 3], lidar.ray_directions(columns) @ lidar2global[:3, :3].T
    best, index = np.full(len(rays), np.inf), np.full(len(rays), -1)
    for k, box in enumerate(boxes):
        cos, sin = np.cos(box[6]), np.sin(box[6])
        start, stop = np.zeros(len(rays)), np.full(len(rays), np.inf)
        for axis, half in zip(([cos, sin, 0], [-sin, cos, 0], [0, 0, 1]), box[3:6] / 2,
                              strict=True):
            at, along = np.dot(origin - box[:3], axis), rays @ axis
            a, b = (-half - at) / along, (half - at) / along
            start, stop = np.maximum(start, np.minimum(a, b)), np.minimum(stop, np.maximum(a, b))
        nearer = (start < stop) & (start < best)
        best[nearer], index[nearer] = start[nearer], k
    return best, index


def test_layout_of_points():
    scan = fire(random_boxes(np.random.default_rng(1)))
    assert scan.points.dtype == np.float32 and scan.points.shape[1] == 5
    assert scan.box_index.dtype == np.int64 and scan.box_index.shape == (len(scan.points),)
    intensity, ring = scan.points[:, 3], scan.points[:, 4]
    assert np.array_equal(intensity, np.rint(intensity)) and 0 <= intensity.min()
    assert intensity.max() <= 255
    assert set(np.unique(ring)) <= set(range(32)) and ring.max() > 25


def test_elevation_follows_ring():
    points = fire(random_boxes(np.random.default_rng(1))).points.astype(float)
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    np.testing.assert_allclose(elevation, -30.67 + points[:, 4] * 41.34 / 31, atol=1e-3)


def test_fires_clockwise_column_by_column():
    walls = [[50 + 30 * x, 50 + 30 * y, 10, 60 * abs(y) + 1, 60 * abs(x) + 1, 20, 0]
             for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    points = fire(walls).points
    azimuth = np.arctan2(points[:, 1], points[:, 0]).astype(float)
    column = np.rint(-azimuth / (2 * np.pi) * 360) % 360
    order = column * 32 + points[:, 4]
    assert np.all(np.diff(order) > 0)


def test_ground_is_the_sensor_height_below():
    scan = fire([])
    height = to_global(scan.points, pose())[:, 2]
    ground = np.hypot(scan.points[:, 0], scan.points[:, 1]) > 1.5
    assert ground.sum() > 3000
    assert np.all(height[ground] < -1e-3) and np.all(height[ground] > -0.1)
    assert np.abs(scan.points[ground, 2] + LIDAR2EGO[2, 3]).mean() < 0.4  # tilted by 1.4 degrees
    assert np.all(scan.box_index == -1)


def test_empty_snapshot_has_only_ground_and_roof():
    points = fire([]).points
    assert np.all(to_global(points, pose())[:, 2] < 1.6)
    near = np.hypot(points[:, 0], points[:, 1]) < 1.5
    assert 0.01 < near.mean() < 0.3
    assert np.all(np.abs(points[near, :2]) < 1)


def test_no_ground_beyond_reach():
    points = fire([]).points
    assert np.linalg.norm(points[:, :3], axis=1).max() < lidar.MAX_RANGE


@pytest.mark.parametrize('distance, seen', [(60, True), (104, False), (130, False)])
def test_box_out_of_range_gives_no_return(distance, seen):
    scan = fire([[51 + distance, 50, 2, 2, 30, 4, 0]], lidar2global=pose())
    assert np.any(scan.box_index == 0) == seen


@pytest.mark.parametrize('seed', range(5))
def test_returns_lie_in_their_boxes(seed):
    rng = np.random.default_rng(seed)
    boxes, lidar2global = random_boxes(rng), pose(yaw=rng.uniform(-3, 3))
    scan = fire(boxes, seed=seed, lidar2global=lidar2global)
    points = to_global(scan.points.astype(float), lidar2global)
    hit = scan.box_index >= 0
    assert hit.sum() > 500
    local = np.stack([in_box(points, box) for box in boxes])                    # (K, P, 3)
    own = local[scan.box_index[hit], np.flatnonzero(hit)]
    assert np.abs(own).max() < 1
    assert not np.any(np.all(np.abs(local[:, ~hit]) <= 1, axis=2))  # ground is in no box


@pytest.mark.parametrize('seed', range(5))
def test_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    boxes, lidar2global = random_boxes(rng), pose(yaw=rng.uniform(-3, 3))
    scan = fire(boxes, seed=seed, lidar2global=lidar2global)
    ranges, index = brute_force(boxes, lidar2global, 360)
    azimuth = np.arctan2(scan.points[:, 1], scan.points[:, 0]).astype(float)
    column = np.rint(-azimuth / (2 * np.pi) * 360).astype(int) % 360
    ray = column * 32 + scan.points[:, 4].astype(int)
    outside_roof = np.hypot(scan.points[:, 0], scan.points[:, 1]) > 1.5
    agrees = (scan.box_index == index[ray])[outside_roof]
    assert agrees.mean() > 0.99  # but for rays within the margin of an edge
    hit = (scan.box_index >= 0) & (scan.box_index == index[ray])
    error = np.linalg.norm(scan.points[hit, :3], axis=1) - ranges[ray[hit]]
    assert np.median(np.abs(error)) < 0.05
    assert np.mean(index[ray] >= 0) == pytest.approx(np.mean(scan.box_index >= 0), abs=0.01)


def test_box_hides_what_is_behind():
    wall, behind = [60, 50, 3, 0.5, 20, 6, 0], [64, 50, 0.8, 4, 2, 1.6, 0]
    scan = fire([behind, wall])
    assert np.any(fire([behind]).box_index == 0)
    assert not np.any(scan.box_index == 0)
    points = to_global(scan.points, pose())
    shadow = (points[:, 0] > 60.5) & (np.abs(points[:, 1] - 50) < 9) & (points[:, 2] < 2)
    assert not shadow.any()


def test_box_around_the_sensor_axis_is_seen_all_around():
    roof = [51, 50, 3.5, 30, 30, 1, 0.3]  # above the sensor
    scan = fire([roof])
    azimuth = np.degrees(np.arctan2(scan.points[:, 1], scan.points[:, 0]))[scan.box_index == 0]
    assert np.histogram(azimuth, 12, (-180, 180))[0].min() > 10


def test_intensity_tells_materials_and_boxes():
    paint = Ground(labels=np.full((200, 200), Material.STOP_LINE, np.uint8), resolution=0.5)
    box = [[60, 50, 1, 4, 4, 2, 0]]
    on_road, on_paint = fire(box), fire(box, ground=paint)
    np.testing.assert_array_equal(on_road.points[:, :3], on_paint.points[:, :3])
    far = (on_road.box_index == -1) & (np.hypot(*on_road.points[:, :2].T) > 1.5)
    assert on_paint.points[far, 3].mean() > 3 * on_road.points[far, 3].mean()
    assert on_road.points[on_road.box_index == 0, 3].mean() == pytest.approx(20, rel=0.2)


def test_outside_the_raster_is_terrain():
    scan = fire([], lidar2global=pose(x=-500))
    assert len(scan.points) > 3000


def test_same_generator_same_bytes():
    boxes = random_boxes(np.random.default_rng(3))
    first, second, other = (fire(boxes, seed=s).points for s in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert first.tobytes() != other.tobytes()


def test_inputs_are_left_alone():
    world = snapshot(random_boxes(np.random.default_rng(3)), [SCENERY] * 40)
    before = world.boxes.copy()
    lidar.scan(snapshot=world, ground=ROAD, lidar2global=pose(), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(world.boxes, before)


def test_boxes_must_have_seven_numbers():
    world = snapshot(np.zeros((1, 7)))
    bad = Snapshot(np.zeros((1, 6)), world.class_ids, world.colours, world.intensities)
    with pytest.raises(ValueError, match=r'\(K, 7\)'):
        lidar.scan(snapshot=bad, ground=ROAD, lidar2global=pose(), rng=np.random.default_rng(0))
