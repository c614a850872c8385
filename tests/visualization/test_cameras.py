import numpy as np
import pytest
from sample_parts import CHANNELS, FOCAL, HEIGHT, WIDTH, lidar_boxes, pinhole

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.visualization.boxes import DrawnBoxes, boxes_from
from bevfusion_enhanced.visualization.cameras import (
    camera_name,
    clip_segments,
    draw_cameras,
    grid_cells,
    project_boxes,
    read_image,
)

SIZE = np.array([WIDTH, HEIGHT])
RED = np.array([[255, 0, 0]], dtype=np.uint8)


def homogeneous(u: float, v: float, depth: float) -> list:
    return [u * depth, v * depth, depth]


def corners_of(*rows: tuple) -> np.ndarray:
    boxes = lidar_boxes(*rows)
    return boxes_from(boxes, np.zeros(len(rows))).corners


def red(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] > 150) & (picture[..., 1] < 60) & (picture[..., 2] < 60)


def test_segment_inside_the_image_is_kept():
    ends = np.array([homogeneous(10, 20, 5), homogeneous(100, 80, 9)])
    pixels, visible = clip_segments(ends, size=SIZE)
    assert visible
    np.testing.assert_allclose(pixels, [[10, 20], [100, 80]])


def test_segment_leaving_the_image_ends_on_its_border():
    ends = np.array([homogeneous(80, 45, 5), homogeneous(240, 45, 5)])
    pixels, visible = clip_segments(ends, size=SIZE)
    assert visible
    np.testing.assert_allclose(pixels, [[80, 45], [WIDTH, 45]])


@pytest.mark.parametrize('ends', [
    [homogeneous(80, 45, -5), homogeneous(90, 50, -3)],
    [homogeneous(-50, 45, 5), homogeneous(-20, 45, 5)],
    [homogeneous(10, -30, 5), homogeneous(20, 200, -5)],
], ids=['behind', 'left', 'passing by'])
def test_segment_that_is_not_seen(ends):
    assert not clip_segments(np.array(ends), size=SIZE).visible


def test_segment_through_the_camera_plane_shows_its_front_part_only():
    # A line on the ground straight below the optical axis, from 5 m behind to 5 m ahead, 1 m down:
    # at depth d it stands at v = 45 + 80 / d, so it enters the image at its lower border.
    behind = [WIDTH / 2 * -5., HEIGHT / 2 * -5. + FOCAL, -5.]
    ahead = [WIDTH / 2 * 5., HEIGHT / 2 * 5. + FOCAL, 5.]
    pixels, visible = clip_segments(np.array([behind, ahead]), size=SIZE)
    assert visible
    np.testing.assert_allclose(pixels, [[WIDTH / 2, HEIGHT], [WIDTH / 2, 45 + 80 / 5.]])


def test_clipped_pixels_agree_with_sampling_the_segment():
    rng = np.random.default_rng(0)
    ends = rng.normal(scale=4., size=(400, 2, 3)) * [WIDTH, HEIGHT, 1.]
    pixels, visible = clip_segments(ends, size=SIZE, near=0.1)
    steps = np.linspace(0., 1., 4001)[:, None, None]
    points = ends[None, :, 0] * (1 - steps) + ends[None, :, 1] * steps
    with np.errstate(divide='ignore', invalid='ignore'):
        uv = points[..., :2] / points[..., 2:]
    seen = (points[..., 2] >= 0.1) & (uv >= 0).all(-1) & (uv <= SIZE).all(-1)
    sampled = seen.sum(0)
    assert visible[sampled > 0].all()
    assert (sampled[visible] > 0).mean() > 0.95       # the rest are shorter than a step
    assert (pixels[visible] >= -1e-6).all() and (pixels[visible] <= SIZE + 1e-6).all()
    for i in np.flatnonzero(sampled > 200)[:20]:
        first = uv[np.argmax(seen[:, i]), i]
        second = uv[np.argmax(seen[:, i]) + 1, i]
        assert np.linalg.norm(pixels[i, 0] - first) <= np.linalg.norm(second - first) + 1e-6


def test_box_corner_lands_where_the_pinhole_says():
    # Front face (towards the car's +x, here right) of a box 10 m ahead; corner (1, 9, 0.5).
    corners = corners_of((0., 10., -0.5, 2., 2., 1., 0.))
    pixels, visible = project_boxes(corners, pinhole(0.)[None], sizes=SIZE[None])
    assert pixels.shape == (1, 1, 13, 2, 2) and visible.all()
    expected = [WIDTH / 2 + FOCAL * 1. / 9., HEIGHT / 2 - FOCAL * 0.5 / 9.]
    distance = np.linalg.norm(pixels - expected, axis=-1).min()
    assert distance < 1e-4


def test_heading_mark_points_along_the_box():
    corners = corners_of((0., 10., -0.5, 2., 1., 1., 0.), (0., 10., -0.5, 2., 1., 1., np.pi))
    marks = project_boxes(corners, pinhole(0.)[None], sizes=SIZE[None]).pixels[0, :, 12]
    assert marks[0, 1, 0] > marks[0, 0, 0]      # yaw 0: heads to the right
    assert marks[1, 1, 0] < marks[1, 0, 0]


def test_box_is_seen_by_the_camera_that_looks_at_it():
    corners = corners_of((0., 10., -0.5, 1., 1., 1., 0.), (0., -10., -0.5, 1., 1., 1., 0.),
                         (-10., 0., -0.5, 1., 1., 1., 0.))
    matrices = np.stack([pinhole(0.), pinhole(180.), pinhole(90.)])
    visible = project_boxes(corners, matrices, sizes=np.tile(SIZE, (3, 1))).visible.all(-1)
    np.testing.assert_array_equal(visible, np.eye(3, dtype=bool))


def test_box_beside_the_camera_does_not_smear():
    # 4 m to the right, from 6 m behind to 6 m ahead: only the part inside the field of view (45
    # degrees to the right) may be drawn, which is right of the middle everywhere.
    box = DrawnBoxes(corners_of((5., 0., -1., 12., 2., 2., np.pi / 2)), np.zeros(1, dtype=np.int64))
    picture = draw_cameras([np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)], names=['CAM_FRONT'],
                           lidar2img=pinhole(0.)[None], boxes=box, colours=RED, width=3 * WIDTH)
    drawn = red(picture)
    columns = np.flatnonzero(drawn.any(0))
    assert drawn.sum() > 20
    assert columns.min() >= WIDTH + WIDTH / 2 + FOCAL * 4. / 6. - 3
    assert columns.max() < 2 * WIDTH + 2


def test_box_behind_is_not_drawn():
    box = DrawnBoxes(corners_of((0., -8., -1., 4., 2., 2., 0.)), np.zeros(1, dtype=np.int64))
    picture = draw_cameras([np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)], names=['CAM_FRONT'],
                           lidar2img=pinhole(0.)[None], boxes=box, colours=RED, width=3 * WIDTH)
    assert not red(picture).any()


def test_no_boxes_draws_the_images():
    images = [np.full((HEIGHT, WIDTH, 3), 30 * i, dtype=np.uint8) for i in range(6)]
    picture = draw_cameras(images, names=CHANNELS, lidar2img=np.tile(np.eye(4), (6, 1, 1)),
                           boxes=DrawnBoxes.empty(), colours=RED, width=3 * WIDTH)
    assert picture.shape == (2 * HEIGHT, 3 * WIDTH, 3)
    centres = picture[HEIGHT // 2 + 10::HEIGHT, WIDTH // 2::WIDTH, 0]
    np.testing.assert_array_equal(centres, [[60, 0, 30], [120, 90, 150]])


def test_layout_is_nuscenes_own():
    cells = dict(zip(CHANNELS, map(tuple, grid_cells(CHANNELS)), strict=True))
    assert cells == {'CAM_FRONT_LEFT': (0, 0), 'CAM_FRONT': (0, 1), 'CAM_FRONT_RIGHT': (0, 2),
                     'CAM_BACK_LEFT': (1, 0), 'CAM_BACK': (1, 1), 'CAM_BACK_RIGHT': (1, 2)}
    np.testing.assert_array_equal(grid_cells(['a', 'b', 'c', 'd'])[3], (1, 0))


@pytest.mark.parametrize('path, name', [
    ('samples/CAM_BACK_LEFT/n015__CAM_BACK_LEFT__1532.jpg', 'CAM_BACK_LEFT'),
    ('n015-2018__CAM_FRONT__1532.jpg', 'CAM_FRONT'),
    ('samples/CAM_FRONT/0001.jpg', 'CAM_FRONT'),
    ('pictures/0001.jpg', ''),
])
def test_camera_name(path, name):
    assert camera_name(path) == name


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r'\(K, 8, 3\), not \(1, 7\)'):
        project_boxes(np.zeros((1, 7)), np.zeros((1, 4, 4)), sizes=SIZE[None])
    with pytest.raises(ValueError, match=r'\(N, 4, 4\), not \(1, 3, 4\)'):
        project_boxes(np.zeros((1, 8, 3)), np.zeros((1, 3, 4)), sizes=SIZE[None])


def test_unreadable_image_is_named(tmp_path):
    path = tmp_path / 'broken.jpg'
    path.write_bytes(b'not an image')
    for name in (path, tmp_path / 'missing.jpg'):
        with pytest.raises(DataError, match=name.name):
            read_image(str(name))
