import numpy as np
import pytest
from matplotlib.colors import to_rgb
from sample_parts import MAP_CLASSES, lidar_boxes

from bevfusion_enhanced.visualization.bev import (
    MARGIN,
    TITLE_HEIGHT,
    box_outlines,
    draw_bev,
    draw_map,
)
from bevfusion_enhanced.visualization.boxes import DrawnBoxes, boxes_from
from bevfusion_enhanced.visualization.palette import BACKGROUND, MAP_COLOURS

SIZE = 400
RED = np.array([[255, 0, 0]], dtype=np.uint8)
NONE = DrawnBoxes.empty()


def centre_of(mask: np.ndarray) -> np.ndarray:
    """Middle (right, up) of the marked pixels' extent in the shown part of the ground, as -1..1."""
    shown = mask[TITLE_HEIGHT + MARGIN:-MARGIN, MARGIN:-MARGIN]
    rows, columns = np.nonzero(shown)
    right = (columns.min() + columns.max() + 1) / shown.shape[1] - 1
    return np.array([right, 1 - (rows.min() + rows.max() + 1) / shown.shape[0]])


def changed(picture: np.ndarray, **arguments: object) -> np.ndarray:
    """Where a drawing differs from the empty one."""
    empty = draw_bev(points=None, predicted=NONE, truth=NONE, colours=RED, size=SIZE, title='')
    return (picture != empty).any(-1)


@pytest.mark.parametrize('where', [(30., 0.), (0., 30.), (-30., 10.), (20., -40.)])
def test_point_is_drawn_where_it_is(where):
    points = np.array([[*where, 0.]] * 3)
    picture = draw_bev(points=points, predicted=NONE, truth=NONE, colours=RED, size=SIZE, title='')
    np.testing.assert_allclose(centre_of(changed(picture)), np.array(where) / 50., atol=0.01)


@pytest.mark.parametrize('where', [(30., 0.), (0., 30.), (-30., -20.)])
def test_box_is_drawn_where_it_is(where):
    boxes = boxes_from(lidar_boxes((*where, -1., 6., 6., 2., 0.)), np.array([0]))
    picture = draw_bev(points=None, predicted=boxes, truth=NONE, colours=RED, size=SIZE, title='')
    np.testing.assert_allclose(centre_of(changed(picture)), np.array(where) / 50., atol=0.01)


def test_outline_and_heading_of_a_box():
    corners = boxes_from(lidar_boxes((10., 20., -1., 4., 2., 1., np.pi / 2)), np.array([0])).corners
    footprints, headings = box_outlines(corners)
    np.testing.assert_allclose(np.sort(footprints[0], axis=0)[[0, -1]], [[9., 18.], [11., 22.]],
                               atol=1e-5)
    np.testing.assert_allclose(headings[0], [[10., 20.], [10., 22.]], atol=1e-5)
    sides = np.linalg.norm(np.diff(footprints[0], axis=0), axis=-1)
    np.testing.assert_allclose(np.sort(sides), [2., 4., 4.] if sides[0] > 3 else [2., 2., 4.],
                               atol=1e-5)


def test_truth_is_dashed_and_of_another_colour():
    boxes = boxes_from(lidar_boxes((0., 20., -1., 30., 10., 2., 0.)), np.array([0]))
    picture = draw_bev(points=None, predicted=boxes, truth=NONE, colours=RED, size=SIZE, title='')
    solid = changed(picture)
    picture = draw_bev(points=None, predicted=NONE, truth=boxes, colours=RED, size=SIZE, title='')
    dashed = changed(picture)
    assert 0.3 * solid.sum() < dashed.sum() < 0.95 * solid.sum()
    assert picture[dashed].max(axis=0).tolist() == [255, 255, 255]


def test_nothing_to_draw():
    picture = draw_bev(points=np.zeros((0, 5)), predicted=NONE, truth=NONE, colours=RED, size=SIZE)
    assert picture.shape == (SIZE + TITLE_HEIGHT, SIZE, 3)
    assert picture.dtype == np.uint8


def test_points_outside_the_view_are_left_out():
    points = np.array([[51., 0., 0.], [0., -60., 0.]])
    picture = draw_bev(points=points, predicted=NONE, truth=NONE, colours=RED, size=SIZE, title='')
    assert not changed(picture).any()


@pytest.mark.parametrize('cell, where', [((9, 5), (0.9, 0.1)), ((5, 9), (0.1, 0.9)),
                                         ((0, 0), (-0.9, -0.9))])
def test_map_cell_is_drawn_where_it_is(cell, where):
    masks = np.zeros((6, 10, 10))
    masks[(MAP_CLASSES.index('divider'), *cell)] = 1
    picture = draw_map(masks, names=MAP_CLASSES, title='', size=SIZE)
    wanted = np.rint(255 * np.array(to_rgb(MAP_COLOURS['divider'])))
    assert tuple(wanted) != tuple(np.rint(255 * np.array(to_rgb(BACKGROUND))))
    marked = np.abs(picture - wanted).max(-1) < 3
    np.testing.assert_allclose(centre_of(marked), where, atol=0.01)
