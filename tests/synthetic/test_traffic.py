"""The simulated traffic: nobody touches anybody, bodies move as bodies do, every class is there."""
import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon

from bevfusion_enhanced.synthetic.agents import KINDS, draw_agent
from bevfusion_enhanced.synthetic.occupancy import Occupancy, rectangles_overlap
from bevfusion_enhanced.synthetic.paths import LaneGraph, Path
from bevfusion_enhanced.synthetic.scene import CLASSES, SCENERY, Town
from bevfusion_enhanced.synthetic.traffic import EGO_SPEED, TARGETS, Traffic, simulate
from bevfusion_enhanced.synthetic.world import EGO_CENTRE, EGO_SIZE

TIMES = np.arange(0.0, 9.51, 0.5)


def corners(boxes: np.ndarray) -> np.ndarray:
    """(K, 4, 2) ground corners of boxes (K, 7)."""
    unit = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    local = unit * boxes[:, None, 3:5]
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    return boxes[:, None, :2] + local @ turn


def ego_box(traffic: Traffic, t: float) -> np.ndarray:
    pose = traffic.ego2global(t)
    centre = pose @ [EGO_CENTRE, 0, EGO_SIZE[2] / 2, 1]
    return np.array([[*centre[:3], *EGO_SIZE, np.arctan2(pose[1, 0], pose[0, 0])]])


def test_no_two_boxes_touch_and_the_ego_touches_none(traffic: Traffic) -> None:
    for t in TIMES:
        boxes = np.concatenate([traffic.snapshot(t).boxes, ego_box(traffic, t)])
        shapes = shapely.polygons(corners(boxes))
        tree = shapely.STRtree(shapes)
        first, second = tree.query(shapes, predicate='intersects')
        pairs = (first < second) & (np.minimum(first, second) < len(traffic.agents))
        assert not pairs.any(), [(traffic.agents[i].class_name, j)
                                 for i, j in zip(first[pairs], second[pairs], strict=True)]


def test_every_class_is_near_the_ego_at_every_key_frame(traffic: Traffic) -> None:
    classes = np.array([agent.class_id for agent in traffic.agents])
    counts = []
    for t in TIMES:
        distance = np.hypot(*(traffic.agent_boxes(t)[:, :2] - traffic.ego2global(t)[:2, 3]).T)
        counts.append(np.bincount(classes[distance < 50], minlength=len(CLASSES)))
    counts = np.array(counts)
    assert (counts.sum(1) >= 50).all()
    assert (np.median(counts, axis=0) >= 2).all()
    assert (counts > 0).mean(0).min() > 0.8


def test_bodies_move_smoothly_and_where_they_point(traffic: Traffic) -> None:
    poses = traffic.agent_poses
    step = np.diff(traffic.times).mean()
    speed = np.hypot(*np.moveaxis(np.diff(poses[..., :2], axis=1), -1, 0)) / step
    turn = np.abs(np.diff(poses[..., 2], axis=1)) / step
    assert speed.max() < 11
    vehicles = np.array([agent.class_name != 'pedestrian' for agent in traffic.agents])
    assert turn[vehicles].max() < 1.4 and turn.max() < 6.0
    velocity = np.diff(poses[vehicles, :, :2], axis=1) / step
    heading = np.stack([np.cos(poses[vehicles, :-1, 2]), np.sin(poses[vehicles, :-1, 2])], -1)
    across = velocity[..., 0] * heading[..., 1] - velocity[..., 1] * heading[..., 0]
    assert np.abs(across).max() < 1.2
    assert (velocity * heading).sum(-1).min() > -1e-6


def test_the_ego_keeps_to_a_lane_at_its_speed(town: Town, traffic: Traffic) -> None:
    speed = np.hypot(*np.diff(traffic.ego_poses[:, :2], axis=0).T) / np.diff(traffic.times)
    assert EGO_SPEED[0] * 0.85 < speed.min() and speed.max() < EGO_SPEED[1] * 1.15
    middle = shapely.union_all([shapely.linestrings(lane.centreline)
                                for lane in town.lanes.values()])
    assert shapely.distance(shapely.points(traffic.ego_poses[:, :2]), middle).max() < 0.3


def test_driving_vehicles_stay_on_the_drivable_area(town: Town, traffic: Traffic) -> None:
    road = shapely.union_all(list(town.polygons['drivable_area']))
    moving = np.hypot(*traffic.agent_velocities(5.0).T) > 1.8
    driving = moving & (np.array([a.class_name for a in traffic.agents]) != 'pedestrian')
    assert driving.sum() >= 5
    centres = shapely.points(traffic.agent_boxes(5.0)[driving, :2])
    assert shapely.contains(road, centres).all()


def test_velocity_is_the_slope_of_the_poses(traffic: Traffic) -> None:
    before, after = (traffic.agent_boxes(t)[:, :2] for t in (4.99, 5.01))
    np.testing.assert_allclose(traffic.agent_velocities(5.0), (after - before) / 0.02, atol=0.05)


def test_snapshot_lists_agents_first_and_annotates_no_building(traffic: Traffic) -> None:
    snapshot = traffic.snapshot(1.0)
    count = len(traffic.agents)
    assert snapshot.class_ids[:count].tolist() == [a.class_id for a in traffic.agents]
    assert (snapshot.class_ids[count:] == SCENERY).all() and len(snapshot.boxes) > count
    np.testing.assert_allclose(snapshot.boxes[:count, 2], snapshot.boxes[:count, 5] / 2)


def test_same_seed_same_traffic_other_seed_other_traffic(town: Town, traffic: Traffic) -> None:
    again, other = (simulate(town=town, seed=seed, duration=9.5) for seed in (5, 6))
    np.testing.assert_array_equal(again.agent_poses, traffic.agent_poses)
    assert again.agents == traffic.agents
    assert not np.array_equal(other.ego_poses, traffic.ego_poses)


def test_time_outside_the_scene_is_refused(traffic: Traffic) -> None:
    with pytest.raises(ValueError, match='t must lie within'):
        traffic.snapshot(11.0)


def test_targets_name_every_class_once() -> None:
    assert sorted(target.name for target in TARGETS) == sorted(CLASSES)


@pytest.mark.parametrize('name', CLASSES)
def test_drawn_sizes_average_to_the_class(name: str) -> None:
    rng = np.random.default_rng(0)
    agents = [draw_agent(name=name, rng=rng, ridden=bool(i % 2)) for i in range(400)]
    mean = np.mean([agent.size for agent in agents], axis=0)
    np.testing.assert_allclose(mean, KINDS[name].size, rtol=0.08)
    assert all(agent.class_name == name for agent in agents)


def test_attributes_follow_the_speed() -> None:
    rng = np.random.default_rng(0)
    assert draw_agent(name='bus', rng=rng).attribute(0.0) == 'vehicle.stopped'
    assert draw_agent(name='car', rng=rng).attribute(0.0) == 'vehicle.parked'
    assert draw_agent(name='car', rng=rng).attribute(3.0) == 'vehicle.moving'
    assert draw_agent(name='bicycle', rng=rng).attribute(0.0) == 'cycle.without_rider'
    assert (draw_agent(name='pedestrian', rng=rng, sitting=True).attribute(0.0)
            == 'pedestrian.sitting_lying_down')
    assert draw_agent(name='barrier', rng=rng).attribute(0.0) == ''


def test_rectangles_overlap_agrees_with_polygon_intersection() -> None:
    rng = np.random.default_rng(1)
    low, high = [-3, -3, 0.5, 0.5, -4], [3, 3, 5, 3, 4]
    first, second = (rng.uniform(low, high, size=(500, 5)) for _ in range(2))
    boxes = [np.insert(r, [2, 4], 0.0, axis=1) for r in (first, second)]
    expected = [Polygon(a).intersects(Polygon(b))
                for a, b in zip(*(corners(box) for box in boxes), strict=True)]
    assert 50 < np.sum(expected) < 450
    np.testing.assert_array_equal(rectangles_overlap(first, second), expected)


def test_occupancy_keeps_the_margin_in_space_and_time() -> None:
    occupancy = Occupancy(num_times=2)
    assert occupancy.is_free(np.zeros((2, 5)), margin=1.0)
    occupancy.add(np.array([[0.0, 0, 4, 2, 0], [10.0, 0, 4, 2, 0]]))
    beside = np.array([[0.0, 2.5, 4, 2, 0], [0.0, 2.5, 4, 2, 0]])
    assert occupancy.is_free(beside, margin=0.4)
    assert not occupancy.is_free(beside, margin=0.6)
    follower = np.array([[-10.0, 0, 4, 2, 0], [0.0, 0, 4, 2, 0]])
    assert occupancy.is_free(follower, margin=0.4)


def test_path_keeps_straight_lines_and_rounds_corners() -> None:
    straight = Path(points=np.array([[0.0, 0], [3, 4], [30, 40]]))
    poses = straight.poses(np.array([10.0, 20.0]), behind=1.0, ahead=1.0, offset=2.0)
    np.testing.assert_allclose(poses[:, :2], [[6 - 1.6, 8 + 1.2], [12 - 1.6, 16 + 1.2]], atol=1e-9)
    np.testing.assert_allclose(poses[:, 2], np.arctan2(4, 3))
    bent = Path(points=np.array([[0.0, 0], [20, 0], [20, 20]]))
    yaw = bent.poses(np.arange(5.0, 34.0, 0.25), behind=1.0, ahead=1.0)[:, 2]
    assert np.diff(yaw).min() > -1e-9 and np.diff(yaw).max() < 0.3
    assert yaw[-1] == pytest.approx(np.pi / 2)


def test_routes_join_lanes_without_jumps(town: Town) -> None:
    graph, rng = LaneGraph(town=town), np.random.default_rng(2)
    found = 0
    for _ in range(20):
        chosen = int(rng.integers(len(graph.points)))
        route = graph.route(lane=graph.point_lane[chosen], index=int(graph.point_index[chosen]),
                            before=30.0, after=60.0, rng=rng)
        if route is None:
            continue
        found += 1
        path, arc = route
        assert arc >= 29 and path.length - arc >= 59
        passed = path.positions(np.array([arc]))[0]
        np.testing.assert_allclose(passed, graph.points[chosen], atol=1.0)
        steps = np.diff(path.positions(np.linspace(0, path.length, 200)), axis=0)
        assert np.hypot(*steps.T).max() < 1.2 * path.length / 199
    assert found > 10
