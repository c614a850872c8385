"""The model on a GPU that is pretended (`tests/pretended_gpu.py`), against the model on the CPU.

Where the device decides how something is computed, a GPU's way is taken; its own kernels are left
out: Triton's have tests in Triton's interpreter, and spconv's encoder runs on the CPU here.
"""
import copy
import statistics
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, METRICS, MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from pretended_gpu import OnGPU, module_to_gpu, pretended_gpu, to_gpu
from torch import Tensor, nn
from torch.testing import assert_close

from bevfusion_enhanced.models.test_time_augmentation import METHODS, BEVFusionTTAModel
from bevfusion_enhanced.ops import bev_pool

CONFIG = 'configs/mini/phase4a_task_gca.py'


@pytest.fixture(scope='module')
def config(repo) -> Config:
    init_default_scope('mmdet3d')
    return Config.fromfile(repo / CONFIG)


@pytest.fixture(scope='module')
def batch(config, mini_nuscenes) -> Dict[str, Any]:
    """Two samples as a data loader gives them."""
    np.random.seed(0)
    torch.manual_seed(0)
    steps = copy.deepcopy(config.train_pipeline)
    for step in steps:
        if step['type'] == 'ImageAug3D':
            step.update(resize_lim=[1.1, 1.1])  # the simulated images are 160 x 90
        if step['type'] == 'LoadBEVMapMasks':
            step.update(data_root=str(mini_nuscenes))
    dataset = DATASETS.build(dict(config.train_dataloader.dataset, pipeline=steps, indices=2,
                                  data_root=f'{mini_nuscenes}/'))
    return pseudo_collate([dataset[0], dataset[1]])


class Landscape(nn.Module):
    """Adds heights to an untrained heatmap: rounding does not decide which peaks are highest."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer('heights', torch.randn(1, *shape))

    def forward(self, heatmap: Tensor) -> Tensor:
        return heatmap + self.heights


def build(config: ConfigDict) -> nn.Module:
    """In evaluation mode, which draws nothing, with ten proposals that are told apart."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config['heads']['object']['num_proposals'] = 10
    model = MODELS.build(config).eval()
    head = model.heads['object']
    head.heatmap_head = nn.Sequential(head.heatmap_head, Landscape(10, 64, 64))
    return model


def on_gpu(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A copy there, but for spconv's encoder."""
    moved = copy.deepcopy(model)
    encoder = model.encoders['lidar'].backbone
    module_to_gpu(moved)
    monkeypatch.setattr(moved.encoders['lidar'].backbone, 'forward',
                        lambda features, coords, batch_size: OnGPU(
                            encoder(features.cpu(), coords.cpu(), batch_size)))
    monkeypatch.setattr(bev_pool, '_kernels', lambda tensor: None)
    return moved


def prepared(model: nn.Module,
             batch: Dict[str, Any]) -> Tuple[Dict[str, Any], List[Det3DDataSample]]:
    ready = model.data_preprocessor(copy.deepcopy(batch), False)
    return dict(ready['inputs']), ready['data_samples']


def samples_to_gpu(samples: List[Det3DDataSample]) -> List[Det3DDataSample]:
    for sample in samples:
        truth = sample.gt_instances_3d
        truth.bboxes_3d.tensor = OnGPU(truth.bboxes_3d.tensor)
        truth.labels_3d = OnGPU(truth.labels_3d)
        sample.gt_bev_map.masks = OnGPU(sample.gt_bev_map.masks)
    return samples


def test_predictions_are_those_of_the_cpu(config, batch, monkeypatch):
    model = build(config.model)
    moved = on_gpu(model, monkeypatch)
    inputs, samples = prepared(model, batch)
    with torch.no_grad():
        expected = model(inputs, copy.deepcopy(samples), mode='predict')
        with pretended_gpu(monkeypatch):
            found = moved(to_gpu(inputs), samples_to_gpu(samples), mode='predict')
    for mine, theirs in zip(found, expected, strict=True):
        boxes, wanted = mine.pred_instances_3d, theirs.pred_instances_3d
        assert boxes.scores_3d.is_cuda and mine.pred_bev_map.probs.is_cuda and len(wanted) == 10
        assert_close(boxes.scores_3d.cpu(), wanted.scores_3d, rtol=1e-3, atol=1e-5)
        assert torch.equal(boxes.labels_3d.cpu(), wanted.labels_3d)
        assert_close(boxes.bboxes_3d.tensor.cpu(), wanted.bboxes_3d.tensor, rtol=1e-3, atol=1e-3)
        assert_close(mine.pred_bev_map.probs.cpu(), theirs.pred_bev_map.probs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('balance', [
    None, dict(type='UncertaintyWeighting'),
    dict(type='GradNorm'), dict(type='PCGrad')], ids=str)
def test_losses_and_gradients_are_those_of_the_cpu(balance, config, batch, monkeypatch):
    model = build(dict(config.model, task_balance=balance))
    moved = on_gpu(model, monkeypatch)
    inputs, samples = prepared(model, batch)
    torch.manual_seed(0)
    expected = model(inputs, copy.deepcopy(samples), mode='loss')
    total(expected).backward()
    with pretended_gpu(monkeypatch):
        torch.manual_seed(0)
        found = moved(to_gpu(inputs), samples_to_gpu(samples), mode='loss')
        total(found).backward()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-5, msg=name)
    errors = []
    for (name, mine), theirs in zip(moved.named_parameters(), model.parameters()):
        if theirs.grad is not None and not name.startswith('encoders.lidar'):
            error, norm = (mine.grad.cpu() - theirs.grad).norm(), theirs.grad.norm()
            # sums rounded otherwise can put a box on the other side of the L1 loss's kink
            assert error <= 0.05 * norm + 1e-6, name
            errors.append(float(error / norm.clamp(min=1e-6)))
    assert len(errors) > 200 and statistics.median(errors) < 0.01


@pytest.fixture(scope='module')
def predicted(config, batch) -> List[Det3DDataSample]:
    """What the model says of both samples, on the CPU."""
    model = build(config.model)
    inputs, samples = prepared(model, batch)
    with torch.no_grad():
        return model(inputs, samples, mode='predict')


def predictions_to_gpu(samples: List[Det3DDataSample]) -> List[Det3DDataSample]:
    samples = samples_to_gpu(copy.deepcopy(samples))
    for sample in samples:
        boxes = sample.pred_instances_3d
        boxes.bboxes_3d.tensor = OnGPU(boxes.bboxes_3d.tensor)
        boxes.scores_3d, boxes.labels_3d = OnGPU(boxes.scores_3d), OnGPU(boxes.labels_3d)
        sample.pred_bev_map.probs = OnGPU(sample.pred_bev_map.probs)
    return samples


def test_metrics_keep_what_they_keep_on_the_cpu(config, predicted, mini_nuscenes, monkeypatch):
    boxes, maps = config.val_evaluator
    boxes = dict(boxes, data_root=str(mini_nuscenes), ann_file='nuscenes_infos_val.pkl')
    for settings in (boxes, maps):
        on_cpu, metric = METRICS.build(settings), METRICS.build(settings)
        on_cpu.process({}, [sample.to_dict() for sample in predicted])
        with pretended_gpu(monkeypatch):
            metric.process({}, [sample.to_dict() for sample in predictions_to_gpu(predicted)])
        assert len(metric.results) == 2
        for mine, theirs in zip(metric.results, on_cpu.results, strict=True):
            np.testing.assert_equal(mine, theirs)


@pytest.mark.parametrize('method', METHODS)
def test_views_merge_as_on_the_cpu(method, config, predicted, monkeypatch):
    """Two samples as two views of one scene."""
    merger = BEVFusionTTAModel(module=build(config.model), box_merge=method,
                               map_scope=[[-30.0, 30.0, 0.75]] * 2)
    expected, = merger.merge_preds([predicted])
    with pretended_gpu(monkeypatch):
        found, = merger.merge_preds([predictions_to_gpu(predicted)])
    boxes, wanted = found.pred_instances_3d, expected.pred_instances_3d
    assert boxes.scores_3d.is_cuda and found.pred_bev_map.probs.is_cuda
    assert_close(boxes.scores_3d.cpu(), wanted.scores_3d)
    assert_close(boxes.bboxes_3d.tensor.cpu(), wanted.bboxes_3d.tensor)
    assert torch.equal(boxes.labels_3d.cpu(), wanted.labels_3d)
    assert_close(found.pred_bev_map.probs.cpu(), expected.pred_bev_map.probs)


def total(losses: Dict[str, Tensor]) -> Tensor:
    return sum(value for name, value in losses.items() if name.startswith('loss'))


def test_a_tensor_left_on_the_cpu_is_found(config, batch, monkeypatch):
    """The pretence refuses what a GPU refuses."""
    model = build(config.model)
    moved = on_gpu(model, monkeypatch)
    gate = moved.task_gca['object']
    name, value = next(gate.named_parameters())
    layer, _, own_name = name.rpartition('.')
    gate.get_submodule(layer)._parameters[own_name] = nn.Parameter(value.data.cpu())
    inputs, samples = prepared(model, batch)
    with pretended_gpu(monkeypatch), torch.no_grad():
        with pytest.raises(RuntimeError, match='expected all tensors to be on the same device'):
            moved(to_gpu(inputs), samples_to_gpu(samples), mode='predict')
