import io
import json
import re

import pytest
from rich.console import Console

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.experiments.comparison import (
    make_table,
    read_metrics,
    rows_of,
    summarise,
)

METRICS = {
    'object/mAP': 0.25, 'object/NDS': 0.375, 'object/mATE': 0.5, 'object/mASE': 0.25,
    'object/mAOE': 1.5, 'object/mAVE': 2.0, 'object/mAAE': 0.125,
    'object/car/AP': 0.75, 'object/car/ATE': 0.3, 'object/traffic_cone/AP': 0.0,
    'map/drivable_area/iou@0.35': 0.6, 'map/drivable_area/iou@max': 0.875,
    'map/divider/iou@max': 0.25, 'map/mean/iou@0.35': 0.4, 'map/mean/iou@max': 0.5625,
}


def test_summary_of_metrics():
    assert summarise(METRICS) == {
        'mAP': 0.25, 'NDS': 0.375, 'mIoU': 0.5625, 'mATE': 0.5, 'mASE': 0.25, 'mAOE': 1.5,
        'mAVE': 2.0, 'mAAE': 0.125, 'AP': {'car': 0.75, 'traffic_cone': 0.0},
        'IoU': {'drivable_area': 0.875, 'divider': 0.25},
    }


@pytest.mark.parametrize('absent', ['object/NDS', 'map/mean/iou@max', 'object/mAVE'])
def test_missing_figure_is_named(absent):
    with pytest.raises(DataError, match=absent):
        summarise({key: value for key, value in METRICS.items() if key != absent})


def test_table_shows_both_and_the_change():
    after = summarise(dict(METRICS, **{'object/mAP': 0.2, 'map/divider/iou@max': 0.5}))
    before = summarise(METRICS)
    rows = [row for row in rows_of(before, after) if row]
    assert ('mAP', 0.25, 0.2) in rows and ('IoU divider', 0.25, 0.5) in rows
    assert len(rows) == 3 + 5 + 2 + 2
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(make_table(before, after))
    text = console.export_text()
    assert '-0.0500' in text and '+0.2500' in text and 'AP traffic_cone' in text


def test_undefined_figures_are_dashes():
    before, after = summarise(METRICS), summarise(dict(METRICS, **{'object/mAVE': None}))
    del after['AP']['car']
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(make_table(before, after))
    cells = [re.split(r'\s*│\s*', line)[1:5] for line in console.export_text().splitlines()
             if '│' in line]
    assert ['mAVE (velocity, m/s)', '2.0000', '-', '-'] in cells
    assert ['AP car', '0.7500', '-', '-'] in cells


def test_newest_metrics_are_read(tmp_path):
    with pytest.raises(DataError, match='metrics.json'):
        read_metrics(tmp_path)
    for stamp, value in (('20250102_000000', 2.), ('20250101_000000', 1.)):
        (tmp_path / stamp).mkdir()
        (tmp_path / stamp / 'metrics.json').write_text(json.dumps({'object/mAP': value}))
    assert read_metrics(tmp_path) == {'object/mAP': 2.}
