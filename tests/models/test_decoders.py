"""Decoders of the BEV map: the camera-only one, one for each task, and sensors lost in testing."""
import pytest
import torch
from test_bevfusion import batch, build, inputs_of, only, tiny_config  # noqa: F401, a fixture
from torch.testing import assert_close

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models import LSSFPN, GeneralizedResNet


def camera_decoder():
    """Of the published camera-only segmentation model, at an eighth of its channels."""
    backbone = GeneralizedResNet(in_channels=10, blocks=[(2, 20, 2), (2, 40, 2), (2, 80, 1)])
    neck = LSSFPN(in_indices=(-1, 0), in_channels=(80, 20), out_channels=32, scale_factor=2)
    return torch.nn.ModuleDict(dict(backbone=backbone, neck=neck))


def test_the_camera_decoder_keeps_the_maps_size():
    decoder = camera_decoder()
    levels = decoder['backbone'](torch.randn(2, 10, 32, 24))
    assert [tuple(level.shape[1:]) for level in levels] == [(20, 16, 12), (40, 8, 6), (80, 8, 6)]
    output, = decoder['neck'](levels)
    assert output.shape == (2, 32, 32, 24)


def test_the_camera_decoder_has_the_names_of_published_checkpoints():
    shapes = {key: tuple(value.shape) for key, value in camera_decoder().state_dict().items()}
    assert shapes['backbone.0.0.conv1.weight'] == (20, 10, 3, 3)
    assert shapes['backbone.0.0.downsample.0.weight'] == (20, 10, 1, 1)
    assert shapes['backbone.0.0.downsample.1.running_mean'] == (20,)
    assert shapes['backbone.2.1.bn2.bias'] == (80,)
    assert shapes['neck.fuse.0.weight'] == (32, 100, 1, 1)
    assert shapes['neck.fuse.3.weight'] == (32, 32, 3, 3)
    assert shapes['neck.upsample.1.weight'] == (32, 32, 3, 3)
    parts = {key.rsplit('.', 1)[0] for key in shapes}
    convs = {f'backbone.{i}.{j}.{kind}{k}' for i in range(3) for j in range(2)
             for kind in ('conv', 'bn') for k in (1, 2)}
    assert parts == convs | {f'backbone.{i}.0.downsample.{k}' for i in range(3) for k in range(2)
                             } | {f'neck.fuse.{i}' for i in (0, 1, 3, 4)} | {
        'neck.upsample.1', 'neck.upsample.2'}


@pytest.mark.parametrize('make, message', [
    (lambda: GeneralizedResNet(in_channels=8, blocks=[]), 'each stage'),
    (lambda: GeneralizedResNet(in_channels=8, blocks=[(2, 8)]), 'blocks, channels, stride'),
    (lambda: LSSFPN(in_indices=(0,), in_channels=(8, 8), out_channels=8), 'two levels'),
    (lambda: LSSFPN(in_indices=(1, 0), in_channels=(8, 8), out_channels=8)(
        [torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 2, 2)]), 'the backbone gives'),
])
def test_bad_arguments(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_decoder_for_each_task_begins_equal_and_learns_apart(batch):  # noqa: F811
    gates = dict(mode='task_specific', in_channels=16)
    shared = build(tiny_config(task_gca=gates)).eval()
    model = build(tiny_config(task_gca=gates, decoder_per_task=True)).eval()
    assert not [key for key in model.state_dict() if key.startswith('decoder.')]
    copied = {key: shared.state_dict()[key.replace(f'task_decoders.{key.split(".")[1]}', 'decoder')]
              for key in model.state_dict() if key.startswith('task_decoders.')}
    model.load_state_dict({**shared.state_dict(), **copied}, strict=False)
    inputs, samples = inputs_of(shared, batch)
    with torch.no_grad():
        one, several = (m.task_maps(m.extract_feat(inputs, samples)) for m in (shared, model))
        assert model(inputs, samples, mode='tensor').shape == (2, 16, 12, 12)
    for task in ('object', 'map'):
        assert_close(several[task], one[task])

    losses = model.loss(inputs, samples)
    losses['loss/map/square'].backward()
    touched = {name.split('.')[1] for name, p in model.named_parameters()
               if name.startswith('task_decoders') and p.grad is not None}
    assert touched == {'map'}
    assert model.fuser[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize('balance', ['GradNorm', 'PCGrad', 'UncertaintyWeighting'])
def test_tasks_with_own_decoders_can_be_balanced(batch, balance):  # noqa: F811
    model = build(tiny_config(decoder_per_task=True, task_balance=dict(type=balance))).train()
    losses = model.loss(*inputs_of(model, batch))
    model.parse_losses(losses)[0].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without


def test_a_shared_gate_needs_a_shared_decoder():
    with pytest.raises(ConfigError, match='task_gca.mode shared .* decoder_per_task'):
        build(tiny_config(decoder_per_task=True, task_gca=dict(mode='shared', in_channels=16)))


@pytest.mark.parametrize('lost, key', [('camera', 'img'), ('lidar', 'points')])
def test_a_sensor_that_is_lost_in_testing_is_not_looked_at(batch, lost, key):  # noqa: F811
    model, whole = (build(tiny_config(**change))
                    for change in (dict(drop_at_test=[lost]), dict()))
    whole.load_state_dict(model.state_dict())
    inputs, samples = inputs_of(model, batch)
    changed = dict(inputs, **({'imgs': inputs['imgs'] + 1} if key == 'img' else
                              {'points': [cloud * 0.9 for cloud in inputs['points']]}))
    with torch.no_grad():
        model.eval(), whole.eval()
        first = model(inputs, samples, mode='tensor')
        assert torch.equal(first, model(changed, samples, mode='tensor'))
        assert not torch.allclose(first, whole(inputs, samples, mode='tensor'))
        model.train(), whole.train()
        assert torch.equal(model(inputs, samples, mode='tensor'),
                           whole(inputs, samples, mode='tensor'))


@pytest.mark.parametrize('encoders, lost', [
    (('camera', 'lidar'), ['radar']), (('camera', 'lidar'), ['camera', 'lidar']),
    (('camera',), ['camera']), (('camera',), ['lidar'])])
def test_a_sensor_has_to_be_left(encoders, lost):
    with pytest.raises(ConfigError, match='drop_at_test.* must leave'):
        build(only(*encoders, drop_at_test=lost))
