from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.camera.geometry import frustum_cells
from bevfusion_enhanced.models.camera.view_transform import DepthLSSTransform, LSSTransform

BOUND = [-9.6, 9.6, 0.4]
TRANSFORMS = [LSSTransform, DepthLSSTransform]
GEOMETRY = {'dx', 'bx', 'nx', 'frustum'}


def build(kind, **changes):
    torch.manual_seed(0)
    arguments = dict(in_channels=12, out_channels=5, image_size=[64, 176], feature_size=[8, 22],
                     xbound=BOUND, ybound=BOUND, zbound=[-10., 10., 20.], dbound=[1., 15., 0.5],
                     downsample=2)
    return kind(**{**arguments, **changes})


def features(batch=2, cameras=2, channels=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, cameras, channels, 8, 22, generator=generator)


def clouds(batch=2):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(200 + 50 * b, 5, generator=generator) * 5 for b in range(batch)]


@pytest.mark.parametrize('kind', TRANSFORMS)
@pytest.mark.parametrize('downsample, size', [(1, 48), (2, 24), (4, 12)])
def test_shape(kind, downsample, size, rig):
    transform = build(kind, downsample=downsample)
    out = transform(features(), clouds(), rig(batch=2))
    assert out.shape == (2, 5, size, size)


@pytest.mark.parametrize('kind', TRANSFORMS)
def test_equals_the_materialised_frustum(kind, rig):
    """Every pixel's context times every bin's probability, added to the bin's cell."""
    transform, calibration = build(kind, downsample=1), rig(batch=2)
    x = torch.randn(4, transform.num_bins + 5, 8, 22)
    depth, context = x[:, :transform.num_bins].softmax(1), x[:, transform.num_bins:]
    product = depth[:, None] * context[:, :, None]                             # (BN, C, D, h, w)
    cells = frustum_cells(transform.frustum, transform.grid, calibration).flatten()
    product = product.permute(0, 3, 4, 2, 1).reshape(-1, 5)
    expected = torch.zeros(2 * 48 * 48, 5).index_add(0, cells[cells >= 0].long(),
                                                     product[cells >= 0])
    expected = expected.view(2, 48, 48, 5).permute(0, 3, 1, 2)
    assert_close(transform.lift_splat(x, calibration), expected)


def test_layers_along_z_become_channels(rig):
    one = build(LSSTransform, downsample=1)
    four = build(LSSTransform, downsample=1, zbound=[-10., 10., 5.])
    four.load_state_dict(one.state_dict())
    by_layer = four(features(), None, rig(batch=2))
    assert by_layer.shape == (2, 20, 48, 48)
    inside = by_layer.unflatten(1, (4, 5)).sum(1)  # the lowest layer reaches one step further down
    assert_close(inside, one(features(), None, rig(batch=2)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('kind', TRANSFORMS)
def test_geometry_follows_the_config_and_is_not_saved(kind):
    transform = build(kind)
    assert GEOMETRY <= {name for name, _ in transform.named_buffers()}
    assert not any(key.split('.')[0] in GEOMETRY for key in transform.state_dict())
    assert transform.frustum.shape == (28, 8, 22, 3)


@pytest.mark.parametrize('kind', TRANSFORMS)
def test_inputs_are_not_modified(kind, rig):
    x, points = features(), clouds()
    kept = x.clone(), [p.clone() for p in points]
    aug = torch.eye(4).repeat(2, 1, 1)
    aug[:, :3, 3] = 0.7
    build(kind)(x, points, replace(rig(batch=2), lidar_aug_matrix=aug))
    assert torch.equal(x, kept[0])
    assert all(torch.equal(a, b) for a, b in zip(points, kept[1], strict=True))


@pytest.mark.parametrize('kind', TRANSFORMS)
def test_every_weight_gets_a_gradient_and_runs_repeat(kind, rig):
    transform = build(kind)
    x = features().requires_grad_()

    def run():
        transform.zero_grad()
        out = transform(x, clouds(), rig(batch=2))
        out.square().mean().backward()
        return [out.detach()] + [p.grad.clone() for p in transform.parameters()]

    transform.eval()
    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.isfinite(g).all() for g in first)
    assert sum(bool(g.any()) for g in first[1:]) >= len(first) - 2


def test_plan_is_kept_for_the_same_rig_only(rig):
    transform = build(LSSTransform)
    calibration = rig(batch=2)
    plan = transform.pooling_plan(calibration)
    assert transform.pooling_plan(rig(batch=2)) is plan
    moved = calibration.cam2lidar.clone()
    moved[..., 0, 3] += 2.0
    other = transform.pooling_plan(replace(calibration, cam2lidar=moved))
    assert other is not plan
    assert_close(transform.pooling_plan(calibration).cell_offsets, plan.cell_offsets)


def test_lidar_points_matter_only_where_they_are_asked_for(rig):
    camera_only = build(LSSTransform).eval()
    assert torch.equal(camera_only(features(), clouds(), rig(batch=2)),
                       camera_only(features(), None, rig(batch=2)))
    with_depth = build(DepthLSSTransform).eval()
    empty = [torch.zeros(0, 5)] * 2
    assert not torch.equal(with_depth(features(), clouds(), rig(batch=2)),
                           with_depth(features(), empty, rig(batch=2)))
    with pytest.raises(DataError, match='use LSSTransform'):
        with_depth(features(), None, rig(batch=2))


def test_autocast_stays_close(rig):
    transform = build(DepthLSSTransform, downsample=1).eval()
    inputs = features(), clouds(), rig(batch=2)
    exact = transform(*inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        close = transform(*inputs)
    assert close.dtype == torch.float32  # the sums over pixels, whatever the convolutions do
    assert (close - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize('changes, message', [
    (dict(feature_size=[16, 44]), 'features at 1/8'),
    (dict(xbound=[-9.6, 9.6, 0.5]), 'xbound'),
    (dict(dbound=[1., 15., 0.4]), None),
    (dict(dbound=[1., 15., 0.3]), 'dbound'),
    (dict(zbound=[-10., 10., 5.]), 'downsample'),
    (dict(downsample=0), 'downsample'),
])
def test_bad_arguments(changes, message):
    if message is None:
        build(DepthLSSTransform, **changes)
        return
    with pytest.raises(ConfigError, match=message):
        build(DepthLSSTransform, **changes)


def test_features_of_another_size(rig):
    with pytest.raises(ConfigError, match=r'\(4, 11\), but feature_size is \(8, 22\)'):
        build(LSSTransform)(features()[..., :4, :11], None, rig(batch=2))
