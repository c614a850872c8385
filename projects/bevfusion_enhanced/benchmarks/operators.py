"""Small operators around the convolutions, each against the loop that the references run.

Shapes: P points or proposals, M boxes, K classes, X and Y cells.
"""
from typing import List, Tuple

import numpy as np
import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from bevfusion_enhanced.benchmarks import scene
from bevfusion_enhanced.benchmarks.measure import (
    Measurement,
    check_equal,
    peak_growth_mb,
    side_by_side,
)
from bevfusion_enhanced.benchmarks.pooling import loop_depth_map
from bevfusion_enhanced.models.heads.transfusion_coder import BoxCode, TransFusionBBoxCoder
from bevfusion_enhanced.models.heads.transfusion_targets import (
    Truth,
    gaussian_radius,
    heatmap_targets,
)
from bevfusion_enhanced.ops.depth_map import depth_maps
from bevfusion_enhanced.ops.voxelize import voxelize

MAP_SIZE = (180, 180)
PROPOSALS = 200


def coder() -> TransFusionBBoxCoder:
    """The box coder of the full model."""
    return TransFusionBBoxCoder(
        pc_range=scene.RANGE[:2], voxel_size=scene.VOXEL[:2], out_size_factor=8,
        post_center_range=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0), score_threshold=0.0)


def _measured(ours, reference, *, conditions: str, traffic: float, operations: float = 0.0,
              repeats: int = 7) -> Measurement:
    mine, theirs = side_by_side(ours, reference, repeats=repeats)
    return Measurement(ours_ms=mine, reference_ms=theirs, peak_mb=peak_growth_mb(ours),
                       traffic=traffic, operations=operations, conditions=conditions)


def loop_voxelize(points: np.ndarray, *, max_points: int, max_voxels: int,
                  ) -> Tuple[np.ndarray, np.ndarray]:
    """Means (V, F) and coordinates (V, 3), point after point through a table."""
    low, size = np.array(scene.RANGE[:3], np.float32), np.array(scene.VOXEL, np.float32)
    grid = np.array([1440, 1440, 40])
    cells = np.floor((points[:, :3] - low) / size).astype(np.int64)
    table, sums, counts, coords = {}, [], [], []
    for point, cell in zip(points, cells):
        if (cell < 0).any() or (cell >= grid).any():
            continue
        key = cell.tobytes()
        if key not in table:
            if len(table) >= max_voxels:
                continue
            table[key] = len(table)
            sums.append(np.zeros(points.shape[1], np.float64))
            counts.append(0)
            coords.append(cell)
        slot = table[key]
        if counts[slot] < max_points:
            sums[slot] += point
            counts[slot] += 1
    return np.array(sums) / np.array(counts)[:, None], np.array(coords)


def voxelization() -> Measurement:
    """Points to the means and coordinates of voxels."""
    points = scene.cloud()

    def ours():
        return voxelize([points], point_cloud_range=scene.RANGE, voxel_size=scene.VOXEL,
                        max_num_points=10, max_voxels=160_000)

    def reference():
        return loop_voxelize(points.numpy(), max_points=10, max_voxels=160_000)

    voxels, (means, coords) = ours(), reference()
    check_equal(voxels.coords[:, 1:].long(), torch.from_numpy(coords))
    check_equal(voxels.features, torch.from_numpy(means).float(), rtol=1e-4, atol=1e-3)
    return _measured(ours, reference, repeats=3, traffic=4.0 * 5 * (len(points) + len(coords)),
                     conditions=f'{len(points):,} points to {len(coords):,} voxels; the reference '
                                'is a loop in Python')


def depth_scatter() -> Measurement:
    """Points to the depth maps of six cameras."""
    points, rig = scene.cloud(), scene.rig()

    def ours() -> Tensor:
        return depth_maps([points], lidar2img=rig.lidar2img, img_aug_matrix=rig.img_aug_matrix,
                          lidar_aug_matrix=rig.lidar_aug_matrix, image_size=scene.IMAGE_SIZE)

    def reference() -> Tensor:
        return loop_depth_map(points, rig, scene.IMAGE_SIZE)

    mine, theirs = ours(), reference()
    # a point on the edge of a pixel may round to its neighbour, and of points that share a pixel
    # the loop's winner is unspecified
    differing = float(((mine > 0) != (theirs > 0)).float().mean())
    if differing > 1e-4:
        raise AssertionError(f'{differing:.1e} of the pixels of the two depth maps differ')
    return _measured(ours, reference, traffic=4.0 * (3 * len(points) + mine.numel()),
                     operations=6.0 * 24 * len(points),
                     conditions=f'{len(points):,} points in 6 cameras of 256 x 704')


def loop_heatmap(boxes: Tensor, labels: Tensor, box_coder: TransFusionBBoxCoder) -> Tensor:
    """Draw one Gaussian after the other: (K, X, Y)."""
    heatmap = torch.zeros(scene.CLASSES, *MAP_SIZE)
    for box, label in zip(boxes, labels):
        size = box_coder.extents(box[3:5])
        radius = max(2, int(gaussian_radius(size[None], 0.1)[0]))
        x, y = (int(v) for v in box_coder.cells(box[:2]).floor())
        if not (0 <= x < MAP_SIZE[0] and 0 <= y < MAP_SIZE[1]):
            continue
        offsets = torch.arange(-radius, radius + 1).double()
        fall = torch.exp(-offsets.square() / (2 * ((2 * radius + 1) / 6) ** 2))
        bump = (fall[:, None] * fall[None]).float()
        left, right = min(x, radius), min(MAP_SIZE[0] - x, radius + 1)
        top, bottom = min(y, radius), min(MAP_SIZE[1] - y, radius + 1)
        region = heatmap[label, x - left:x + right, y - top:y + bottom]
        torch.maximum(region, bump[radius - left:radius + right, radius - top:radius + bottom],
                      out=region)
    return heatmap


def heatmap() -> Measurement:
    """Boxes to the dense heatmap that the detection head learns."""
    boxes, labels = scene.boxes()
    box_coder = coder()

    def ours() -> Tensor:
        return heatmap_targets([Truth(boxes, labels)], box_coder, num_classes=scene.CLASSES,
                               map_size=MAP_SIZE, min_overlap=0.1, min_radius=2)

    def reference() -> Tensor:
        return loop_heatmap(boxes, labels, box_coder)

    check_equal(ours()[0], reference())
    return _measured(ours, reference, repeats=15, traffic=4.0 * scene.CLASSES * 180 * 180,
                     conditions=f'{len(boxes)} boxes on 10 x 180 x 180 cells')


def hungarian_cost() -> Measurement:
    """Proposals and boxes to the pairs of least cost; in the reference, IoUs one by one."""
    from shapely import Polygon

    truth, labels = scene.boxes()
    generator = torch.Generator().manual_seed(5)
    proposals, _ = scene.boxes(PROPOSALS, seed=6)
    proposals[:len(truth)] = truth + 0.2 * torch.randn(truth.shape, generator=generator)
    proposals[:, 3:6].clamp_(min=0.3)
    logits = torch.randn(PROPOSALS, scene.CLASSES, generator=generator)
    assigner = TASK_UTILS.build(dict(
        type='HungarianAssigner3D', point_cloud_range=scene.RANGE,
        iou_calculator=dict(type='BboxOverlaps3D', coordinate='lidar'),
        cls_cost=dict(type='mmdet.FocalLossCost', gamma=2.0, alpha=0.25, weight=0.15),
        reg_cost=dict(type='BBoxBEVL1Cost', weight=0.25),
        iou_cost=dict(type='IoU3DCost', weight=0.25)))

    def corners(box: List[float]) -> Polygon:
        x, y, _, dx, dy, _, yaw = box[:7]
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [dx / 2, dy / 2]
        return Polygon(square @ turn.T + [x, y])

    def loop_overlaps(a: Tensor, b: Tensor) -> Tensor:
        iou = torch.zeros(len(a), len(b))
        for i, first in enumerate(a.tolist()):
            for j, second in enumerate(b.tolist()):
                height = (min(first[2] + first[5], second[2] + second[5])
                          - max(first[2], second[2]))
                if height > 0 and np.hypot(first[0] - second[0], first[1] - second[1]) < 12:
                    shared = corners(first).intersection(corners(second)).area * height
                    volume = np.prod(first[3:6]) + np.prod(second[3:6]) - shared
                    iou[i, j] = shared / volume
        return iou

    calculate = assigner.iou_calculator

    def ours():
        assigner.iou_calculator = calculate
        return assigner.assign(proposals, logits, truth, labels)

    def reference():
        assigner.iou_calculator = loop_overlaps
        return assigner.assign(proposals, logits, truth, labels)

    mine, theirs = ours(), reference()
    check_equal(mine.proposal, theirs.proposal)
    check_equal(mine.truth, theirs.truth)
    check_equal(mine.iou, theirs.iou, atol=1e-3)
    return _measured(ours, reference, repeats=7, traffic=4.0 * PROPOSALS * len(truth) * 3,
                     operations=200.0 * PROPOSALS * len(truth),
                     conditions=f'{PROPOSALS} proposals, {len(truth)} boxes, the assignment '
                                'included')


def box_decoding() -> Measurement:
    """Codes of the proposals to boxes, and those that are wanted."""
    generator = torch.Generator().manual_seed(7)

    def draw(channels: int) -> Tensor:
        return torch.randn(1, channels, PROPOSALS, generator=generator)

    code = BoxCode(center=90 + 40 * draw(2), height=draw(1), dim=draw(3), rot=draw(2), vel=draw(2))
    scores = torch.rand(1, PROPOSALS, generator=generator)
    box_coder = coder()

    def ours() -> Tensor:
        boxes = box_coder.decode(code)
        return boxes[box_coder.wanted(boxes, scores)]

    def reference() -> Tensor:
        kept = []
        for i in range(PROPOSALS):
            x, y = (float(v) * 0.6 - 54 for v in code.center[0, :, i])
            size = code.dim[0, :, i].exp()
            bottom = float(code.height[0, 0, i]) - float(size[2]) / 2
            yaw = float(torch.atan2(code.rot[0, 0, i], code.rot[0, 1, i]))
            if (float(scores[0, i]) > 0 and abs(x) <= 61.2 and abs(y) <= 61.2
                    and abs(bottom) <= 10):
                kept.append([x, y, bottom, *size.tolist(), yaw, *code.vel[0, :, i].tolist()])
        return torch.tensor(kept)

    check_equal(ours(), reference())
    return _measured(ours, reference, repeats=15, traffic=4.0 * PROPOSALS * 20,
                     conditions=f'{PROPOSALS} proposals')
