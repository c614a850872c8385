"""`record.md` tells what was measured; `metrics.jsonl` has no gaps and no repeats."""
import json
import math

from bevfusion_enhanced.monitoring.diagnosis import diagnose
from bevfusion_enhanced.monitoring.metrics_log import MetricsLog
from bevfusion_enhanced.monitoring.record import Record, render, write_record

SECTIONS = ['Training', 'Losses', 'Gradient stability', 'Progress', 'Warnings', 'Diagnosis',
            'What to try next', 'Open questions for the next validation']
NEWEST = {
    'epoch': 3.0, 'losses.total.mean': 2.5, 'losses.total.first': 3.0, 'losses.total.last': 2.0,
    'losses.term.loss/map/a.b/focal.mean': 0.25, 'losses.term.loss/map/a.b/focal.first': 0.5,
    'losses.term.loss/map/a.b/focal.last': 0.125, 'losses.task.map.mean': 0.25,
    'losses.task.map.share': 0.1, 'losses.task.map.auxiliary': 1.5,
    'losses.task.map.auxiliary_ratio': 6.0, 'losses.task.map.auxiliary.aux': 1.5,
    'losses.layer.object.0': 1.75, 'gradients.total.median': 7.5, 'gradients.total.max': 90.0,
    'gradients.total.max_step': 77.0, 'gradients.module.decoder.neck.share': 0.625,
    'gradients.total.share_over_warn': 0.01, 'gradients.clipped.share': 0.5,
    'steps.nonfinite': 2.0, 'updates.module.decoder.neck.mean': 0.001,
    'cosine.object~map.mean': -0.05, 'learning_rate.fresh.last': 2e-4,
    'classes.object.car.truths': 12.0, 'validation.object.valid': 34.0,
    'validation.metric.object/mAP': 0.321}


def record(**changes):
    settings = dict(info={'run': 'x', 'weights from': 'a.pth'}, changes=['lr: 1 -> 2'], epoch=3,
                    max_epochs=20, iteration=300, history=[{'epoch': 2.0}, NEWEST],
                    findings=diagnose(NEWEST),
                    events=[dict(epoch=2, iter=150, event='step skipped', samples=['t1', 't2'])])
    return Record(**{**settings, **changes})


def section(text, title):
    return text.split(f'## {title}\n')[1].split('\n## ')[0]


def test_every_section_and_figure_is_there():
    text = render(record())
    assert [line[3:] for line in text.splitlines() if line.startswith('## ')] == SECTIONS
    assert 'weights from: a.pth' in text and 'lr: 1 -> 2' in section(text, 'Training')
    assert '| loss/map/a.b/focal | 0.25 | 0.5 | 0.125 |' in text
    assert '| map | 0.25 | 10.0% | - | 1.5 | 6 |' in text
    assert '| map | aux | 1.5 |' in text and '| object | 0 | 1.75 |' in text
    assert '| decoder.neck | 62.5% |' in section(text, 'Gradient stability')
    assert '| object~map | -0.05 |' in text and '| module decoder.neck | 0.001 |' in text
    assert '| 3 | 2.5 | 7.5 | 2 | 0.321 |' in section(text, 'Progress')
    assert 'samples: t1, t2' in section(text, 'Warnings')
    assert 'auxiliary losses of map are 6.0 times' in section(text, 'Diagnosis')
    assert 'losses.task.map.auxiliary = 1.5' in section(text, 'Diagnosis')
    assert 'model.heads.map.aux_weight' in section(text, 'What to try next')
    assert 'Is object/mAP above 0.321, its best so far, of epoch 3?' in section(text, SECTIONS[-1])
    better = record(history=[{'epoch': 2.0, 'validation.metric.object/mAP': 0.5}, NEWEST])
    assert 'Is object/mAP above 0.5, its best so far, of epoch 2?' in render(better)


def test_many_findings_alike_are_one_paragraph_and_what_is_refuted_is_not_advised():
    classes = {f'validation.class.map.c{i}': 0.0 for i in range(3)}
    newest = {'epoch': 9.0, 'validation.object.valid': 0.0, 'weights.changed': 0.0, **classes}
    text = render(record(history=[newest], findings=diagnose(newest)))
    assert text.count('never predicted in validation; the same of map.c1, map.c2') == 2
    assert 'Do AP or IoU of map.c0 leave zero? The same of map.c1, map.c2.' in text
    assert 'damaged (measurements speak against it) - weights.changed = 0' in text
    assert 'go back to an earlier checkpoint' not in text and '`' not in text
    assert 'model.heads.map.loss_weight=dict(c0=2.0)' in section(text, 'What to try next')


def test_long_lists_are_cut_but_for_the_samples():
    names = [f'n{i}' for i in range(9)]
    text = render(record(events=[dict(epoch=1, iter=2, event='e', samples=names, modules=names)]))
    assert 'samples: n0, n1, n2, n3, n4, n5, n6, n7, n8; modules: n0, n1, n2, n3 and 5 more' in text


def test_a_run_that_has_just_begun_and_one_that_was_stopped():
    text = render(record(history=[], findings=(), events=[], changes=[]))
    assert 'No epoch is finished yet.' in text and 'healthy' in section(text, 'Diagnosis')
    assert '**stopped**: too sick' in render(record(stopped='too sick'))


def test_it_is_written_whole(tmp_path):
    path = write_record(record(), tmp_path / 'new')
    assert path.read_text() == render(record())
    assert [p.name for p in path.parent.iterdir()] == ['record.md']


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_metrics(tmp_path):
    log = MetricsLog(tmp_path)
    log.write('train', epoch=1, iteration=5, values=dict(loss=math.nan, names=('a', 1)))
    assert lines(log.path) == [dict(kind='train', epoch=1, iter=5, loss=None, names=['a', 1])]


def test_what_a_resumed_run_writes_again_is_taken_out(tmp_path):
    log = MetricsLog(tmp_path)
    assert log.cut(iteration=0) == 0
    for iteration in (5, 10, 15):
        log.write('train', epoch=1, iteration=iteration, values={})
    with log.path.open('a') as file:
        file.write('{"kind": "tra')
    assert log.cut(iteration=10) == 2
    assert [line['iter'] for line in lines(log.path)] == [5, 10]
    dropped = (tmp_path / 'metrics.dropped.jsonl').read_text().splitlines()
    assert json.loads(dropped[0])['iter'] == 15 and dropped[1] == '{"kind": "tra'
    assert log.cut(iteration=10) == 0


def test_a_validation_done_again_replaces_its_line(tmp_path):
    log = MetricsLog(tmp_path)
    log.write('epoch', epoch=1, iteration=5, values={})
    for value in (0.1, 0.2):
        log.write('val', epoch=1, iteration=5, values={'object/mAP': value}, again=True)
    assert [(line['kind'], line.get('object/mAP')) for line in lines(log.path)] == [
        ('epoch', None), ('val', 0.2)]
