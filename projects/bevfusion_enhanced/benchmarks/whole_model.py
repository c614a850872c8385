"""The whole model at full size: forward, training step, bfloat16.

Shapes: B = 1 sample, 6 cameras of 256 x 704, maps of 200 x 200 cells.
"""
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from bevfusion_enhanced.benchmarks import scene
from bevfusion_enhanced.benchmarks.measure import (
    Measurement,
    milliseconds,
    operations_of,
    process_peak_mb,
)
from bevfusion_enhanced.ops.memory import keep_freed_memory

CONFIG = 'configs/phase4a_task_gca.py'
MAP_CLASSES = 6
KEY_FRAME_POINTS = 34_000  # one turn of nuScenes' LiDAR


def build_model(*, with_map: bool, config_file: str = CONFIG) -> nn.Module:
    """The full model with weights drawn from a seed, in evaluation mode."""
    config = Config.fromfile(Path(__file__).parents[3] / config_file)
    init_default_scope('mmdet3d')
    model = config.model
    if not with_map:
        model.heads['map'] = None
        model.loss_scale = None
    torch.manual_seed(0)
    keep_freed_memory()  # as tools/train.py and tools/test.py do
    return MODELS.build(model).eval()


def batch(*, cameras: int = 6, image_size: Any = scene.IMAGE_SIZE,
          points: int = scene.POINTS) -> Dict[str, Any]:
    """One sample as the data loader gives it."""
    calibration = scene.rig(cameras=cameras, image_size=image_size)
    sample = Det3DDataSample(metainfo=dict(
        scene.metainfo(calibration), box_type_3d=LiDARInstance3DBoxes, token='benchmark'))
    boxes, labels = scene.boxes()
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)
    generator = np.random.default_rng(0)
    sample.gt_bev_map = PixelData(masks=torch.from_numpy(
        generator.integers(0, 2, (MAP_CLASSES, 200, 200), dtype=np.uint8)))
    images = scene.images(cameras=cameras, image_size=image_size)
    return {'inputs': {'img': [images[0]], 'points': [scene.cloud(points)]},
            'data_samples': [sample]}


def _prediction(model: nn.Module, data: Dict[str, Any]) -> Callable[[], List[Any]]:
    ready = model.data_preprocessor(data, False)

    def predict() -> List[Any]:
        with torch.inference_mode():
            return model._run_forward(ready, mode='predict')

    return predict


def _parts(model: nn.Module, call: Callable[[], Any]) -> Dict[str, float]:
    """Milliseconds of the parts of the model in one call, the least of three."""
    import time

    names = {'encoders.camera.backbone', 'encoders.camera.neck', 'encoders.camera.vtransform',
             'encoders.lidar', 'fuser', 'decoder.backbone', 'decoder.neck', 'heads.object',
             'heads.map'}
    spent: Dict[str, List[float]] = {}
    handles, began = [], {}
    for name, part in model.named_modules():
        if name in names:
            handles.append(part.register_forward_pre_hook(
                lambda *_, name=name: began.__setitem__(name, time.perf_counter())))
            handles.append(part.register_forward_hook(
                lambda *_, name=name: spent.setdefault(name, []).append(
                    time.perf_counter() - began[name])))
    for _ in range(3):
        call()
    for handle in handles:
        handle.remove()
    return {f'{name}_ms': round(1e3 * min(values), 1) for name, values in spent.items()}


def model_forward() -> Measurement:
    """Detection from cameras and LiDAR; with the map head in the details."""
    model = build_model(with_map=True)
    data = batch()
    with_map = _prediction(model, data)
    with_map()
    total = milliseconds(with_map, repeats=3, warm_up=0)
    parts = _parts(model, with_map)
    operations_with_map = operations_of(with_map)
    del model.heads['map']
    predict = _prediction(model, data)
    ours = milliseconds(predict, repeats=5)
    key_frame = milliseconds(_prediction(model, batch(points=KEY_FRAME_POINTS)), repeats=5)
    return Measurement(
        ours_ms=ours, operations=operations_of(predict), peak_mb=process_peak_mb(),
        conditions='detection, batch 1, float32, prediction of boxes included; peak of the '
                   'process, map head included',
        details={'key_frame_without_sweeps_ms': round(key_frame, 1),
                 'with_map_head_ms': round(total, 1),
                 'with_map_head_gigaoperations': round(operations_with_map / 1e9), **parts})


def training_step() -> Measurement:
    """Forward, backward and update with both heads in float32; detection alone in the details."""
    lean, _ = _training_ms(with_map=True, with_cp=True)
    lean_peak = process_peak_mb()
    both, operations = _training_ms(with_map=True)
    peak = process_peak_mb()
    detection, _ = _training_ms(with_map=False)
    return Measurement(
        ours_ms=both, peak_mb=peak, operations=operations,
        conditions='detection and map, batch 1, float32, AdamW; peak of the process',
        details={'detection_only_ms': round(detection, 1),
                 'with_cp_of_backbone_and_map_head_ms': round(lean, 1),
                 'with_cp_of_backbone_and_map_head_peak_mb': round(lean_peak, 1)})


def training_step_bf16() -> Measurement:
    """The same under autocast to bfloat16, as with `--amp`."""
    ours, _ = _training_ms(with_map=True, half=True)
    return Measurement(
        ours_ms=ours, peak_mb=process_peak_mb(),
        conditions='detection and map, batch 1, autocast to bfloat16, AdamW in float32; peak of '
                   'the process')


def _training_ms(*, with_map: bool, half: bool = False,
                 with_cp: bool = False) -> Tuple[float, float]:
    """Milliseconds of a step, and its operations."""
    model = build_model(with_map=with_map).train()
    for part in model.modules():
        if hasattr(part, 'with_cp'):
            part.with_cp = with_cp
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    data = model.data_preprocessor(batch(), True)

    def step() -> None:
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss = model.parse_losses(model._run_forward(data, mode='loss'))[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ours = milliseconds(step, repeats=3, warm_up=2)
    return ours, operations_of(step)


def bf16_forward() -> Measurement:
    """The forward of both heads under autocast to bfloat16, and what it costs in accuracy."""
    model = build_model(with_map=True)
    predict = _prediction(model, batch())

    def half() -> List[Any]:
        with torch.autocast('cpu', torch.bfloat16):
            return predict()

    full_ms = milliseconds(predict, repeats=3)
    full = _outputs(predict()[0])
    ours = milliseconds(half, repeats=5)
    low = _outputs(half()[0])
    cost = {'map_probability_mean_difference': float((full[0] - low[0]).abs().mean()),
            'map_decisions_that_differ': float(((full[0] > 0.5) != (low[0] > 0.5)).float().mean()),
            'best_scores_mean_difference': float((full[1] - low[1]).abs().mean())}
    return Measurement(
        ours_ms=ours, reference_ms=full_ms, peak_mb=process_peak_mb(),
        conditions='both heads, batch 1, untrained weights; the reference is our own float32',
        details={name: float(f'{value:.3g}') for name, value in cost.items()})


def _outputs(sample: Any) -> Any:
    scores = sample.pred_instances_3d.scores_3d.float().sort(descending=True).values[:50]
    return sample.pred_bev_map.probs.float().clone(), scores.clone()
