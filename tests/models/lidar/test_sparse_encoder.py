import copy
import io
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from spconv.pytorch import SparseConvTensor
from torch.testing import assert_close

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.lidar.sparse_encoder import (
    BEVFusionSparseEncoder,
    SparseBasicBlock,
    StridedConv,
)

SHAPE = (16, 24, 41)


def build(seed=0, **changes):
    """A narrow encoder whose norms are not the identity."""
    torch.manual_seed(seed)
    arguments = dict(
        in_channels=5, sparse_shape=SHAPE, base_channels=4, output_channels=6,
        encoder_channels=((4, 4, 6), (6, 6, 6), (6, 6, 8), (8, 8)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)))
    encoder = BEVFusionSparseEncoder(**{**arguments, **changes})
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return encoder.eval()


def voxels(batch=2, count=300, seed=1):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(batch * SHAPE[0] * SHAPE[1] * SHAPE[2], generator=generator)[:count]
    coords = torch.stack(torch.unravel_index(cells.sort().values, (batch, *SHAPE)), dim=1).int()
    return torch.randn(count, 5, generator=generator), coords.contiguous()


def dense_forward(encoder, x):
    """The same layers on a dense grid (B, C, X, Y, Z) in which every voxel exists."""

    def conv(layer, x, **kwargs):
        return F.conv3d(x, layer.weight.permute(0, 4, 1, 2, 3), **kwargs)

    def norm(layer, x):
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias,
                            eps=layer.eps)

    x = norm(encoder.conv_input[1], conv(encoder.conv_input[0], x, padding=1)).relu()
    for stage in encoder.encoder_layers:
        for block in stage:
            if hasattr(block, 'conv1'):
                out = norm(block.bn1, conv(block.conv1, x, padding=1)).relu()
                x = (norm(block.bn2, conv(block.conv2, out, padding=1)) + x).relu()
            else:
                out = conv(block[0], x, stride=2, padding=tuple(block[0].padding))
                x = norm(block[1], out).relu()
    x = norm(encoder.conv_out[1], conv(encoder.conv_out[0], x, stride=(1, 1, 2))).relu()
    return x.permute(0, 1, 4, 2, 3).flatten(1, 2)                                # (B, C * Z, X, Y)


@torch.no_grad()
def test_full_grid_equals_dense_convolutions():
    """Pins the axes, the weights' layout, the shortcuts and the folding of z at once."""
    encoder = build()
    everywhere = torch.ones(1, *SHAPE).nonzero().int().contiguous()
    features = torch.randn(len(everywhere), 5, generator=torch.Generator().manual_seed(2))
    expected = dense_forward(encoder, features.view(1, *SHAPE, 5).permute(0, 4, 1, 2, 3))
    assert_close(encoder(features, everywhere, 1), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_strided_convolution_of_scattered_voxels():
    """A sparse convolution is the dense one, read where any voxel reaches."""
    conv = StridedConv(in_channels=5, out_channels=3, kernel_size=3, stride=2, padding=(1, 1, 0))
    features, coords = voxels(batch=1, count=100)
    dense = torch.zeros(1, 5, *SHAPE)
    dense[0, :, coords[:, 1].long(), coords[:, 2].long(), coords[:, 3].long()] = features.T
    expected = F.conv3d(dense, conv.weight.permute(0, 4, 1, 2, 3), stride=2, padding=(1, 1, 0))
    out = conv(SparseConvTensor(features, coords, SHAPE, 1)).dense()
    assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_output_shape_of_the_full_model():
    encoder = MODELS.build(dict(
        type='BEVFusionSparseEncoder', in_channels=5, sparse_shape=[1440, 1440, 41],
        order=('conv', 'norm', 'act'), norm_cfg=dict(type='BN1d', eps=0.001, momentum=0.01),
        encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
        block_type='basicblock'))
    assert encoder.output_shape() == (256, 180, 180)


@torch.no_grad()
def test_a_stride_along_z_alone_makes_the_map_twice_as_fine_with_the_same_weights():
    coarse, fine = build(), build(strides=(2, 2, (1, 1, 2)))
    fine.load_state_dict(coarse.state_dict())
    (C, X, Y), (c, x, y) = coarse.output_shape(), fine.output_shape()
    assert (c, x, y) == (C, 2 * X, 2 * Y)
    features, coords = voxels()
    assert fine(features, coords, 2).shape == (2, c, x, y)


@torch.no_grad()
def test_samples_do_not_see_each_other():
    encoder = build()
    features, coords = voxels(batch=2)
    both = encoder(features, coords, 2)
    assert both.shape == (2, *encoder.output_shape())
    for b in range(2):
        mine = coords[:, 0] == b
        alone = coords[mine].clone()
        alone[:, 0] = 0
        assert_close(encoder(features[mine], alone, 1)[0], both[b], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_coordinates_of_any_layout_in_memory():
    encoder = build()
    features, coords = voxels()
    transposed = coords.T.contiguous().T  # the same numbers, column by column
    assert not transposed.is_contiguous()
    assert torch.equal(encoder(features, transposed, 2), encoder(features, coords.long(), 2))


@torch.no_grad()
def test_the_order_of_the_voxels_does_not_matter():
    encoder = build()
    features, coords = voxels()
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))
    assert_close(encoder(features[order], coords[order], 2), encoder(features, coords, 2))


@pytest.mark.parametrize('training', [False, True])
def test_a_sample_without_points_is_zero(training):
    encoder = build().train(training)
    features, coords = voxels(batch=1)
    out = encoder(features, coords, 3)  # the two last samples have no voxel
    assert out.shape[0] == 3
    assert out[0].any() and not out[1:].any()


def test_no_points_at_all():
    encoder = build()
    features, coords = torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int32)
    out = encoder(features, coords, 2)
    assert out.shape == (2, *encoder.output_shape()) and not out.any()
    encoder.train()
    encoder(features, coords, 2).sum().backward()  # every weight takes part, as DDP wants
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_every_weight_gets_a_gradient():
    encoder = build().train()
    features, coords = voxels()
    encoder(features, coords, 2).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in encoder.parameters())


def rounded(encoder, *, enabled=True):
    features, coords = voxels()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
        return encoder(features, coords, 2)


def test_autocast_rounds_layers_and_leaves_the_map_in_float32():
    encoder = build()
    with torch.no_grad():
        exact, half = rounded(encoder, enabled=False), rounded(encoder)
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    assert (half - exact).std() < 0.01 * exact.std()


def test_autocast_leaves_coordinates_as_they_are():
    """Of 54.03 m bfloat16 keeps 54."""
    encoder, seen = build(), []
    encoder.conv_input[0].register_forward_hook(lambda _, given, out: seen.append(out.features))
    with torch.no_grad():
        rounded(encoder)
        rounded(encoder, enabled=False)
    assert torch.equal(*seen)


def test_autocast_trains_a_block_with_gradients_like_the_exact_ones():
    features, coords = voxels(count=3000)
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        block = SparseBasicBlock(channels=5, norm_cfg=dict(type='BN1d'), indice_key='a')
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out = block(SparseConvTensor(features, coords, list(SHAPE), 2)).features
        (out * torch.randn_like(out)).mean().backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
    for exact, half in zip(*gradients, strict=True):
        assert half.dtype == torch.float32
        assert F.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.99


def through_torch(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


WAYS = dict(
    as_it_is=lambda state: state,
    plain_dict=dict,
    ordered_dict_without_metadata=lambda state: OrderedDict(state.items()),
    saved_by_torch=through_torch,
    rebuilt_and_saved_by_torch=lambda state: through_torch(dict(state)),
    saved_twice=lambda state: through_torch(through_torch(dict(state))))


@torch.no_grad()
@pytest.mark.parametrize('by_mmengine', [False, True])
@pytest.mark.parametrize('way', WAYS)
def test_weights_are_never_permuted(way, by_mmengine):
    """MMDetection3D's loading permutes sparse weights when the metadata is gone; ours never."""
    source, target = build(seed=3), build(seed=4)
    state = WAYS[way](source.state_dict())
    kept = copy.deepcopy(dict(state))
    if by_mmengine:
        load_state_dict(target, state, strict=True)
    else:
        target.load_state_dict(state)
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
        assert torch.equal(state[key], kept[key]), key
    features, coords = voxels()
    assert torch.equal(source(features, coords, 2), target(features, coords, 2))


def test_a_weight_of_another_shape_is_an_error():
    encoder = build()
    state = dict(encoder.state_dict())
    state['conv_input.0.weight'] = state['conv_input.0.weight'].permute(1, 2, 3, 4, 0)
    with pytest.raises(RuntimeError, match='conv_input.0.weight'):
        encoder.load_state_dict(state)


@pytest.mark.parametrize('changes, message', [
    (dict(block_type='conv_module'), 'basicblock'),
    (dict(order=('act', 'norm', 'conv')), 'order'),
    (dict(strides=(2, 2)), 'one for each stage but the last'),
    (dict(encoder_channels=((4, 8, 6), (6, 6, 6), (6, 6, 8), (8, 8))), 'keep their channels'),
])
def test_bad_arguments(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)
