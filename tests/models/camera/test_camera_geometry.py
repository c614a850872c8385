from dataclasses import replace

import pytest
import torch

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.camera.geometry import bev_grid, frustum_cells, make_frustum

BOUND = [-20., 20., 1.]
GRID = bev_grid(BOUND, BOUND, [-10., 10., 20.])
IMAGE, FEATURES = (64, 176), (8, 22)
FRUSTUM = make_frustum(IMAGE, FEATURES, [1., 30., 1.])


def cells_as_grid(calibration, grid=GRID):
    """(B, N, h, w, D)."""
    B, N = calibration.cam2img.shape[:2]
    return frustum_cells(FRUSTUM, grid, calibration).view(B, N, *FEATURES, -1)


def test_grid():
    assert GRID.nx.tolist() == [40, 40, 1] and GRID.nx.dtype == torch.int64
    assert GRID.bx.tolist() == [-19.5, -19.5, 0.0]
    assert bev_grid([-54., 54., .3], [-54., 54., .3], [-10., 10., 20.]).nx.tolist() == [360, 360, 1]


@pytest.mark.parametrize('bound', [[0., 1., 0.3], [0., 1., 0.], [1., 0., 0.1], [0., 1.]])
def test_bounds_that_make_no_grid(bound):
    with pytest.raises(ConfigError, match='ybound'):
        bev_grid(BOUND, bound, [-10., 10., 20.])


def test_frustum_runs_from_corner_pixel_to_corner_pixel():
    assert FRUSTUM.shape == (29, 8, 22, 3)
    assert FRUSTUM[0, 0, 0].tolist() == [0, 0, 1]
    assert FRUSTUM[-1, -1, -1].tolist() == [175, 63, 29]


def test_central_ray_runs_along_the_camera(rig):
    calibration = rig(cameras=4)
    centred = calibration.cam2img.clone()
    centred[..., :2, 2] = FRUSTUM[0, 4, 10, :2]  # this pixel looks straight ahead
    cells = cells_as_grid(replace(calibration, cam2img=centred))[0, :, 4, 10]     # (4, D)
    ahead = torch.arange(1, 20)  # metres: cells 21 .. 39 of the axis that the camera looks along
    assert cells[0, :19].tolist() == (20 * 40 + 20 + ahead).tolist()              # +y
    assert cells[1, :19].tolist() == ((20 - ahead) * 40 + 20).tolist()            # -x
    assert cells[2, :19].tolist() == (20 * 40 + 20 - ahead).tolist()              # -y
    assert cells[3, :19].tolist() == ((20 + ahead) * 40 + 20).tolist()            # +x


def test_outside_the_map_is_minus_one_and_truncation_is_toward_zero(rig):
    calibration = rig(cameras=4)
    centred = calibration.cam2img.clone()
    centred[..., :2, 2] = FRUSTUM[0, 4, 10, :2]
    shifted = calibration.lidar_aug_matrix.clone()
    shifted[:, :3, 3] = 0.5
    cells = cells_as_grid(replace(calibration, cam2img=centred, lidar_aug_matrix=shifted))
    backwards = cells[0, 2, 4, 10]  # y = 0.5 - d, so d = 21 lies half a cell below the minimum
    assert backwards[19] == 20 * 40 + 0 and backwards[20] == 20 * 40 + 0
    assert backwards[21] == -1
    assert (cells < GRID.nx.prod()).all()


def test_samples_use_their_own_part_of_the_map(rig):
    cells = cells_as_grid(rig(batch=3))
    first, last = cells[0], cells[2]
    assert torch.equal(last[first >= 0], first[first >= 0] + 2 * 40 * 40)
    assert (last[first < 0] == -1).all()


def test_layers_along_z_come_before_x_and_y(rig):
    flat = cells_as_grid(rig())
    layered = cells_as_grid(rig(), bev_grid(BOUND, BOUND, [-4., 4., 2.]))
    both = (flat >= 0) & (layered >= 0)
    assert torch.equal(layered[both] % 1600, flat[both])
    assert set((layered[both] // 1600).tolist()) == {0, 1, 2, 3}


def test_a_flip_of_the_lidar_frame_mirrors_the_cells(rig):
    calibration = rig(cameras=3)
    flip = torch.diag(torch.tensor([1., -1, 1, 1]))[None]
    plain = cells_as_grid(calibration)
    flipped = cells_as_grid(replace(calibration, lidar_aug_matrix=flip))
    both = (plain >= 0) & (flipped >= 0)
    x, y = plain[both] // 40, plain[both] % 40
    mirrored = flipped[both] // 40 == x
    mirrored &= (flipped[both] % 40 == 39 - y) | (flipped[both] % 40 == 40 - y)
    assert both.sum() > 1000 and mirrored.all()


def test_image_augmentation_is_undone(rig):
    """Half the image, cropped: a pixel's ray is where twice its place plus the crop looked."""
    calibration = rig()
    aug = torch.eye(4).repeat(1, 2, 1, 1)
    aug[..., 0, 0] = aug[..., 1, 1] = 0.5
    aug[..., 0, 3] = -3.0
    moved = calibration.cam2img.clone()  # the same map of pixels, folded into the intrinsics
    moved[..., :2, :] = aug[..., :2, :2] @ calibration.cam2img[..., :2, :]
    moved[..., 0, 2] -= 3.0
    by_aug = cells_as_grid(replace(calibration, img_aug_matrix=aug))
    by_intrinsics = cells_as_grid(replace(calibration, cam2img=moved))
    assert (by_aug == by_intrinsics).float().mean() > 0.999  # but for points on a cell's edge
