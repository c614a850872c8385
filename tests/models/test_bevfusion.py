import json
import logging
import re

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import nn
from torch.testing import assert_close

import bevfusion_enhanced.models.bevfusion
import bevfusion_enhanced.models.camera
import bevfusion_enhanced.models.fusers
import bevfusion_enhanced.models.lidar  # noqa: F401, as those above: importing registers
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.heads.base import TaskHead, TaskLosses


@MODELS.register_module(force=True)
class TinyMapHead(TaskHead):
    """One 1x1 convolution; its loss pulls the map to `target`."""

    def __init__(self, *, in_channels, field, target):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 1, 1)
        self.field, self.target = field, target

    def loss(self, bev, samples):
        error = (self.conv(bev) - self.target).square().mean()
        return TaskLosses(losses={'square': error, 'half/square': error / 2},
                          stats={'error': error.detach().sqrt()})

    def predict(self, bev, samples):
        return [{self.field: PixelData(probs=probs)} for probs in self.conv(bev).sigmoid()]


def decoder_config(channels=256, out=(128, 256), up=(256, 256), layers=5):
    norm = dict(type='BN', eps=0.001, momentum=0.01)
    return dict(
        backbone=dict(type='SECOND', in_channels=channels, out_channels=list(out),
                      layer_nums=[layers, layers], layer_strides=[1, 2], norm_cfg=norm,
                      conv_cfg=dict(type='Conv2d', bias=False)),
        neck=dict(type='SECONDFPN', in_channels=list(out), out_channels=list(up),
                  upsample_strides=[1, 2], norm_cfg=norm,
                  upsample_cfg=dict(type='deconv', bias=False), use_conv_for_no_stride=True))


def head_config(in_channels=512, field='pred_bev_map', target=1.0):
    return dict(type='TinyMapHead', in_channels=in_channels, field=field, target=target)


def tiny_config(**changes):
    """A model of everything that runs in milliseconds: a map of 12 x 12 cells of 1.6 m."""
    bound = [-9.6, 9.6, 0.8]
    config = dict(
        type='BEVFusion',
        data_preprocessor=dict(type='Det3DDataPreprocessor', mean=[123.7, 116.3, 103.5],
                               std=[58.4, 57.1, 57.4], bgr_to_rgb=False, pad_size_divisor=32),
        encoders=dict(
            camera=dict(
                backbone=dict(type='TimmBackbone', model_name='resnet18', out_indices=(2, 3, 4)),
                neck=dict(type='GeneralizedLSSFPN', in_channels=[128, 256, 512], out_channels=16),
                vtransform=dict(type='DepthLSSTransform', in_channels=16, out_channels=8,
                                image_size=[64, 96], feature_size=[8, 12], xbound=bound,
                                ybound=bound, zbound=[-10., 10., 20.], dbound=[1., 13., 1.],
                                downsample=2)),
            lidar=dict(
                voxelize=dict(point_cloud_range=[-9.6, -9.6, -5., 9.6, 9.6, 3.],
                              voxel_size=[0.2, 0.2, 0.2], max_num_points=5, max_voxels=2000),
                backbone=dict(type='BEVFusionSparseEncoder', in_channels=5,
                              sparse_shape=[96, 96, 41], base_channels=4, output_channels=4,
                              encoder_channels=((4, 4, 6), (6, 6, 6), (6, 6, 8), (8, 8))))),
        fuser=dict(type='ConvFuser', in_channels=[8, 8], out_channels=16),
        decoder=decoder_config(channels=16, out=(8, 8), up=(8, 8), layers=1),
        heads=dict(object=head_config(16, 'object_map', 0.0), map=head_config(16)))
    config.update(changes)
    return config


def build(config):
    init_default_scope('mmdet3d')  # as a runner does
    torch.manual_seed(0)
    return MODELS.build(config)


@pytest.fixture
def batch(rig):
    """Two samples as the data loader collates them: images of 0..255, points, metainfo."""
    calibration = rig(batch=2, image_size=(64, 96))
    generator = torch.Generator().manual_seed(3)
    samples = [Det3DDataSample(metainfo=dict(
        sample_idx=b, **{name: getattr(calibration, name)[b].numpy() for name in (
            'cam2img', 'cam2lidar', 'lidar2img', 'img_aug_matrix', 'lidar_aug_matrix')}))
        for b in range(2)]
    return dict(
        inputs=dict(img=[torch.rand(2, 3, 64, 96, generator=generator) * 255 for _ in range(2)],
                    points=[torch.randn(n, 5, generator=generator) * 3 for n in (300, 200)]),
        data_samples=samples)


def inputs_of(model, batch):
    data = model.data_preprocessor(batch)
    return data['inputs'], data['data_samples']


def test_losses_and_stats_are_named_by_task_and_scaled(batch):
    model = build(tiny_config(loss_scale=dict(map=3.0)))
    plain = build(tiny_config())
    plain.load_state_dict(model.state_dict())
    losses, unscaled = (m.loss(*inputs_of(m, batch)) for m in (model, plain))
    assert set(losses) == {
        f'loss/{task}/{name}' for task in ('object', 'map') for name in ('square', 'half/square')
    } | {'stats/object/error', 'stats/map/error'}
    assert_close(losses['loss/map/square'], 3 * unscaled['loss/map/square'])
    assert_close(losses['loss/object/square'], unscaled['loss/object/square'])
    assert_close(losses['stats/map/error'], unscaled['stats/map/error'])
    total, _ = model.parse_losses(losses)
    assert_close(total, sum(v for k, v in losses.items() if k.startswith('loss/')))


def test_predictions_are_set_on_the_samples(batch):
    model = build(tiny_config()).eval()
    with torch.no_grad():
        samples = model.test_step(batch)
    assert samples[0].pred_bev_map.probs.shape == (1, 12, 12)
    assert not torch.equal(samples[0].pred_bev_map.probs, samples[1].pred_bev_map.probs)
    assert not torch.equal(samples[0].pred_bev_map.probs, samples[0].object_map.probs)


def test_tensor_mode_is_the_shared_map(batch):
    model = build(tiny_config()).eval()
    inputs, samples = inputs_of(model, batch)
    with torch.no_grad():
        bev = model(inputs, samples, mode='tensor')
        assert bev.shape == (2, 16, 12, 12)
        assert torch.equal(bev, model(inputs, samples, mode='tensor'))


def test_training_lowers_the_loss_and_reaches_every_weight(batch):
    model = build(tiny_config(task_gca=dict(mode='task_specific', in_channels=16))).train()
    model.init_weights()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    totals = [float(model.train_step(batch, optimizer)['loss']) for _ in range(8)]
    assert totals[-1] < 0.7 * totals[0]
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_inputs_are_not_modified(batch):
    model = build(tiny_config()).eval()
    inputs, samples = inputs_of(model, batch)
    kept = inputs['imgs'].clone(), [p.clone() for p in inputs['points']]
    with torch.no_grad():
        model(inputs, samples, mode='predict')
    assert torch.equal(inputs['imgs'], kept[0])
    assert all(torch.equal(a, b) for a, b in zip(inputs['points'], kept[1], strict=True))


def test_the_config_is_not_modified():
    config = tiny_config(task_gca=dict(mode='shared', in_channels=16))
    before = json.dumps(config)
    build(config)
    assert json.dumps(config) == before


def only(*encoders, **changes):
    """The tiny model with these encoders alone."""
    config = tiny_config(**changes)
    config['encoders'] = {name: config['encoders'][name] for name in encoders}
    if len(encoders) == 1:
        del config['fuser']
        config['decoder'] = decoder_config(channels=8, out=(8, 8), up=(8, 8), layers=1)
    return config


def test_lidar_alone_ignores_images(batch):
    model = build(only('lidar')).eval()
    assert not any('camera' in key or 'fuser' in key for key in model.state_dict())
    del batch['inputs']['img']
    with torch.no_grad():
        assert model.test_step(batch)[1].pred_bev_map.probs.shape == (1, 12, 12)


def test_camera_alone_needs_neither_points_nor_fuser(batch):
    config = only('camera')
    config['encoders']['camera']['vtransform']['type'] = 'LSSTransform'
    model = build(config).eval()
    assert not any('lidar' in key or 'fuser' in key for key in model.state_dict())
    del batch['inputs']['points']
    with torch.no_grad():
        assert model.test_step(batch)[0].pred_bev_map.probs.shape == (1, 12, 12)


@pytest.mark.parametrize('task', ['object', 'map'])
def test_one_head_alone(task, batch):
    heads = {name: head if name == task else None  # as a config drops one of its base's
             for name, head in tiny_config()['heads'].items()}
    model = build(tiny_config(heads=heads))
    assert {k.split('.')[1] for k in model.state_dict() if k.startswith('heads')} == {task}
    assert {k.split('/')[1] for k in model.loss(*inputs_of(model, batch))} == {task}


def test_a_third_task_is_one_more_entry(batch):
    heads = dict(tiny_config()['heads'], occupancy=head_config(16, 'occupancy', 0.5))
    model = build(tiny_config(heads=heads)).eval()
    with torch.no_grad():
        assert 'occupancy' in model.test_step(batch)[0]


def test_an_empty_cloud_in_the_batch(batch):
    model = build(tiny_config())
    batch['inputs']['points'][1] = torch.zeros(0, 5)
    losses = model.loss(*inputs_of(model, batch))
    assert all(torch.isfinite(v) for v in losses.values())
    batch['inputs']['points'][0] = torch.zeros(0, 5)
    with torch.no_grad():
        model.eval().test_step(batch)


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(level=logging.INFO)
        self.lines = []

    def emit(self, record):
        self.lines += record.getMessage().split('\n')


@pytest.fixture
def logged():
    handler = Lines()
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def test_task_specific_gca_says_what_it_adds(logged):
    config = tiny_config(decoder=decoder_config(channels=16, out=(8, 8), layers=1),
                         heads=dict(object=head_config(), map=head_config()),
                         task_gca=dict(mode='task_specific', in_channels=512, reduction=4))
    model = build(config)
    assert logged == [
        '[BEVFusion] Task-specific GCA mode enabled',
        '  [object] GCA: in_channels 512, reduction 4, params: 131,072',
        '  [map] GCA: in_channels 512, reduction 4, params: 131,072',
        '  Total: 262,144']
    names = {k for k in model.state_dict() if k.startswith('task_gca')}
    assert names == {f'task_gca.{task}.fc.{i}.weight' for task in ('object', 'map') for i in (0, 2)}


def test_shared_gca(logged):
    model = build(tiny_config(task_gca=dict(mode='shared', in_channels=16)))
    assert logged == ['[BEVFusion] Shared GCA mode enabled',
                      '  [shared] GCA: in_channels 16, reduction 4, params: 128', '  Total: 128']
    names = {k for k in model.state_dict() if k.startswith('task_gca')}
    assert names == {'task_gca.shared.fc.0.weight', 'task_gca.shared.fc.2.weight'}
    bev = torch.randn(1, 16, 4, 4)
    maps = model.task_maps(bev)
    assert maps['object'] is maps['map'] and not torch.equal(maps['map'], bev)


@pytest.mark.parametrize('config', [None, dict(mode='none', in_channels=16)])
def test_no_gca_is_silent_and_adds_nothing(config, logged):
    model = build(tiny_config(task_gca=config))
    assert not logged and not any('gca' in key for key in model.state_dict())
    bev = torch.randn(1, 16, 4, 4)
    assert all(m is bev for m in model.task_maps(bev).values())


def test_task_specific_gca_gives_each_task_its_own_map():
    model = build(tiny_config(task_gca=dict(mode='task_specific', in_channels=16)))
    maps = model.task_maps(torch.randn(1, 16, 4, 4))
    assert not torch.equal(maps['object'], maps['map'])


def test_gca_for_some_tasks_only():
    model = build(tiny_config(
        task_gca=dict(mode='task_specific', in_channels=16, tasks=['map'])))
    bev = torch.randn(1, 16, 4, 4)
    maps = model.task_maps(bev)
    assert maps['object'] is bev and not torch.equal(maps['map'], bev)


@pytest.mark.parametrize('changes, message', [
    (dict(encoders={}), 'encoders is empty'),
    (dict(encoders=dict(radar={})), "encoders: ['radar'] do not exist"),
    (dict(heads={}), 'heads is empty'),
    (dict(fuser=None), 'fuser is missing'),
    (dict(loss_scale=dict(maps=1.0)), "loss_scale names the tasks ['maps'], but the heads are"),
    (dict(task_gca=dict(mode='task_specific', in_channels=16, tasks=['depth'])),
     "task_gca.tasks names the tasks ['depth']"),
    (dict(task_gca=dict(mode='shared', in_channels=16, tasks=['map'])), 'leaves a task out'),
    (dict(task_gca=dict(mode='sharde')), "got 'sharde'"),
])
def test_bad_configs_say_what_is_wrong_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        build(tiny_config(**changes))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('key, encoder', [('img', 'camera'), ('points', 'lidar')])
def test_inputs_that_an_encoder_misses(key, encoder, batch):
    model = build(only('lidar') if encoder == 'lidar' else tiny_config()).eval()
    del batch['inputs'][key]
    with pytest.raises(DataError, match=f'has a {encoder} encoder, but the batch has no'):
        model.test_step(batch)
