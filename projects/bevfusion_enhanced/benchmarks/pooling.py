"""BEV pooling and the whole view transform.

Shapes: P pixels, D depth bins, C channels, K cells.
"""
from typing import Tuple

import torch
from torch import Tensor

from bevfusion_enhanced.benchmarks import scene
from bevfusion_enhanced.benchmarks.measure import (
    Measurement,
    check_equal,
    milliseconds,
    operations_of,
    peak_growth_mb,
    side_by_side,
)
from bevfusion_enhanced.models.camera.geometry import frustum_cells
from bevfusion_enhanced.models.camera.view_transform import DepthLSSTransform
from bevfusion_enhanced.ops.bev_pool import bev_pool, plan_pooling
from bevfusion_enhanced.ops.memory import keep_freed_memory
from bevfusion_enhanced.ops.winograd import use_fewer_multiplications

CHANNELS = 80
DBOUND = (1.0, 60.0, 0.5)


def transform(*, cell: float = 0.3, image_size: Tuple[int, int] = scene.IMAGE_SIZE,
              ) -> DepthLSSTransform:
    """The view transform of the full model, in evaluation mode, with pooled cells of `cell` m."""
    torch.manual_seed(0)
    bound = (-54.0, 54.0, cell)
    module = DepthLSSTransform(
        in_channels=256, out_channels=CHANNELS, image_size=image_size,
        feature_size=(image_size[0] // 8, image_size[1] // 8), xbound=bound, ybound=bound,
        zbound=(-10.0, 10.0, 20.0), dbound=DBOUND, downsample=2).eval()
    use_fewer_multiplications(module)  # as the whole model does
    return module


def sort_and_cumsum(depth: Tensor, context: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Pool as Lift, Splat, Shoot does: the product of every pixel and bin, sorted by cell, summed
    up cumulatively, and differences taken where the cell changes: (K, C)."""
    product = (depth[:, :, None] * context[:, None, :]).flatten(0, 1)             # (P * D, C)
    cell = cells.flatten()
    inside = cell >= 0
    cell, order = cell[inside].sort()
    total = product[inside][order].cumsum(0)
    last = torch.ones(len(cell), dtype=torch.bool)
    last[:-1] = cell[1:] != cell[:-1]
    total, cell = total[last], cell[last]
    total = torch.cat([total[:1], total[1:] - total[:-1]])
    out = context.new_zeros(num_cells, context.shape[1])
    out[cell.long()] = total
    return out


def bev_pooling() -> Measurement:
    """Pooling alone, from depth and context to the map."""
    module, calibration = transform(), scene.rig()
    cells = frustum_cells(module.frustum, module.grid, calibration)
    num_cells = int(module.nx.prod())
    plan = plan_pooling(cells, num_cells=num_cells)
    generator = torch.Generator().manual_seed(0)
    depth = torch.randn(cells.shape, generator=generator).softmax(1)
    context = torch.randn(len(cells), CHANNELS, generator=generator)
    with torch.no_grad():
        check_equal(bev_pool(depth, context, plan),
                    sort_and_cumsum(depth.double(), context.double(), cells, num_cells).float())
        ours, reference = side_by_side(
            lambda: bev_pool(depth, context, plan),
            lambda: sort_and_cumsum(depth, context, cells, num_cells), repeats=5)
        peak = peak_growth_mb(lambda: bev_pool(depth, context, plan))
        reference_peak = peak_growth_mb(
            lambda: sort_and_cumsum(depth, context, cells, num_cells))
    entries = len(plan.pixel_by_cell)
    backward = milliseconds(lambda: _there_and_back(depth, context, plan))
    return Measurement(
        ours_ms=ours, reference_ms=reference, peak_mb=peak, operations=2.0 * entries * CHANNELS,
        traffic=4.0 * (3 * entries + context.numel() + num_cells * CHANNELS),
        conditions=f'{len(cells):,} pixels x {cells.shape[1]} bins, {CHANNELS} channels, '
                   f'{entries:,} pairs on {num_cells:,} cells',
        details={'reference_peak_mb': round(reference_peak, 1),
                 'forward_and_backward_ms': round(backward, 1),
                 'plan_ms': round(milliseconds(
                     lambda: plan_pooling(cells, num_cells=num_cells), repeats=3), 1)})


def _there_and_back(depth: Tensor, context: Tensor, plan: object) -> None:
    depth, context = depth.requires_grad_(), context.requires_grad_()
    bev_pool(depth, context, plan).sum().backward()
    depth.grad = context.grad = None


def loop_depth_map(points: Tensor, calibration: object, image_size: Tuple[int, int]) -> Tensor:
    """The depth map (1, N, H, W) of one cloud, camera after camera, as the published models."""
    cameras = calibration.lidar2img.shape[1]
    out = torch.zeros(1, cameras, *image_size)
    undo = calibration.lidar_aug_matrix[0].inverse()
    xyz = points[:, :3] @ undo[:3, :3].T + undo[:3, 3]
    for camera in range(cameras):
        matrix, aug = calibration.lidar2img[0, camera], calibration.img_aug_matrix[0, camera]
        seen = xyz @ matrix[:3, :3].T + matrix[:3, 3]
        depth = seen[:, 2]
        pixel = seen[:, :2] / depth.clamp(min=1e-5)[:, None]
        pixel = pixel @ aug[:2, :2].T + aug[:2, 3]
        u, v = pixel.unbind(1)
        on = (depth > 1e-5) & (u >= 0) & (u < image_size[1]) & (v >= 0) & (v < image_size[0])
        out[0, camera, v[on].long(), u[on].long()] = depth[on]
    return out


def view_transform() -> Measurement:
    """Camera features and points to the camera's BEV map, convolutions included."""
    module, calibration = transform(), scene.rig()
    features, points = scene.camera_features(), [scene.cloud()]

    def reference() -> Tensor:
        depth = module.dtransform(
            loop_depth_map(points[0], calibration, module.image_size).flatten(0, 1)[:, None])
        x = module.depthnet(torch.cat([depth, features.flatten(0, 1)], dim=1))
        x = x.permute(0, 2, 3, 1).flatten(0, 2)
        weights, context = x.split([module.num_bins, CHANNELS], dim=1)
        cells = frustum_cells(module.frustum, module.grid, calibration)
        bev = sort_and_cumsum(weights.softmax(1), context, cells, int(module.nx.prod()))
        X, Y, _ = module.nx.tolist()
        return module.downsample(bev.view(1, X, Y, CHANNELS).permute(0, 3, 1, 2))

    with torch.inference_mode():
        ours = module(features, points, calibration)
        # where points share a pixel, the loop's winner depends on the threads; and its cumulative
        # sums lose digits: equal to a thousandth of the range
        difference = (ours - reference()).abs().mean() / ours.abs().mean()
        if difference > 1e-3:
            raise AssertionError(f'the two view transforms differ by {difference:.1e} on average')
        peak = peak_growth_mb(lambda: module(features, points, calibration))
        keep_freed_memory()  # as tools/train.py and tools/test.py do
        mine, theirs = side_by_side(lambda: module(features, points, calibration), reference,
                                    repeats=3)
        parts = _parts(module, features, points, calibration)
        operations = operations_of(lambda: module(features, points, calibration))
    return Measurement(
        ours_ms=mine, reference_ms=theirs, peak_mb=peak,
        operations=operations,
        conditions='6 cameras of 256 x 704, 260,000 points, 360 x 360 cells pooled', details=parts)


def _parts(module: DepthLSSTransform, features: Tensor, points: list,
           calibration: object) -> dict:
    x = module.depthnet(torch.cat([torch.zeros(6, 64, 32, 88), features.flatten(0, 1)], dim=1))
    pooled = module.lift_splat(x, calibration)
    return {'lift_and_splat_ms': round(milliseconds(lambda: module.lift_splat(x, calibration)), 1),
            'downsample_ms': round(milliseconds(lambda: module.downsample(pooled)), 1)}
