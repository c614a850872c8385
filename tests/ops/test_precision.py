"""Autocast does not touch the geometry."""
import torch

from bevfusion_enhanced.benchmarks import scene
from bevfusion_enhanced.models.camera.geometry import bev_grid, frustum_cells, make_frustum
from bevfusion_enhanced.ops.depth_map import depth_maps
from bevfusion_enhanced.ops.precision import full_precision


def test_products_stay_exact():
    x = torch.full((2, 2), 1.0009765625)
    with torch.autocast('cpu', torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert torch.equal(full_precision(torch.matmul)(x, x), full_precision(torch.mm)(x, x))
        assert full_precision(torch.matmul)(x, x).dtype == torch.float32


def test_depth_maps_and_frustums_are_the_same_under_autocast():
    rig = scene.rig()
    grid = bev_grid((-54.0, 54.0, 0.6), (-54.0, 54.0, 0.6), (-10.0, 10.0, 20.0))
    frustum = make_frustum((256, 704), (32, 88), (1.0, 61.0, 2.0))

    def geometry():
        drawn = depth_maps([scene.cloud(5000)], lidar2img=rig.lidar2img,
                           img_aug_matrix=rig.img_aug_matrix,
                           lidar_aug_matrix=rig.lidar_aug_matrix, image_size=(256, 704))
        return drawn, frustum_cells(frustum, grid, rig)

    plain = geometry()
    with torch.autocast('cpu', torch.bfloat16):
        half = geometry()
    assert all(torch.equal(a, b) for a, b in zip(plain, half))
    assert (plain[0] > 0).sum() > 100 and (plain[1] >= 0).any()
