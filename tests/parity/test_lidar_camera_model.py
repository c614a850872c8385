"""The small lidar-camera model on the real key frame, against MMDetection3D's outputs."""
import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from bevfusion_enhanced.checkpoints.geometry import geometry_of
from bevfusion_enhanced.checkpoints.naming import convert

pytestmark = pytest.mark.needs_shared

TAPS = {
    'img_backbone': 'encoders.camera.backbone', 'img_neck': 'encoders.camera.neck',
    'view_transform': 'encoders.camera.vtransform', 'pts_middle_encoder': 'encoders.lidar.backbone',
    'fusion_layer': 'fuser', 'pts_neck': 'decoder.neck'}
LOSSES = {'loss/object/heatmap': 'loss_loss_heatmap', 'loss/object/cls': 'loss_layer_-1_loss_cls',
          'loss/object/bbox': 'loss_layer_-1_loss_bbox', 'stats/object/matched_iou':
          'loss_matched_ious'}


@pytest.fixture(scope='module')
def frame(parity):
    """The model's inputs: (images and points, a sample with calibration and boxes)."""
    data = np.load(parity / 'real_frame_small.npz')
    low, high = torch.tensor([-57.6, -57.6, -5.]), torch.tensor([57.6, 57.6, 3.])
    points = torch.from_numpy(data['points'])  # the references' pipeline filters by range
    points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(1)]
    sample = Det3DDataSample(metainfo={name: data[name] for name in (
        'cam2img', 'cam2lidar', 'lidar2img', 'img_aug_matrix', 'lidar_aug_matrix')})
    boxes, labels = data['gt_boxes'], data['gt_labels']
    inside = (np.abs(boxes[:, :2]) < 57.6).all(axis=1) & (labels >= 0)
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.from_numpy(boxes[inside]), box_dim=9),
        labels_3d=torch.from_numpy(labels[inside]).long())
    return dict(imgs=torch.from_numpy(data['img'])[None], points=[points]), sample


@pytest.fixture(scope='module', params=['mmdet3d', 'mit'])
def model(request, small_config, build, key_list, filled, load):
    """The small model with weights that came under the names of one reference."""
    weights = filled(key_list('mmdet3d_lidar_cam_small'))
    model = build(small_config.model)
    translation = load(model, weights, small_config, origin='mmdet3d')
    if request.param == 'mit':
        original = convert(translation.weights, to='mit', geometry=geometry_of(small_config))
        assert original['encoders.lidar.backbone.conv_input.0.weight'].shape == (3, 3, 3, 5, 16)
        model = build(small_config.model)
        translation = load(model, original, small_config, origin='mit')
        assert 'sparse weights in the layout of spconv 1.x, permuted (21 layers)' \
            in translation.notes
    return model


@pytest.fixture(scope='module')
def outputs(model, frame):
    """What every part gave, what was predicted, and the losses."""
    taps = {}
    modules = {**TAPS, 'head': 'heads.object'}
    hooks = [model.get_submodule(path).register_forward_hook(
        lambda _, __, out, tap=tap: taps.update({tap: out})) for tap, path in modules.items()]
    inputs, sample = frame
    with torch.no_grad():
        predicted = model.predict(inputs, [sample])[0].pred_instances_3d
        for hook in hooks:
            hook.remove()
        losses = model.loss(inputs, [sample])
    return taps, predicted, losses


@pytest.fixture(scope='module')
def expected(golden):
    return golden('mmdet3d_lidar_cam_small_golden')


@pytest.mark.parametrize('tap', TAPS)
def test_taps(tap, outputs, expected, relative):
    out = outputs[0][tap]
    out = out if torch.is_tensor(out) else out[0]
    assert list(out.shape) == expected[f'{tap}_shape'].tolist()
    assert float(out.abs().mean()) == pytest.approx(float(expected[f'{tap}_abs_mean']), rel=1e-4)
    assert relative(out[:, ::8] if out.shape[1] > 64 else out, expected[tap]) < 1e-4


def test_raw_head_outputs(outputs, expected, relative):
    head = outputs[0]['head']
    code, logits = head.layers[-1]
    raw = dict(code._asdict(), heatmap=logits, dense_heatmap=head.dense_heatmap,
               query_heatmap_score=head.query_heatmap_score)
    assert {f'head_{name}' for name in raw} == {k for k in expected if k.startswith('head_')}
    for name, value in raw.items():
        assert relative(value, expected[f'head_{name}']) < 1e-4, name


def test_predictions(outputs, expected, relative):
    found = outputs[1]
    assert relative(found.bboxes_3d.tensor, expected['pred_boxes']) < 1e-4
    assert relative(found.scores_3d, expected['pred_scores']) < 1e-4
    assert np.array_equal(found.labels_3d.numpy(), expected['pred_labels'])


def test_losses(outputs, expected):
    losses = outputs[2]
    assert losses.keys() == LOSSES.keys()
    for name, key in LOSSES.items():
        assert float(losses[name]) == pytest.approx(float(expected[key]), rel=1e-3), name
