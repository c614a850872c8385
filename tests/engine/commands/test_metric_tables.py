"""Tables show every class and the means; what is undefined is a dash."""
import io
import json

from rich.console import Console

from bevfusion_enhanced.engine.commands.evaluate import write_metrics
from bevfusion_enhanced.engine.commands.metric_tables import (
    detection_table,
    map_table,
    parts_table,
    print_tables,
)

METRICS = {
    'object/mAP': 0.5, 'object/NDS': 0.41234, 'object/mATE': 0.3, 'object/car/AP': 0.75,
    'object/car/ATE': 0.2, 'object/traffic_cone/AP': 0.25, 'object/traffic_cone/AOE': float('nan'),
    'map/divider/iou@0.35': 0.1, 'map/divider/iou@max': 0.2, 'map/mean/iou@0.35': 0.1,
    'map/mean/iou@max': 0.15, 'extra': 7,
}


def test_tables_hold_every_number_once():
    stream = io.StringIO()
    print_tables(METRICS, Console(file=stream))
    lines = [' '.join(line.replace('│', ' ').replace('┃', ' ').split())
             for line in stream.getvalue().splitlines()]
    for row in ('class AP ATE ASE AOE AVE AAE', 'car 0.750 0.200 - - - -',
                'traffic_cone 0.250 - - - - -', 'mean 0.500 0.300 - - - -', 'NDS 0.412',
                'class 0.35 max', 'divider 0.100 0.200', 'mean 0.100 0.150', 'extra: 7'):
        assert row in lines


def test_a_task_that_was_not_evaluated_has_no_table():
    assert detection_table({'map/mean/iou@max': 1.0}) is None
    assert map_table({'object/mAP': 1.0}) is None


def test_metrics_file_is_strict_json(tmp_path):
    path = write_metrics(METRICS, tmp_path / 'a' / 'metrics.json')
    read = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert read['object/traffic_cone/AOE'] is None and read['object/NDS'] == 0.41234


def test_parts_of_the_set_have_a_table_of_their_own(capsys):
    metrics = {'map/divider/iou@0.50': 0.5, 'map/mean/iou@max': 0.5,
               'map/0-15m/divider/iou@0.50': 0.25, 'map/0-15m/mean/iou@0.50': 0.125,
               'map/night/divider/iou@0.50': 0.75, 'map/night/divider/iou@max': 0.99,
               'object/0-15m/car/AP': 0.375}
    table = parts_table(metrics, task='map', column='iou@0.50', title='parts')
    assert [column.header for column in table.columns] == ['class', '0-15m', 'night']
    rows = [list(column.cells) for column in table.columns]
    assert rows == [['divider', 'mean'], ['0.250', '0.125'], ['0.750', '-']]
    assert parts_table(metrics, task='object', column='ATE', title='parts') is None
    print_tables(metrics)
    printed = capsys.readouterr().out
    assert '0.375' in printed and '0.990' not in printed and '0-15m' in printed


def test_a_figure_of_the_parts_follows_in_a_line(capsys):
    print_tables({'object/car/AP': 0.5, 'object/0-15m/car/AP': 0.375, 'object/night/car/AP': 0.25,
                  'object/day/mean/AP': 0.625, 'object/day/mean/NDS': 0.875,
                  'object/night/mean/NDS': 0.125})
    printed = ' '.join(capsys.readouterr().out.split())
    assert 'NDS day 0.875, night 0.125' in printed and '0.250' in printed and '0.625' in printed
