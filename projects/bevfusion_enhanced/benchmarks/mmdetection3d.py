"""MMDetection3D's own BEVFusion beside ours: the same weights and sample in one process.

Its code is imported from a checkout of MMDetection3D v1.4.0 that `tools/benchmark.py` is told of.
What it has for CUDA alone stands here in PyTorch, vectorised, so that the rest of it is compared:
the pooling of its sorted points by segments, and hard voxelization.

Shapes: P points, V voxels, K points of a voxel at most, C channels, X x Y x Z cells.
"""
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple

import torch
from mmdet3d.registry import MODELS, TASK_UTILS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import Registry
from spconv.pytorch import ConvAlgo
from spconv.pytorch.conv import SparseConvolution
from torch import Tensor, nn

from bevfusion_enhanced.benchmarks.measure import Measurement, check_equal, side_by_side
from bevfusion_enhanced.benchmarks.names import CHECKOUT
from bevfusion_enhanced.benchmarks.whole_model import batch, build_model
from bevfusion_enhanced.checkpoints.naming import translate

PROJECT = 'projects/BEVFusion'
CONFIG = 'configs/bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py'
_CONDITIONS = ('detection, batch 1, float32, equal weights; the reference is the BEVFusion of '
               'MMDetection3D v1.4.0, what it has for CUDA alone written in PyTorch')


def forward() -> Measurement:
    """Prediction of boxes; equal where both see the same sample."""
    ours, reference = _pair()
    predict = [_prediction(model.eval()) for model in (ours, reference)]
    check_equal(*(call().scores_3d.sort().values for call in predict), rtol=1e-3, atol=1e-3)
    ours_ms, reference_ms = side_by_side(*predict, repeats=5)
    return Measurement(ours_ms=ours_ms, reference_ms=reference_ms, conditions=_CONDITIONS)


def training_step() -> Measurement:
    """Forward, backward and update."""
    step = [_step(model.train()) for model in _pair()]
    ours_ms, reference_ms = side_by_side(*step, repeats=3)
    return Measurement(ours_ms=ours_ms, reference_ms=reference_ms,
                       conditions=f'{_CONDITIONS}; AdamW')


def _pair() -> Tuple[nn.Module, nn.Module]:
    """Our model, with the weights of MMDetection3D's, and that."""
    ours = build_model(with_map=False, config_file='configs/det_only.py')
    reference = _build()
    translation = translate({'state_dict': reference.state_dict()}, model=ours.state_dict(),
                            geometry={})
    ours.load_state_dict(translation.weights)
    return ours, reference


def _build() -> nn.Module:
    folder = Path(os.environ[CHECKOUT]) / PROJECT
    for name, functions in _STANDING_IN.items():
        module = ModuleType(name)
        vars(module).update(functions)
        sys.modules[name] = module
    sys.path.insert(0, str(folder))
    config = Config.fromfile(folder / CONFIG, import_custom_modules=False)
    config.model.img_backbone.init_cfg = None
    with _ours_set_aside(MODELS, TASK_UTILS, TRANSFORMS):
        import bevfusion  # noqa: F401  registers its classes
        torch.manual_seed(0)
        model = MODELS.build(config.model)
    for part in model.modules():
        if isinstance(part, SparseConvolution):
            part.algo = ConvAlgo.Native  # the one that spconv has for CPUs
    for part in (model.pts_backbone, model.pts_neck, model.bbox_head):
        for layer in part.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
                nn.init.kaiming_normal_(layer.weight)  # its own weights leave all proposals alike
    return model


@contextmanager
def _ours_set_aside(*registries: Registry) -> Iterator[None]:
    """Both have classes of the same names."""
    kept = [dict(registry.module_dict) for registry in registries]
    for registry in registries:
        for name, value in list(registry.module_dict.items()):
            if value.__module__.startswith('bevfusion_enhanced.'):
                del registry.module_dict[name]
    try:
        yield
    finally:
        for registry, modules in zip(registries, kept, strict=True):
            registry.module_dict.update(modules)


def _prediction(model: nn.Module) -> Callable[[], Any]:
    data = model.data_preprocessor(batch(), False)

    def predict() -> Any:
        with torch.inference_mode():
            return model._run_forward(data, mode='predict')[0].pred_instances_3d

    return predict


def _step(model: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    data = model.data_preprocessor(batch(), True)

    def step() -> None:
        model.parse_losses(model._run_forward(data, mode='loss'))[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _pool(x: Tensor, cells: Tensor, lengths: Tensor, starts: Tensor, B: int, Z: int, X: int,
          Y: int) -> Tensor:
    """Sum the points `x` (P, C) of every cell: (B, Z, X, Y, C)."""
    pooled = x.new_zeros(B, int(Z), int(X), int(Y), x.shape[1])
    sums = torch.segment_reduce(x, 'sum', lengths=lengths.long())
    place = cells[starts.long()].long()
    pooled[place[:, 3], place[:, 2], place[:, 0], place[:, 1]] = sums
    return pooled


def _spread_gradient(gradient: Tensor, cells: Tensor, lengths: Tensor, starts: Tensor, B: int,
                     Z: int, X: int, Y: int) -> Tensor:
    place = cells.long()
    return gradient[place[:, 3], place[:, 2], place[:, 0], place[:, 1]]


def _hard_voxelize(points: Tensor, voxels: Tensor, coords: Tensor, counts: Tensor,
                   voxel_size: Sequence[float], span: Sequence[float], max_points: int,
                   max_voxels: int, dimensions: int, deterministic: bool) -> int:
    """Write the first K points of each of the first voxels to `voxels` (V, K, C)."""
    low, high = points.new_tensor(span[:3]), points.new_tensor(span[3:])
    size = points.new_tensor(voxel_size)
    grid = ((high - low) / size).round().long()
    place = ((points[:, :3] - low) / size).floor().long()
    inside = ((place >= 0) & (place < grid)).all(dim=1)
    place, points = place[inside], points[inside]
    cells, cell, many = ((place[:, 0] * grid[1] + place[:, 1]) * grid[2] + place[:, 2]).unique(
        return_inverse=True, return_counts=True)
    order = cell.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (many.cumsum(0) - many)[cell[order]]
    kept = (rank < max_points) & (cell < max_voxels)
    voxels[cell[kept], rank[kept]] = points[kept]
    count = min(len(cells), max_voxels)
    coords[:count] = torch.stack([cells // (grid[1] * grid[2]), cells // grid[2] % grid[1],
                                  cells % grid[2]], dim=1)[:count].int()
    counts[:count] = many[:count].clamp(max=max_points).int()
    return count


_STANDING_IN: Dict[str, Dict[str, Any]] = {
    'bevfusion.ops.bev_pool.bev_pool_ext': dict(
        bev_pool_forward=_pool, bev_pool_backward=_spread_gradient),
    'bevfusion.ops.voxel.voxel_layer': dict(
        hard_voxelize=_hard_voxelize, dynamic_voxelize=None,
        dynamic_point_to_voxel_forward=None, dynamic_point_to_voxel_backward=None),
}
"""Compiled modules of the checkout -> what stands in for what of them is called."""
