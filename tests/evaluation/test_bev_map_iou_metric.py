import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.evaluation.bev_map_iou_metric import BEVMapIoUMetric
from bevfusion_enhanced.evaluation.map_counts import count_cells

CLASSES = ('drivable_area', 'divider')
THRESHOLDS = ('0.35', '0.40', '0.45', '0.50', '0.55', '0.60', '0.65')


def sample(probs, masks, token='t') -> dict:
    return dict(token=token, pred_bev_map=dict(probs=torch.tensor(probs, dtype=torch.float32)),
                gt_bev_map=dict(masks=torch.tensor(masks, dtype=torch.uint8)))


def metric(**settings) -> BEVMapIoUMetric:
    made = BEVMapIoUMetric(**settings)
    made.dataset_meta = dict(map_classes=CLASSES)
    return made


def score(*samples, **settings) -> dict:
    made = metric(**settings)
    made.process({}, samples)
    return made.evaluate(len(samples))


def test_by_hand():
    # drivable_area: probabilities .3 .4 .5 .6 / truth 0 1 0 1; divider: .9 .9 .1 .1 / 1 1 1 0.
    values = score(sample([[[0.3, 0.4], [0.5, 0.6]], [[0.9, 0.9], [0.1, 0.1]]],
                          [[[0, 1], [0, 1]], [[1, 1], [1, 0]]]))
    drivable = [2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 0]
    for threshold, expected in zip(THRESHOLDS, drivable, strict=True):
        assert values[f'map/drivable_area/iou@{threshold}'] == pytest.approx(expected, abs=1e-6)
        assert values[f'map/divider/iou@{threshold}'] == pytest.approx(2 / 3, abs=1e-6)
        mean = (expected + 2 / 3) / 2
        assert values[f'map/mean/iou@{threshold}'] == pytest.approx(mean, abs=1e-6)
    assert values['map/drivable_area/iou@max'] == pytest.approx(2 / 3, abs=1e-6)
    assert values['map/mean/iou@max'] == pytest.approx(2 / 3, abs=1e-6)
    assert set(values) == {f'map/{name}/iou@{threshold}' for name in (*CLASSES, 'mean')
                           for threshold in (*THRESHOLDS, 'max')}


def test_mean_of_best_is_not_best_of_mean():
    values = score(sample([[[0.4, 0.0]], [[0.7, 0.6]]], [[[1, 0]], [[1, 0]]]))
    assert values['map/mean/iou@max'] == pytest.approx(1, abs=1e-6)
    assert max(values[f'map/mean/iou@{threshold}'] for threshold in THRESHOLDS) < 0.76


def test_cells_are_summed_over_samples_before_dividing():
    large = sample([[[0.9, 0.9, 0.9]], [[0, 0, 0]]], [[[1, 1, 1]], [[1, 0, 0]]])
    small = sample([[[0.9, 0, 0]], [[0, 0, 0]]], [[[0, 0, 0]], [[0, 0, 0]]], token='u')
    assert score(large, small)['map/drivable_area/iou@0.50'] == pytest.approx(3 / 4, abs=1e-6)


def test_perfect_predictions_score_one_and_an_absent_class_zero():
    masks = np.random.default_rng(0).integers(0, 2, (2, 20, 20))
    assert score(sample(masks, masks))['map/mean/iou@max'] == pytest.approx(1, abs=1e-6)
    masks[1] = 0
    values = score(sample(masks, masks))
    assert values['map/divider/iou@max'] == 0
    assert values['map/mean/iou@max'] == pytest.approx(0.5, abs=1e-6)


def test_an_empty_prediction_scores_zero():
    assert set(score(sample(np.zeros((2, 4, 4)), np.ones((2, 4, 4)))).values()) == {0.0}


def test_threshold_belongs_to_the_prediction():
    values = score(sample([[[0.5]], [[0.35]]], [[[1]], [[1]]]))
    assert values['map/drivable_area/iou@0.50'] == pytest.approx(1, abs=1e-6)
    assert values['map/divider/iou@0.35'] == pytest.approx(1, abs=1e-6)
    assert values['map/divider/iou@0.40'] == 0


def test_what_is_kept_of_a_sample_is_small():
    made = metric()
    masks = torch.zeros(2, 200, 200, dtype=torch.uint8)
    made.process({}, [dict(pred_bev_map=PixelData(probs=torch.rand(2, 200, 200)).to_dict(),
                           gt_bev_map=PixelData(masks=masks).to_dict())])
    kept = made.results[0]['histogram']
    assert kept.shape == (1, 2, 2, 8) and kept.dtype == np.int32


def test_counts_match_a_loop():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(3, 5, 4, generator=generator)
    masks = torch.randint(0, 2, (3, 5, 4), generator=generator)
    counts = count_cells(probs, masks, (0.3, 0.6))
    for row, threshold in enumerate((0.3, 0.6)):
        for column in range(3):
            pairs = [(p >= threshold, m == 1)
                     for p, m in zip(probs[column].flatten(), masks[column].flatten(), strict=True)]
            expected = [sum(p and m for p, m in pairs), sum(p and not m for p, m in pairs),
                        sum(m and not p for p, m in pairs)]
            assert counts[row, column].tolist() == expected


def test_samples_that_cannot_be_scored():
    good = sample(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))
    without = {key: value for key, value in good.items() if key != 'gt_bev_map'}
    with pytest.raises(DataError, match='sample t has no gt_bev_map.*LoadBEVMapMasks'):
        metric().process({}, [without])
    with pytest.raises(DataError, match=r'predicted map is \(2, 5, 4\), the true one \(2, 4, 4\)'):
        metric().process({}, [sample(np.zeros((2, 5, 4)), np.zeros((2, 4, 4)))])
    with pytest.raises(ConfigError, match='map_classes'):
        score(good, classes=('divider',))
    with pytest.raises(ConfigError, match='thresholds'):
        BEVMapIoUMetric(thresholds=[])
