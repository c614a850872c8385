import json

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from nuscenes import NuScenes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval

from bevfusion_enhanced.datasets.info_files import read_info_file, write_info_file
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.evaluation.nuscenes_detection_metric import NuScenesDetectionMetric
from bevfusion_enhanced.evaluation.submission import attribute_name, submission_boxes

ERRORS = ('mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')


@pytest.fixture(scope='module')
def dataset(mini_nuscenes) -> NuScenesMultiTaskDataset:
    return NuScenesMultiTaskDataset(data_root=str(mini_nuscenes), test_mode=True,
                                    ann_file='nuscenes_infos_val.pkl')


def predictions(dataset, keep: float = 1.0, shift: float = 0.0) -> list:
    """The truth as predictions, with distinct scores."""
    rng = np.random.default_rng(0)
    samples = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        boxes = info['ann_info']['gt_bboxes_3d'].tensor.clone()
        boxes[:, 0] += shift
        kept = rng.random(len(boxes)) < keep
        samples.append(dict(sample_idx=index, token=info['token'], pred_instances_3d=dict(
            bboxes_3d=LiDARInstance3DBoxes(boxes[kept], box_dim=9),
            scores_3d=torch.from_numpy(rng.permutation(len(boxes)) / 1000 + 0.1)[kept].float(),
            labels_3d=torch.from_numpy(info['ann_info']['gt_labels_3d'])[kept])))
    return samples


def evaluate(dataset, samples, root, **settings) -> dict:
    metric = NuScenesDetectionMetric(
        **{**dict(data_root=str(root), ann_file='nuscenes_infos_val.pkl'), **settings})
    metric.dataset_meta = dataset.metainfo
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def present_classes(dataset, root) -> list:
    """Classes with ground truth that the protocol counts."""
    found = evaluate(dataset, predictions(dataset), root)
    return [name for name in dataset.metainfo['classes'] if found[f'object/{name}/AP'] > 0]


def test_truth_as_prediction_is_perfect(dataset, mini_nuscenes):
    values = evaluate(dataset, predictions(dataset), mini_nuscenes)
    present = present_classes(dataset, mini_nuscenes)
    assert len(present) >= 5
    for name in present:
        assert values[f'object/{name}/AP'] == pytest.approx(1.0, abs=1e-6)
        assert values[f'object/{name}/ATE'] < 1e-3 and values[f'object/{name}/ASE'] < 1e-3
    assert values['object/mAP'] == pytest.approx(len(present) / 10, abs=1e-6)
    assert values['object/car/AOE'] < 2e-3 and values['object/car/AVE'] < 0.02
    assert {f'object/{name}' for name in ERRORS + ('NDS',)} <= values.keys()


def test_undefined_errors_are_left_out(dataset, mini_nuscenes):
    values = evaluate(dataset, predictions(dataset), mini_nuscenes)
    assert 'object/traffic_cone/AOE' not in values and 'object/barrier/AVE' not in values
    assert all(np.isfinite(value) for value in values.values())


def test_a_shift_is_measured(dataset, mini_nuscenes):
    values = evaluate(dataset, predictions(dataset, shift=0.3), mini_nuscenes)
    assert values['object/car/ATE'] == pytest.approx(0.3, abs=0.01)
    assert values['object/car/AP'] == pytest.approx(1.0, abs=1e-6)


def test_equal_to_the_official_command(dataset, mini_nuscenes, tmp_path):
    ours = evaluate(dataset, predictions(dataset, keep=0.7, shift=0.4), mini_nuscenes,
                    jsonfile_prefix=str(tmp_path))
    nusc = NuScenes(version='v1.0-mini', dataroot=str(mini_nuscenes), verbose=False)
    official = DetectionEval(nusc, config_factory('detection_cvpr_2019'),
                             str(tmp_path / 'results_nusc.json'), 'mini_val', str(tmp_path / 'out'),
                             verbose=False).main(render_curves=False)
    assert 0 < ours['object/mAP'] < 1
    assert ours['object/mAP'] == official['mean_ap'] and ours['object/NDS'] == official['nd_score']
    kept = json.loads((tmp_path / 'metrics_summary.json').read_text())
    assert kept['samples'] == 4 and kept['mean_ap'] == official['mean_ap']
    assert json.loads((tmp_path / 'results_nusc.json').read_text())['meta']['use_camera'] is True


def test_empty_predictions_score_zero(dataset, mini_nuscenes):
    samples = predictions(dataset, keep=0.0)
    values = evaluate(dataset, samples, mini_nuscenes)
    assert values['object/mAP'] == 0 and values['object/NDS'] == 0
    assert all(values[f'object/{name}'] == 1 for name in ERRORS)


def test_some_samples_may_be_empty(dataset, mini_nuscenes):
    samples = predictions(dataset)
    samples[0] = predictions(dataset, keep=0.0)[0]
    assert 0 < evaluate(dataset, samples, mini_nuscenes)['object/mAP'] < 1


def test_only_the_predicted_samples_count(dataset, mini_nuscenes, tmp_path):
    """A part of a split is scored on its own samples."""
    content = read_info_file(mini_nuscenes / 'nuscenes_infos_val.pkl')
    content['data_list'] = content['data_list'][:2]
    write_info_file(content, tmp_path / 'part.pkl')
    samples = predictions(dataset)[:2]
    values = evaluate(dataset, samples, mini_nuscenes, ann_file=str(tmp_path / 'part.pkl'))
    assert values['object/car/AP'] == pytest.approx(1.0, abs=1e-6)


def test_no_truth_at_all_scores_zero(dataset, mini_nuscenes):
    far = predictions(dataset)
    for sample in far:
        sample['pred_instances_3d']['bboxes_3d'].tensor[:, 0] += 500  # out of every range
    assert evaluate(dataset, far, mini_nuscenes)['object/mAP'] == 0


def test_format_only_writes_and_scores_nothing(dataset, mini_nuscenes, tmp_path):
    assert evaluate(dataset, predictions(dataset), mini_nuscenes, format_only=True,
                    jsonfile_prefix=str(tmp_path)) == {}
    assert len(json.loads((tmp_path / 'results_nusc.json').read_text())['results']) == 4
    with pytest.raises(ConfigError, match='jsonfile_prefix'):
        NuScenesDetectionMetric(data_root=str(mini_nuscenes), ann_file='nuscenes_infos_val.pkl',
                                format_only=True)


def test_wrong_files_are_one_line(dataset, mini_nuscenes, tmp_path):
    with pytest.raises(DataError, match=r'info file none\.pkl does not exist.*create_data'):
        NuScenesDetectionMetric(data_root=str(mini_nuscenes), ann_file='none.pkl')
    with pytest.raises(DataError, match='is not in .*train.*same ann_file'):
        evaluate(dataset, predictions(dataset), mini_nuscenes,
                 ann_file='nuscenes_infos_train.pkl')
    with pytest.raises(DataError, match='cannot read the tables') as error:
        evaluate(dataset, predictions(dataset), tmp_path,
                 ann_file=str(mini_nuscenes / 'nuscenes_infos_val.pkl'))
    assert '\n' not in str(error.value)


def submission(boxes: np.ndarray, scores=None, labels=None) -> list:
    scores = np.linspace(1, 0.1, len(boxes)) if scores is None else scores
    return submission_boxes(
        token='t', boxes=np.asarray(boxes, dtype=np.float32), scores=np.asarray(scores),
        labels=np.zeros(len(boxes), int) if labels is None else np.asarray(labels),
        lidar2ego=np.array([[0, 1, 0, 1], [-1, 0, 0, 0], [0, 0, 1, 2.0], [0, 0, 0, 1]]),
        ego2global=np.array([[1, 0, 0, 100], [0, 1, 0, 50], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        classes=('car', 'barrier'), class_range=dict(car=50, barrier=30))


def test_a_box_in_the_global_frame():
    record, = submission([[0, 10, -1, 4, 2, 1.5, np.pi / 2, 0, 3]])  # ahead, driving ahead
    np.testing.assert_allclose(record['translation'], [111, 50, 1.75], atol=1e-6)
    np.testing.assert_allclose(record['size'], [2, 4, 1.5])
    np.testing.assert_allclose(np.abs(record['rotation']), [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(record['velocity'], [3, 0], atol=1e-6)
    assert record['attribute_name'] == 'vehicle.moving' and record['detection_name'] == 'car'


def test_range_and_number_of_boxes():
    near, far = [0, 10, 0, 4, 2, 1, 0, 0, 0], [0, 40, 0, 4, 2, 1, 0, 0, 0]
    assert len(submission([near, far, near, far], labels=[0, 0, 1, 1])) == 3
    records = submission(np.tile(near, (700, 1)), scores=np.arange(700) / 700)
    assert len(records) == 500
    assert min(record['detection_score'] for record in records) == pytest.approx(200 / 700)
    assert submission(np.zeros((0, 9))) == []


@pytest.mark.parametrize('name, speed, attribute', [
    ('bus', 0.0, 'vehicle.stopped'), ('trailer', 0.1, 'vehicle.parked'),
    ('bicycle', 1.0, 'cycle.with_rider'), ('motorcycle', 0.0, 'cycle.without_rider'),
    ('pedestrian', 0.0, 'pedestrian.standing'), ('pedestrian', 1.0, 'pedestrian.moving'),
    ('traffic_cone', 1.0, ''), ('barrier', 0.0, '')])
def test_attributes_by_speed(name, speed, attribute):
    assert attribute_name(name, speed) == attribute
