"""Metrics that the best checkpoint is measured by."""
import math

import pytest

from bevfusion_enhanced.engine.checkpointing.best_metric import file_part, parse, score
from bevfusion_enhanced.errors import ConfigError

METRICS = {'object/mAP': 0.4, 'object/NDS': 0.5, 'map/mean/iou@max': 0.7, 'object/mATE': 0.25,
           'bbox_mAP': 0.1, 'object/car/AOE': float('nan')}


@pytest.mark.parametrize('text, value', [
    ('mAP', 0.4), ('NDS', 0.5), ('mIoU', 0.7), ('object/mAP', 0.4), ('map/mean/iou@max', 0.7),
    ('bbox_mAP', 0.1), ('0.5*NDS+0.5*mIoU', 0.6), (' 1 * NDS + 2.5e-1 * mIoU ', 0.675),
    ('NDS+-0.2*object/mATE', 0.45), ('NDS+mIoU+mAP', 1.6)])
def test_value(text, value):
    assert score(text, METRICS) == pytest.approx(value)


def test_a_metric_of_that_very_name_comes_first():
    assert score('mAP', {**METRICS, 'mAP': 0.9}) == 0.9
    assert score('0.5*mAP', {**METRICS, 'mAP': 0.9}) == 0.45


def test_nan_stays_nan():
    assert math.isnan(score('mAP+object/car/AOE', METRICS))


@pytest.mark.parametrize('text', ['', '0.5*', '*NDS', 'NDS mIoU', 'NDS*mIoU*2', '+', 'NDS+'])
def test_what_is_no_sum_is_an_error(text):
    with pytest.raises(ConfigError, match='not a metric or a weighted sum'):
        parse(text)


def test_a_metric_that_is_not_reported_is_an_error():
    with pytest.raises(ConfigError, match=r"no map/mean/iou@max; it reports object/mAP"):
        score('0.5*mAP+0.5*mIoU', {'object/mAP': 0.4})


def test_files_can_be_named_so_on_any_system():
    assert file_part('0.5*NDS + 0.5*mIoU') == '0.5_NDS+0.5_mIoU'
    assert file_part('map/mean/iou@max') == 'map_mean_iou@max'
