import numpy as np
import pytest
from sample_parts import CLASSES, MAP_CLASSES

from bevfusion_enhanced.visualization.palette import (
    MAP_COLOURS,
    OBJECT_COLOURS,
    class_colours,
    paint_map,
)


def test_every_class_has_its_own_colour():
    assert set(OBJECT_COLOURS) == set(CLASSES) and set(MAP_COLOURS) == set(MAP_CLASSES)
    for colours in (class_colours(CLASSES), class_colours(MAP_CLASSES, MAP_COLOURS)):
        distances = np.linalg.norm(colours[:, None].astype(float) - colours, axis=-1)
        assert distances[~np.eye(len(colours), dtype=bool)].min() > 50


def test_unknown_classes_get_a_colour():
    assert class_colours(('car', 'unicycle')).shape == (2, 3)
    assert class_colours(()).shape == (0, 3)


def test_map_is_painted_forward_up_and_right_right():
    masks = np.zeros((6, 4, 6), dtype=np.uint8)      # X 4, Y 6
    masks[0, 3, 5] = 1                               # right, far ahead
    picture = paint_map(masks, MAP_CLASSES)
    assert picture.shape == (6, 4, 3)
    colour = class_colours(['drivable_area'], MAP_COLOURS)[0]
    rows, columns = np.nonzero((picture == colour).all(-1))
    assert (rows.tolist(), columns.tolist()) == ([0], [3])


def test_lines_are_painted_over_areas():
    picture = paint_map(np.ones((6, 2, 2)), MAP_CLASSES)
    assert (picture == class_colours(['divider'], MAP_COLOURS)[0]).all()


def test_masks_and_names_must_agree():
    with pytest.raises(ValueError, match=r'\(6, X, Y\).*\(5, 2, 2\)'):
        paint_map(np.ones((5, 2, 2)), MAP_CLASSES)
