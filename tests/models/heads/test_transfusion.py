"""The detection head: golden numbers and properties of proposing and training."""
import copy

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.heads.transfusion import (
    LayerOutputs,
    TransFusionHead,
    TransFusionOutputs,
)
from bevfusion_enhanced.models.heads.transfusion_coder import BoxCode
from bevfusion_enhanced.models.heads.transfusion_proposals import local_maxima, propose
from bevfusion_enhanced.models.heads.transfusion_targets import Truth

CAR = [3.0, -8.0, -1.0, 1.9, 4.5, 1.6, 0.4, 2.0, 5.0]
PEDESTRIAN = [-7.0, 5.0, -1.2, 0.6, 0.7, 1.8, 1.4, 0.5, -0.5]


@pytest.fixture()
def toy_head(head_config):
    def build(**changes) -> TransFusionHead:
        torch.manual_seed(0)
        config = dict(grid=16, voxel=0.25, in_channels=8, hidden=16, proposals=20)
        return MODELS.build(head_config(**{**config, **changes}))

    return build


def relative(actual: torch.Tensor, expected: np.ndarray) -> float:
    return np.linalg.norm(actual.numpy() - expected) / np.linalg.norm(expected)


def raw_outputs(outputs: TransFusionOutputs) -> dict:
    code, logits = outputs.layers[-1]
    return dict(code._asdict(), heatmap=logits, dense_heatmap=outputs.dense_heatmap,
                query_heatmap_score=outputs.query_heatmap_score)


@pytest.fixture()
def golden_outputs(shared, head_config):
    """A head, and the raw outputs of MMDetection3D's as if they were its own."""
    golden = np.load(shared / 'parity' / 'mmdet3d_lidar_cam_small_golden.npz')
    raw = {k[len('head_'):]: torch.from_numpy(v) for k, v in golden.items() if k[:5] == 'head_'}
    head = MODELS.build(head_config()).eval()
    scores = local_maxima(raw['dense_heatmap'].sigmoid(), size=3, spared=(8, 9))
    labels, _ = propose(scores, count=200)
    code = BoxCode(*(raw[k] for k in BoxCode._fields))
    return golden, head, TransFusionOutputs(
        layers=[LayerOutputs(code=code, logits=raw['heatmap'])], query_labels=labels,
        dense_heatmap=raw['dense_heatmap'], query_heatmap_score=raw['query_heatmap_score'])


@pytest.mark.needs_shared
def test_golden_boxes(golden_outputs):
    golden, head, outputs = golden_outputs
    found = head.predict_by_outputs(outputs)[0]
    assert relative(found.bboxes_3d.tensor, golden['pred_boxes']) < 1e-4
    assert relative(found.scores_3d, golden['pred_scores']) < 1e-4
    assert np.array_equal(found.labels_3d.numpy(), golden['pred_labels'])


@pytest.mark.needs_shared
def test_golden_losses_on_the_real_frame(golden_outputs, shared):
    golden, head, outputs = golden_outputs
    frame = np.load(shared / 'parity' / 'real_frame_small.npz')
    inside = (np.abs(frame['gt_boxes'][:, :2]) < 57.6).all(axis=1) & (frame['gt_labels'] >= 0)
    truth = Truth(boxes=torch.from_numpy(frame['gt_boxes'][inside]),
                  labels=torch.from_numpy(frame['gt_labels'][inside]))
    losses, stats = head.loss_by_outputs(outputs, [truth])
    expected = dict(heatmap='loss_loss_heatmap', cls='loss_layer_-1_loss_cls',
                    bbox='loss_layer_-1_loss_bbox')
    assert set(losses) == set(expected)
    for name, key in expected.items():
        assert losses[name].item() == pytest.approx(float(golden[key]), rel=1e-4)
    matched_iou = float(golden['loss_matched_ious'])
    assert stats['matched_iou'].item() == pytest.approx(matched_iou, rel=1e-4)


def test_the_config_is_not_edited(head_config):
    config = head_config(grid=16, in_channels=8, hidden=16, proposals=20)
    before = copy.deepcopy(config)
    MODELS.build(config)
    assert config == before


def test_samples_of_a_batch_do_not_meet_in_evaluation(toy_head):
    head = toy_head().eval()
    bev = torch.randn(3, 8, 16, 16)
    together = raw_outputs(head(bev))
    for b in range(3):
        for name, alone in raw_outputs(head(bev[b:b + 1])).items():
            torch.testing.assert_close(together[name][b:b + 1], alone, atol=1e-5, rtol=1e-4)


def test_prediction_is_repeatable_and_well_formed(toy_head):
    head = toy_head().eval()
    bev, samples = torch.randn(2, 8, 16, 16), [Det3DDataSample(), Det3DDataSample()]
    first, again = (head.predict(bev, samples) for _ in range(2))
    for a, b in zip(first, again):
        assert set(a) == {'pred_instances_3d', 'pred_instances'} and len(a['pred_instances']) == 0
        found = a['pred_instances_3d']
        assert found.bboxes_3d.tensor.shape == (len(found), 9) and len(found) <= 20
        assert torch.equal(found.bboxes_3d.tensor, b['pred_instances_3d'].bboxes_3d.tensor)
        assert found.labels_3d.dtype == torch.long and found.scores_3d.shape == (len(found),)
        assert ((found.scores_3d > 0) & (found.scores_3d <= 1)).all()


def test_each_decoder_layer_is_supervised_or_only_the_last(toy_head, detection_sample):
    bev, samples = torch.randn(1, 8, 16, 16), [detection_sample([CAR], [0])]
    losses, _ = toy_head(layers=3).loss(bev, samples)
    assert set(losses) == {'heatmap'} | {f'layer{i}/{k}' for i in range(3) for k in ('cls', 'bbox')}
    last_only = toy_head(layers=3, auxiliary=False)
    assert set(last_only.loss(bev, samples).losses) == {'heatmap', 'cls', 'bbox'}
    assert len(last_only.eval().predict(bev, samples)) == 1


@pytest.mark.parametrize('boxes', [[], [CAR], [[*CAR[:3], 0.0, 0.0, 0.0, *CAR[6:]]],
                                   [[*CAR[:7], float('nan'), float('nan')]],
                                   [[500.0, *CAR[1:]]]])
def test_any_truth_gives_finite_losses_and_gradients(toy_head, detection_sample, boxes):
    head = toy_head().train()
    samples = [detection_sample(boxes, [0] * len(boxes)), detection_sample([PEDESTRIAN], [8])]
    losses, stats = head.loss(torch.randn(2, 8, 16, 16), samples)
    assert all(v.isfinite() for v in [*losses.values(), *stats.values()])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_no_truth_at_all(toy_head, detection_sample):
    head = toy_head()
    losses, stats = head.loss(torch.randn(1, 8, 16, 16), [detection_sample([], [])])
    assert losses['bbox'].item() == 0 and losses['bbox'].requires_grad
    assert losses['heatmap'] > 0 and stats['matched_iou'] == 0
    sum(losses.values()).backward()


def test_boxes_of_no_class_are_left_out(toy_head, detection_sample):
    head = toy_head().eval()
    bev = torch.randn(1, 8, 16, 16)
    with_unknown = head.loss(bev, [detection_sample([CAR, PEDESTRIAN], [-1, 8])])
    without = head.loss(bev, [detection_sample([PEDESTRIAN], [8])])
    torch.testing.assert_close(with_unknown, without)


def test_an_overflowed_prediction_does_not_stop_the_run(toy_head, detection_sample):
    head = toy_head()
    outputs = head(torch.randn(1, 8, 16, 16))
    code = outputs.layers[0].code
    wild = code._replace(dim=torch.where(code.dim > 0, torch.full_like(code.dim, 1e4), code.dim),
                         center=code.center * torch.tensor(float('nan')))
    truths = [Truth(boxes=torch.tensor([CAR]), labels=torch.tensor([0]))]
    outputs = outputs._replace(layers=[LayerOutputs(wild, outputs.layers[0].logits)])
    assert not head.loss_by_outputs(outputs, truths).losses['bbox'].isfinite()
    head.predict_by_outputs(outputs)


def test_it_learns_one_sample(toy_head, detection_sample):
    head = toy_head(layers=1).train()
    samples = [detection_sample([CAR, PEDESTRIAN], [0, 8])]
    bev = torch.randn(1, 8, 16, 16)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        sum(head.loss(bev, samples).losses.values()).backward()
        optimizer.step()
    found = head.eval().predict(bev, samples)[0]['pred_instances_3d']
    for truth, label in ((CAR, 0), (PEDESTRIAN, 8)):
        best = found.scores_3d.masked_fill(found.labels_3d != label, -1).argmax()
        box = found.bboxes_3d.tensor[best]
        assert found.labels_3d[best] == label
        torch.testing.assert_close(box[:3], torch.tensor(truth[:3]), atol=0.5, rtol=0)
        torch.testing.assert_close(box[3:6], torch.tensor(truth[3:6]), atol=0, rtol=0.25)


def test_mixed_precision_gives_float32_boxes_and_losses(toy_head, detection_sample):
    head, bev = toy_head(), torch.randn(1, 8, 16, 16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = head(bev)
        losses = head.loss(bev, [detection_sample([CAR], [0])]).losses
    assert all(v.dtype == torch.float32 for v in raw_outputs(outputs).values())
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())


@pytest.mark.parametrize(('nms_type', 'threshold'), [('circle', None), ('rotate', 0.01)])
def test_duplicates_of_small_classes_are_dropped(toy_head, nms_type, threshold):
    head = toy_head()
    head.test_cfg = head.test_cfg.__class__(
        **{**head.test_cfg.__dict__, 'nms_type': nms_type, 'nms_threshold': threshold})
    rng = np.random.default_rng(0)
    boxes = torch.zeros(80, 9)
    boxes[:, :2] = torch.from_numpy(rng.uniform(-1.5, 1.5, (80, 2)))
    boxes[:, 3:6] = 0.5
    labels = torch.arange(80) % 10
    scores = torch.from_numpy(rng.random(80)).float()
    found = head._instances(boxes, scores, labels)
    kept = found.labels_3d.bincount(minlength=10)
    assert (kept[:8] == 8).all() and (kept[8:] < 8).all() and (kept[8:] > 0).all()
    if nms_type == 'circle':
        centers = found.bboxes_3d.tensor[found.labels_3d == 8, :2]
        assert torch.pdist(centers).square().min() > 0.175


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(hidden_channel=32), 'hidden_channel is 32.*16 channels'),
    (dict(nms_kernel_size=2), 'must be odd, got 2'),
    (dict(nms_free_classes=[10]), 'not all among the 10 classes'),
    (dict(num_classes=4), r'\(8, 9\) are not all among the 4 classes')])
def test_wrong_configs_are_refused(toy_head, changes, message):
    with pytest.raises(ConfigError, match=message):
        toy_head(**changes)


@pytest.mark.parametrize(('part', 'changes', 'message'), [
    ('train_cfg', dict(radius=3), r"train_cfg.*does not know \['radius'\]"),
    ('test_cfg', dict(nms_type='soft'), "nms_type must be None, 'rotate' or 'circle', got 'soft'"),
    ('test_cfg', dict(dataset='KITTI'), "'KITTI' has no known nms_free_classes"),
    ('test_cfg', dict(out_size_factor=4), r'test_cfg.*says.*4.*bbox_coder says'),
    ('train_cfg', dict(voxel_size=[0.1, 0.1, 0.2]), r'train_cfg.*says.*0\.1.*bbox_coder says'),
    ('train_cfg', dict(code_weights=[1.0] * 8), 'code_weights must be 10'),
    ('bbox_coder', dict(code_size=9), 'code_size must be 8, or 10')])
def test_wrong_parts_of_configs_are_refused(head_config, part, changes, message):
    config = head_config(grid=16, in_channels=8, hidden=16, proposals=20)
    config[part] = dict(config[part], **changes)
    with pytest.raises(ConfigError, match=message):
        MODELS.build(config)


def test_a_missing_key_is_named(head_config):
    config = head_config(grid=16, in_channels=8, hidden=16)
    del config['train_cfg']['assigner']
    with pytest.raises(ConfigError, match=r"train_cfg.*needs \['assigner'\]"):
        MODELS.build(config)


def test_a_map_or_truth_of_another_size_is_named(toy_head, detection_sample):
    head = toy_head()
    with pytest.raises(ConfigError, match=r'expects a BEV map of \(16, 16\).*got \(8, 16\)'):
        head(torch.zeros(1, 8, 8, 16))
    with pytest.raises(DataError, match='sample abc has labels up to 12'):
        head.loss(torch.zeros(1, 8, 16, 16), [detection_sample([CAR], [12])])
    with pytest.raises(ConfigError, match='num_proposals is 5000.*only 2560 cells'):
        toy_head(proposals=5000)(torch.zeros(1, 8, 16, 16))


def test_a_head_that_only_predicts_needs_no_train_cfg(toy_head):
    head = toy_head(train_cfg=None).eval()
    assert len(head.predict(torch.randn(1, 8, 16, 16), [Det3DDataSample()])) == 1
