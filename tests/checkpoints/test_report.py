"""The report says the same thing in the log, as a table and in its two files."""
import json

import torch

from bevfusion_enhanced.checkpoints import report as load_report
from bevfusion_enhanced.checkpoints.matching import combine, match


def example():
    model = {'fuser.w': torch.ones(4),
             'heads.map.w': torch.ones(2, 3), 'heads.map.b': torch.ones(2),
             'task_gca.object.fc.0.weight': torch.ones(128, 512),
             'task_gca.object.fc.2.weight': torch.ones(512, 128)}
    checkpoint = {'fuser.w': torch.ones(4), 'heads.map.w': torch.ones(5, 3),
                  'heads.map.b': torch.ones(2), 'old.part.w': torch.ones(8)}
    return match(model, checkpoint, sources=['runs/epoch_5.pth'])


def test_log_lines_have_the_words_that_people_search_for():
    assert load_report.log_lines(example()) == [
        'load checkpoint from runs/epoch_5.pth',
        'not found in checkpoint: task_gca.object.*',
        'shape differs: heads.map.w: checkpoint (5, 3), model (2, 3), fresh',
        'not in the model, not used: old.*',
        'heads.map: 6 of 8 parameters fresh',
        'task_gca.object: 131,072 parameters, fresh',
    ]


def test_table_is_aligned_and_adds_up():
    lines = load_report.table(example()).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        'fuser', 'heads.map', 'old', 'task_gca.object', 'all']
    assert lines[-1].split()[1:5] == ['2', '2', '1', '1']
    ends = {line.rindex(' of ') for line in lines[2:]}
    assert len({len(line) for line in lines[2:] if line.endswith('%')}) == 1 and ends
    assert lines[2].endswith('100.0%') and lines[5].endswith('0.0%')


def test_several_sources_are_told_apart():
    combined = combine([('a.pth', {'x.w': torch.ones(1)}),
                        ('b.pth', {'x.w': torch.ones(1), 'y.w': torch.ones(1)})])
    report = match({'x.w': torch.ones(1), 'y.w': torch.ones(1)}, combined.weights,
                   sources=['a.pth', 'b.pth'], module_sources=combined.module_sources,
                   shadowed=combined.shadowed)
    rows = load_report.table(report).splitlines()
    assert rows[2].endswith('a.pth') and rows[3].endswith('b.pth')
    assert 'x: taken from a.pth, not from b.pth' in load_report.log_lines(report)


def test_saved_files_hold_the_whole_report(tmp_path):
    json_path, markdown_path = load_report.save(example(), tmp_path)
    read = json.loads(json_path.read_text())
    assert json_path.name == 'load_report.json' and markdown_path.name == 'load_report.md'
    assert read['modules']['task_gca.object']['missing'] == {'tensors': 2, 'parameters': 131072}
    assert read['mismatched'] == [{'key': 'heads.map.w', 'checkpoint': [5, 3], 'model': [2, 3]}]
    assert read['unexpected'] == ['old.part.w']
    assert '| task_gca.object | . | 2 |' in markdown_path.read_text()
