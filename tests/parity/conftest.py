"""Weights under the references' names, and models of ours that translate and load them."""
import importlib.util
import json
from pathlib import Path
from typing import Any, Callable, Dict, Mapping

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import bevfusion_enhanced  # noqa: F401, importing registers
from bevfusion_enhanced.checkpoints.geometry import geometry_of
from bevfusion_enhanced.checkpoints.naming import Translation, translate
from bevfusion_enhanced.checkpoints.state_dict import StateDict


@pytest.fixture(scope='session')
def parity(shared: Path) -> Path:
    return shared / 'parity'


@pytest.fixture(scope='session')
def key_list(parity: Path) -> Callable[[str], Dict[str, list]]:
    """{name: shape} of a reference's state dict."""
    return lambda name: json.loads((parity / f'{name}_keys.json').read_text())


@pytest.fixture(scope='session')
def filled(parity: Path) -> Callable[[Mapping[str, Any]], StateDict]:
    """Weights of these names and shapes, the same on every machine."""
    spec = importlib.util.spec_from_file_location('parity_fill', parity / 'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda shapes: {k: torch.as_tensor(v) for k, v in module.fill(shapes).items()}


@pytest.fixture(scope='session')
def golden(parity: Path) -> Callable[[str], Mapping[str, np.ndarray]]:
    return lambda name: np.load(parity / f'{name}.npz')


@pytest.fixture(scope='session')
def full_config(repo: Path) -> Callable[..., Config]:
    """The full-size model's config, with these heads."""

    def load(*heads: str) -> Config:
        config = Config.fromfile(repo / 'configs' / 'phase1_baseline.py')
        config.model.heads = {name: config.model.heads[name] for name in heads}
        config.model.loss_scale = {name: 1.0 for name in heads}
        return config

    return load


@pytest.fixture(scope='session')
def small_config(full_config: Callable[..., Config]) -> Config:
    """The full-size config cut down to the sizes of the golden outputs."""
    config = full_config('object')
    camera, lidar = config.model.encoders.camera, config.model.encoders.lidar
    camera.backbone.update(embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
    camera.neck.in_channels = [48, 96, 192]
    camera.vtransform.update(image_size=[64, 176], feature_size=[8, 22],
                             xbound=[-57.6, 57.6, 1.2], ybound=[-57.6, 57.6, 1.2])
    limits, voxel, grid = [-57.6, -57.6, -5.0, 57.6, 57.6, 3.0], [0.3, 0.3, 0.2], [384, 384, 41]
    lidar.voxelize.update(point_cloud_range=limits, voxel_size=voxel)
    lidar.backbone.sparse_shape = grid
    head = config.model.heads.object
    head.train_cfg.update(point_cloud_range=limits, grid_size=grid, voxel_size=voxel)
    head.test_cfg.update(pc_range=limits[:2], grid_size=grid, voxel_size=voxel[:2])
    head.bbox_coder.update(pc_range=limits[:2], voxel_size=voxel[:2])
    return config


@pytest.fixture(scope='session')
def build() -> Callable[[Any], nn.Module]:
    """Build a model of a config's `model`, in evaluation mode."""

    def from_config(model: Mapping[str, Any]) -> nn.Module:
        init_default_scope('mmdet3d')  # as a runner does
        return MODELS.build(model).eval()

    return from_config


@pytest.fixture(scope='session')
def load() -> Callable[..., Translation]:
    """Translate a reference's weights for a model and load them, with nothing left over."""

    def into(model: nn.Module, weights: Mapping[str, Tensor], config: Mapping[str, Any], *,
             origin: str) -> Translation:
        translation = translate({'state_dict': weights}, model=model.state_dict(),
                                geometry=geometry_of(config))
        assert translation.origin.name == origin
        model.load_state_dict(translation.weights, strict=True)
        return translation

    return into


@pytest.fixture(scope='session')
def relative() -> Callable[[Any, Any], float]:
    """Norm of the difference over norm of what is expected."""

    def error(actual: Any, expected: Any) -> float:
        actual = actual.detach().numpy() if torch.is_tensor(actual) else np.asarray(actual)
        assert actual.shape == np.shape(expected)
        return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))

    return error
