"""The camera-only view transform, with the original's names, on the real frame's geometry."""
import numpy as np
import pytest
import torch
from torch import nn

from bevfusion_enhanced.models.calibration import Calibration

pytestmark = pytest.mark.needs_shared

PREFIX = 'encoders.camera.vtransform.'


class Model(nn.Module):
    """A model of nothing but a view transform, so that its names are a whole model's."""

    def __init__(self, vtransform):
        super().__init__()
        self.encoders = nn.ModuleDict({'camera': nn.ModuleDict({'vtransform': vtransform})})


def test_lss_transform(small_config, build, filled, load, golden, parity, relative):
    expected = golden('lss_transform_golden')
    config = dict(small_config.model.encoders.camera.vtransform, type='LSSTransform')
    transform = build(config)
    weights = filled({PREFIX + k: v.shape for k, v in transform.state_dict().items()})
    for name in ('dx', 'bx', 'nx'):
        weights[PREFIX + name] = torch.from_numpy(expected[name])
    translation = load(Model(transform), weights, small_config, origin='mit')
    assert not translation.meaning  # dx, bx and nx are those of the config

    x = np.random.default_rng(11).standard_normal((1, 6, 256, 8, 22)).astype(np.float32)
    frame = np.load(parity / 'real_frame_small.npz')
    calibration = Calibration(**{
        name: torch.from_numpy(frame[name])[None] for name in
        ('cam2img', 'cam2lidar', 'lidar2img', 'img_aug_matrix', 'lidar_aug_matrix')})
    with torch.no_grad():
        out = transform.eval()(torch.from_numpy(x), None, calibration)
    assert relative(out, expected['out']) < 1e-4
