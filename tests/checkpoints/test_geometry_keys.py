"""Geometry among weights: read back as what a config says, compared, and made again."""
import pytest
import torch
from mmdet.models.backbones.swin import WindowMSA

from bevfusion_enhanced.checkpoints.geometry import config_keys
from bevfusion_enhanced.checkpoints.geometry_keys import (
    add_geometry,
    compare_geometry,
    position_index,
    split_geometry,
    stored_geometry,
)
from bevfusion_enhanced.models.camera.view_transform import LSSTransform

PREFIX = 'encoders.camera.vtransform.'
TABLE = 'encoders.camera.backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table'
CONFIG = dict(image_size=[256, 704], feature_size=[32, 88], xbound=[-54.0, 54.0, 0.3],
              ybound=[-51.2, 51.2, 0.4], zbound=[-10.0, 10.0, 20.0], dbound=[1.0, 60.0, 0.5])


def stored(config=None, *, window=7):
    """Geometry as a reference with this config keeps it."""
    weights = {PREFIX + 'depthnet.weight': torch.zeros(1),
               TABLE: torch.zeros((2 * window - 1) ** 2, 3)}
    return split_geometry(add_geometry(weights, config or CONFIG)).geometry


@pytest.mark.parametrize('config', [
    CONFIG, dict(CONFIG, dbound=[1.0, 60.0, 1.0], image_size=[448, 800], feature_size=[56, 100]),
    dict(CONFIG, xbound=[0.0, 70.4, 0.8], zbound=[-5.0, 3.0, 1.0])])
def test_is_what_the_view_transform_computes_and_reads_back_as_the_config(config):
    transform = LSSTransform(in_channels=4, out_channels=2, downsample=1, **config)
    tensors = stored(config)
    for name in ('dx', 'bx', 'nx', 'frustum'):
        expected = getattr(transform, name)
        assert torch.equal(tensors[PREFIX + name], expected)
        assert tensors[PREFIX + name].dtype == expected.dtype
    assert stored_geometry(tensors) == {**config, 'window_size': 7}


@pytest.mark.parametrize('window', [1, 2, 7, 12])
def test_position_index(window):
    attention = WindowMSA(embed_dims=4, num_heads=1, window_size=(window, window))
    assert torch.equal(position_index(window), attention.relative_position_index)


def test_the_same_geometry_is_no_change():
    assert compare_geometry(stored(), {**CONFIG, 'window_size': 7}) == ()
    assert compare_geometry(stored(), {}) == ()  # a config without a camera says nothing


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_the_same_in_other_precision_is_no_change(dtype):
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in stored().items()}
    assert compare_geometry(tensors, {**CONFIG, 'window_size': 7}) == ()


@pytest.mark.parametrize('name, value', [
    ('xbound', [-54.0, 54.0, 0.6]), ('ybound', [-51.2, 51.6, 0.4]), ('zbound', [-10.0, 10.0, 10.0]),
    ('dbound', [1.0, 61.0, 0.5]), ('dbound', [2.0, 61.0, 0.5]), ('image_size', [384, 704]),
    ('image_size', [256, 1056]), ('feature_size', [16, 44]), ('window_size', 12)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_each_difference_is_named(name, value, dtype):
    geometry = {**CONFIG, 'window_size': 7}
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in stored().items()}
    change, = compare_geometry(tensors, {**geometry, name: value})
    assert change.kind == 'meaning' and change.key == config_keys[name] and change.new == value
    assert change.old == pytest.approx(geometry[name], abs=0.1) and change.consequence


def test_another_order_of_places_in_a_window():
    tensors = stored()
    name = TABLE.replace('bias_table', 'index')
    tensors[name] = tensors[name].flip(0)
    change, = compare_geometry(tensors, {**CONFIG, 'window_size': 7})
    assert change.key == name and 'bias table' in change.consequence


def test_what_only_looks_like_geometry_stays_a_weight():
    weights = {'heads.map.dx': torch.zeros(3), PREFIX + 'depthnet.weight': torch.zeros(1),
               PREFIX + 'nx': 'no tensor'}
    split = split_geometry(weights)
    assert split.weights == weights and not split.geometry
