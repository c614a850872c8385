"""Towns: the street net can be driven, areas lie where they should, every map class is common."""
from functools import cache

import numpy as np
import pytest
import shapely
from shapely.geometry import LineString
from shapely.ops import unary_union

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.synthetic.buildings import footprint_of
from bevfusion_enhanced.synthetic.raster import DRIVABLE
from bevfusion_enhanced.synthetic.roads import LANE_WIDTH, WALKWAY_WIDTH
from bevfusion_enhanced.synthetic.scene import Material, Town
from bevfusion_enhanced.synthetic.town import LOCATIONS, build_town

MAP_LAYERS = ('drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area')


@cache
def town_of(location: str, seed: int = 0) -> Town:
    return build_town(location=location, seed=seed)


@pytest.fixture(params=LOCATIONS)
def town(request: pytest.FixtureRequest) -> Town:
    return town_of(request.param)


def area_of(town: Town, layer: str, margin: float = 0.0) -> shapely.Geometry:
    area = unary_union(town.polygons[layer]).buffer(margin)
    shapely.prepare(area)
    return area


def test_size_and_materials(town: Town) -> None:
    assert all(300.0 < side < 430.0 for side in town.size)
    width, height = (round(side / town.ground.resolution) for side in town.size)
    assert town.ground.labels.shape == (height, width) and town.ground.labels.dtype == np.uint8
    assert set(np.unique(town.ground.labels)) == {int(material) for material in Material}


def test_polygons_are_valid_and_inside_the_town(town: Town) -> None:
    canvas = shapely.box(0.0, 0.0, *town.size)
    for layer, polygons in town.polygons.items():
        assert polygons, layer
        for polygon in polygons:
            assert polygon.is_valid and polygon.area > 0.4, layer
            assert canvas.contains(polygon), layer
            coordinates = shapely.get_coordinates(polygon)
            assert np.abs(coordinates - coordinates.round(3)).max() < 1e-9, layer
    for layer in ('ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'lane'):
        assert all(not polygon.interiors for polygon in town.polygons[layer]), layer


def test_each_lane_and_road_has_its_polygons(town: Town) -> None:
    lanes = [lane for lane in town.lanes.values() if not lane.is_connector]
    assert len(lanes) == len(town.polygons['lane'])
    for lane, polygon in zip(lanes, town.polygons['lane'], strict=True):
        line = LineString(lane.centreline)
        assert abs(polygon.area - line.length * LANE_WIDTH) < 0.02 * polygon.area
        assert polygon.buffer(0.05).contains(line)
    for i, block in enumerate(town.polygons['road_block']):
        assert block.difference(town.polygons['road_segment'][i // 2]).area < 0.01 * block.area


def test_successors_exist_and_join_smoothly(town: Town) -> None:
    for name, lane in town.lanes.items():
        assert name == lane.name and lane.successors
        assert len(set(lane.successors)) == len(lane.successors)
        assert np.linalg.norm(np.diff(lane.centreline, axis=0), axis=1).max() <= 2.0 + 1e-9
        for successor in lane.successors:
            following = town.lanes[successor]
            assert following.is_connector != lane.is_connector
            assert np.array_equal(lane.centreline[-1], following.centreline[0])
            before = lane.centreline[-1] - lane.centreline[-2]
            after = following.centreline[1] - following.centreline[0]
            cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
            assert cosine > np.cos(np.radians(15.0)), (name, successor)


def test_every_lane_is_reachable_from_every_other(town: Town) -> None:
    forward = {name: lane.successors for name, lane in town.lanes.items()}
    backward = {name: [other for other, lane in town.lanes.items() if name in lane.successors]
                for name in town.lanes}
    for following in (forward, backward):
        seen, waiting = set(), [next(iter(town.lanes))]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(following[name])
        assert not set(town.lanes) - seen


def test_junctions_offer_straight_and_turning_connectors(town: Town) -> None:
    turns = []
    for lane in town.lanes.values():
        if lane.is_connector:
            first, last = np.diff(lane.centreline, axis=0)[[0, -1]]
            turns.append(np.degrees(np.arctan2(np.cross(first, last), first @ last)))
    turns = np.array(turns)
    assert (np.abs(turns) < 30.0).any() and (turns > 60.0).any() and (turns < -60.0).any()
    assert np.abs(turns).max() < 140.0


def test_traffic_keeps_right_and_inside_the_drivable_area(town: Town) -> None:
    drivable = area_of(town, 'drivable_area')
    dividers = unary_union(town.lines['road_divider'])
    for lane in town.lanes.values():
        band = LineString(lane.centreline).buffer(0.9, cap_style='flat')
        assert band.difference(drivable).area < 0.01 * band.area, lane.name
        if not lane.is_connector:
            middle = len(lane.centreline) // 2
            here, onward = lane.centreline[middle - 1:middle + 1]
            left = shapely.ops.nearest_points(dividers, shapely.Point(here))[0]
            offset = np.array([left.x, left.y]) - here
            assert np.cross(onward - here, offset) > 0.0, lane.name


def test_dividers_and_paint_lie_on_the_drivable_area(town: Town) -> None:
    drivable = area_of(town, 'drivable_area', 0.1)
    for layer, lines in town.lines.items():
        assert lines, layer
        assert all(drivable.contains(line) for line in lines), layer
    for layer in ('ped_crossing', 'stop_line', 'carpark_area', 'road_segment', 'lane'):
        area = area_of(town, layer)
        assert area.difference(drivable).area < 0.005 * area.area, layer


def test_walkways_keep_off_the_roads(town: Town) -> None:
    walkway, drivable = area_of(town, 'walkway'), area_of(town, 'drivable_area')
    assert walkway.intersection(drivable).area < 0.005 * walkway.area
    for path in town.walk_paths:
        line = LineString(path)
        assert np.array_equal(path[0], path[-1])
        assert line.intersection(walkway).length > 0.9 * line.length
    roadside = unary_union(town.polygons['road_segment']).boundary
    assert roadside.distance(walkway) < 0.2


def test_crossing_paths_join_the_walkways_over_a_crossing(town: Town) -> None:
    walkway, crossing = area_of(town, 'walkway', 0.1), area_of(town, 'ped_crossing')
    assert len(town.crossing_paths) == len(town.polygons['ped_crossing'])
    for path in town.crossing_paths:
        assert path.shape == (2, 2)
        assert walkway.contains(shapely.MultiPoint(path))
        assert LineString(path).intersection(crossing).length > 2.0 * LANE_WIDTH - 0.2
    rings = unary_union([LineString(path) for path in town.walk_paths])
    ends = shapely.points(np.concatenate(town.crossing_paths))
    assert shapely.distance(rings, ends).max() < WALKWAY_WIDTH


def test_parking_spots_stand_in_car_parks_or_at_the_kerb(town: Town) -> None:
    cars = np.array([footprint_of(np.array([*spot[:2], 0.8, 4.6, 1.9, 1.6, spot[2]]))
                     for spot in town.parking_spots])
    car_parks = area_of(town, 'carpark_area', 0.05)
    in_car_park = shapely.contains(car_parks, cars)
    assert in_car_park.mean() > 0.5 and not in_car_park.all()
    drivable = area_of(town, 'drivable_area', 0.1)
    assert shapely.contains(drivable, cars[~in_car_park]).all()
    lanes = unary_union([LineString(lane.centreline).buffer(1.4) for lane in town.lanes.values()])
    shapely.prepare(lanes)
    assert not shapely.intersects(lanes, cars).any()
    tree = shapely.STRtree(cars)
    assert len(tree.query(cars, predicate='intersects')[0]) == len(cars)


def test_buildings_stand_free(town: Town) -> None:
    boxes = town.buildings
    assert boxes.shape[1] == 7 and len(boxes) > 60
    assert (boxes[:, 3:5] >= 6.0).all() and (boxes[:, 3:5] <= 20.0).all()
    assert (boxes[:, 5] >= 5.0).all() and (boxes[:, 5] <= 20.0).all()
    np.testing.assert_allclose(boxes[:, 2], boxes[:, 5] / 2.0)
    footprints = np.array([footprint_of(box) for box in boxes])
    taken = unary_union([area_of(town, 'drivable_area'), area_of(town, 'walkway')])
    assert shapely.distance(taken, footprints).min() > 0.1
    assert len(shapely.STRtree(footprints).query(footprints, predicate='intersects')[0]) == len(
        boxes)
    assert shapely.contains(shapely.box(0.0, 0.0, *town.size), footprints).all()


@pytest.mark.parametrize('layer,materials', [
    ('drivable_area', DRIVABLE), ('walkway', (Material.WALKWAY,)),
    ('ped_crossing', (Material.PED_CROSSING,)), ('stop_line', (Material.STOP_LINE,))])
def test_raster_has_the_areas_of_the_vector_map(town: Town, layer: str, materials: tuple) -> None:
    painted = np.isin(town.ground.labels, materials).sum() * town.ground.resolution ** 2
    assert painted == pytest.approx(area_of(town, layer).area, rel=0.01)


def test_paint_and_divider_lines_coincide(town: Town) -> None:
    for layer, material in (('road_divider', Material.ROAD_DIVIDER),
                            ('lane_divider', Material.LANE_DIVIDER)):
        for line in town.lines[layer]:
            points = shapely.get_coordinates(shapely.line_interpolate_point(
                line, np.linspace(0.3, line.length - 0.3, 20)))
            column, row = (points / town.ground.resolution).astype(int).T
            assert (town.ground.labels[row, column] == material).mean() > 0.8


def test_every_map_class_shows_in_most_windows() -> None:
    """Of 100 m windows around places on lanes, nearly all hold all six classes."""
    rng = np.random.default_rng(0)
    complete = []
    for location in LOCATIONS:
        town = town_of(location)
        trees = [shapely.STRtree(town.polygons[layer]) for layer in MAP_LAYERS]
        trees.append(shapely.STRtree(town.lines['road_divider']))
        places = np.concatenate([lane.centreline for lane in town.lanes.values()])
        for x, y in places[rng.integers(len(places), size=40)]:
            window = shapely.affinity.rotate(shapely.box(x - 50, y - 50, x + 50, y + 50),
                                             rng.uniform(0.0, 360.0))
            complete.append(all(len(tree.query(window, predicate='intersects'))
                                for tree in trees))
    assert np.mean(complete) > 0.95


def test_roads_are_curved_and_of_both_widths() -> None:
    for location in LOCATIONS:
        town = town_of(location)
        bends = []
        for lane in town.lanes.values():
            if not lane.is_connector:
                line = LineString(lane.centreline)
                chord = LineString(lane.centreline[[0, -1]])
                bends.append(line.hausdorff_distance(chord))
        assert np.mean(np.array(bends) > 1.0) > 0.4, location
        assert town.lines['lane_divider'], location


def test_same_arguments_same_town() -> None:
    first, second = town_of('boston-seaport'), build_town(location='boston-seaport', seed=0)
    assert np.array_equal(first.ground.labels, second.ground.labels)
    assert np.array_equal(first.parking_spots, second.parking_spots)
    assert np.array_equal(first.buildings, second.buildings)
    assert list(first.lanes) == list(second.lanes)
    assert all(np.array_equal(lane.centreline, second.lanes[name].centreline)
               for name, lane in first.lanes.items())
    assert first.polygons == second.polygons and first.lines == second.lines


def test_locations_and_seeds_differ() -> None:
    towns = [town_of(location) for location in LOCATIONS] + [town_of(LOCATIONS[0], 1)]
    streets = [area_of(town, 'drivable_area') for town in towns]
    for i, street in enumerate(streets):
        for other in streets[:i]:
            assert street.intersection(other).area < 0.7 * street.union(other).area


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match='location.*atlantis'):
        build_town(location='atlantis', seed=0)
    with pytest.raises(ConfigError, match='seed'):
        build_town(location=LOCATIONS[0], seed=-1)
