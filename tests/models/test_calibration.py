from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.models.calibration import Calibration

NAMES = [field.name for field in fields(Calibration)]


def make_sample(index=0, cameras=6, **changes):
    rng = np.random.default_rng(index)
    meta = {name: rng.standard_normal((cameras, 4, 4)) for name in NAMES}
    meta['lidar_aug_matrix'] = rng.standard_normal((4, 4))
    meta.update(sample_idx=index, **changes)
    return Det3DDataSample(metainfo={k: v for k, v in meta.items() if v is not None})


def test_stacks_the_samples():
    samples = [make_sample(0), make_sample(1)]
    calibration = Calibration.from_samples(samples)
    assert calibration.cam2img.shape == (2, 6, 4, 4)
    assert calibration.lidar_aug_matrix.shape == (2, 4, 4)
    assert calibration.cam2lidar.dtype == torch.float32
    np.testing.assert_allclose(calibration.cam2lidar[1], samples[1].metainfo['cam2lidar'],
                               rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_a_missing_matrix_is_never_an_identity(name):
    with pytest.raises(DataError, match=f"sample 7 has no '{name}'"):
        Calibration.from_samples([make_sample(7, **{name: None})])


def test_samples_with_different_cameras_are_refused():
    with pytest.raises(DataError, match='differs in shape'):
        Calibration.from_samples([make_sample(0), make_sample(1, cameras=5)])


@pytest.mark.parametrize('name', NAMES)
def test_equals_sees_every_matrix(name):
    calibration = Calibration.from_samples([make_sample()])
    assert calibration.equals(Calibration.from_samples([make_sample()]))
    assert not calibration.equals(replace(calibration, **{name: getattr(calibration, name) + 1}))
