import json
import logging
import re
import sys

import numpy as np
import pytest
import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
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

GEOMETRY = {'dx', 'bx', 'nx', 'frustum', 'relative_position_index'}
assert IS_SPCONV2_AVAILABLE  # so MMDetection3D's patch of spconv's loading is in force here


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


def camera_config(*, swin, image_size, bound, neck_in):
    bound = list(bound)
    return dict(
        backbone=dict(type='mmdet.SwinTransformer', window_size=7, out_indices=[1, 2, 3], **swin),
        neck=dict(type='GeneralizedLSSFPN', in_channels=neck_in, out_channels=256, start_level=0,
                  num_outs=3, norm_cfg=dict(type='BN2d', requires_grad=True),
                  act_cfg=dict(type='ReLU', inplace=True),
                  upsample_cfg=dict(mode='bilinear', align_corners=False)),
        vtransform=dict(type='DepthLSSTransform', in_channels=256, out_channels=80,
                        image_size=image_size, feature_size=[n // 8 for n in image_size],
                        xbound=bound, ybound=bound, zbound=[-10., 10., 20.],
                        dbound=[1., 60., 0.5], downsample=2))


def lidar_config(*, limit, voxel_size, sparse_shape):
    return dict(
        voxelize=dict(point_cloud_range=[-limit, -limit, -5., limit, limit, 3.],
                      voxel_size=voxel_size, max_num_points=10, max_voxels=[120000, 160000]),
        backbone=dict(type='BEVFusionSparseEncoder', in_channels=5, sparse_shape=sparse_shape))


def head_config(in_channels=512, field='pred_bev_map', target=1.0):
    return dict(type='TinyMapHead', in_channels=in_channels, field=field, target=target)


def full_config():
    return dict(
        type='BEVFusion',
        encoders=dict(
            camera=camera_config(
                swin=dict(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
                image_size=[256, 704], bound=[-54., 54., 0.3], neck_in=[192, 384, 768]),
            lidar=lidar_config(limit=54., voxel_size=[0.075, 0.075, 0.2],
                               sparse_shape=[1440, 1440, 41])),
        fuser=dict(type='ConvFuser', in_channels=[80, 256], out_channels=256),
        decoder=decoder_config(), heads=dict(object=head_config()))


def parity_config():
    """The small model behind the golden outputs."""
    config = full_config()
    config['encoders'] = dict(
        camera=camera_config(
            swin=dict(embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
            image_size=[64, 176], bound=[-57.6, 57.6, 1.2], neck_in=[48, 96, 192]),
        lidar=lidar_config(limit=57.6, voxel_size=[0.3, 0.3, 0.2], sparse_shape=[384, 384, 41]))
    return config


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


def renamed(keys, names):
    """{key of the reference: ours}, without geometry and heads; `names` maps prefixes."""
    ours = {}
    for key in keys:
        prefix = next((p for p in names if key.startswith(p + '.')), None)
        if prefix is not None and key.rsplit('.', 1)[-1] not in GEOMETRY:
            ours[key] = names[prefix] + key[len(prefix):]
    return ours


MMDET3D_NAMES = dict(
    img_backbone='encoders.camera.backbone', img_neck='encoders.camera.neck',
    view_transform='encoders.camera.vtransform', pts_middle_encoder='encoders.lidar.backbone',
    fusion_layer='fuser', pts_backbone='decoder.backbone', pts_neck='decoder.neck')
MIT_NAMES = {name: name for name in ('encoders', 'fuser', 'decoder')}


@pytest.mark.needs_shared
@pytest.mark.parametrize('file, names', [('mmdet3d_lidar_cam_full_keys.json', MMDET3D_NAMES),
                                         ('mit_det_seg_full_keys.json', MIT_NAMES)])
def test_full_size_keys_and_shapes_are_the_references(file, names, shared):
    shapes = json.loads((shared / 'parity' / file).read_text())
    ours = {k: list(v.shape) for k, v in build(full_config()).state_dict().items()
            if not k.startswith('heads')}
    expected = {our: shapes[key] for key, our in renamed(shapes, names).items()}
    if names is MIT_NAMES:  # its sparse weights are (k, k, k, in, out)
        expected = {key: [shape[-1], *shape[:-1]] if len(shape) == 5 else shape
                    for key, shape in expected.items()}
    assert ours == expected


@pytest.mark.needs_shared
def test_golden_taps(shared):
    """MMDetection3D's model on the real key frame, tap by tap."""
    sys.path.insert(0, str(shared / 'parity'))
    from fill import fill
    shapes = json.loads((shared / 'parity' / 'mmdet3d_lidar_cam_small_keys.json').read_text())
    frame = np.load(shared / 'parity' / 'real_frame_small.npz')
    golden = np.load(shared / 'parity' / 'mmdet3d_lidar_cam_small_golden.npz')

    model = build(parity_config()).eval()
    weights = fill(shapes)
    state = {our: torch.as_tensor(weights[key])
             for key, our in renamed(shapes, MMDET3D_NAMES).items()}
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.startswith('heads') for key in left.missing_keys)

    taps = {}
    for tap, name in MMDET3D_NAMES.items():
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, tap=tap: taps.update({tap: out}))
    low, high = torch.tensor([-57.6, -57.6, -5.]), torch.tensor([57.6, 57.6, 3.])
    points = torch.from_numpy(frame['points'])  # the references' pipeline filters by range
    points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(1)]
    sample = Det3DDataSample(metainfo={name: frame[name] for name in (
        'cam2img', 'cam2lidar', 'lidar2img', 'img_aug_matrix', 'lidar_aug_matrix')})
    inputs = dict(imgs=torch.from_numpy(frame['img'])[None], points=[points])
    with torch.no_grad():
        model(inputs, [sample], mode='tensor')

    compared = [tap for tap in taps if tap in golden]
    assert len(compared) == 6
    for tap in compared:
        out = taps[tap] if torch.is_tensor(taps[tap]) else taps[tap][0]
        assert list(out.shape) == golden[f'{tap}_shape'].tolist(), tap
        out = out[:, ::8] if out.shape[1] > 64 else out
        expected = torch.from_numpy(golden[tap])
        assert (out - expected).norm() / expected.norm() < 1e-5, tap
