"""The report says the same thing in the log, as a table and in its two files."""
import json
from dataclasses import replace

import torch

from bevfusion_enhanced.checkpoints import report as load_report
from bevfusion_enhanced.checkpoints.class_matching import (
    match_classes,
    partly_fresh,
    rearrange,
)
from bevfusion_enhanced.checkpoints.explain import Change
from bevfusion_enhanced.checkpoints.matching import combine, match
from bevfusion_enhanced.checkpoints.suggestions import suggest


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


def rich_example():
    """Two files, a head with a new class, another geometry, a renamed tensor."""
    model = {'fuser.new': torch.ones(4), 'heads.map.classifier.6.weight': torch.ones(3, 8, 1, 1),
             'neck.w': torch.ones(2)}
    head = {'heads.map.classifier.6.weight': torch.zeros(2, 8, 1, 1)}
    combined = combine([('a.pth', {'fuser.old': torch.ones(4), **head}),
                        ('b.pth', {'neck.w': torch.ones(2), **head})])
    classes = match_classes(model, combined.weights, head='heads.map', class_list='map_classes',
                            new=['x', 'y', 'z'], old=['z', 'gone'], source='a.pth')
    report = match(model, rearrange(combined.weights, [classes], initial=model),
                   sources=['a.pth', 'b.pth'], module_sources=combined.module_sources,
                   shadowed=combined.shadowed, partly_fresh=partly_fresh(model, [classes]))
    change = Change('meaning', 'model.encoders.camera.vtransform.xbound', [-54, 54, 0.3],
                    [-51, 51, 0.3], 'the camera map covers other ground')
    return replace(
        report, origins={'a.pth': 'the original BEVFusion', 'b.pth': 'timm'},
        notes=('a.pth: sparse weights permuted',), meaning=(change,), classes=(classes,),
        suggestions=suggest([(r.key, r.shape) for r in report.missing],
                            [(r.key, r.shape) for r in report.unexpected]))


def test_log_tells_origin_sources_meaning_classes_and_hints():
    assert load_report.log_lines(rich_example()) == [
        'load checkpoint from a.pth',
        'load checkpoint from b.pth',
        'origin of a.pth: the original BEVFusion',
        'origin of b.pth: timm',
        'a.pth: sparse weights permuted',
        'differs in meaning: model.encoders.camera.vtransform.xbound: [-54, 54, 0.3] -> '
        '[-51, 51, 0.3] (the camera map covers other ground)',
        'from a.pth: heads.map',
        'from b.pth: neck',
        'not found in checkpoint: fuser.*',
        'not in the model, not used: fuser.old',
        'heads.map: taken from a.pth, not from b.pth',
        'heads.map: 1 of 3 classes by name; fresh: x, y; not used: gone',
        'not applied, closest of equal shape: fuser.new <- fuser.old',
        'fuser: 4 parameters, fresh',
        'heads.map: 16 of 24 parameters fresh',
    ]


def test_files_hold_what_the_log_says(tmp_path):
    report = rich_example()
    json_path, markdown_path = load_report.save(report, tmp_path)
    read, text = json.loads(json_path.read_text()), markdown_path.read_text()
    assert read['origins'] == {'a.pth': 'the original BEVFusion', 'b.pth': 'timm'}
    assert read['meaning'][0]['new'] == [-51, 51, 0.3]
    assert read['classes'][0]['fresh'] == ['x', 'y'] and read['classes'][0]['kept'] == ['z']
    assert read['partly_fresh'] == [{'key': 'heads.map.classifier.6.weight', 'parameters': 16}]
    assert read['suggestions'] == [{'missing': 'fuser.new', 'unexpected': 'fuser.old'}]
    assert read['modules']['heads.map']['fresh_parameters'] == 16
    assert read['modules']['heads.map']['reused'] == {'tensors': 1, 'parameters': 8}
    assert all(f'- {line}' in text for line in load_report.log_lines(report))
    assert '| heads.map | 1 | . | . | . | 8 of 24 | 33.3% | a.pth |' in text
    assert load_report.table(report).splitlines()[-1].split()[-4:] == ['10', 'of', '30', '33.3%']


def test_many_hints_are_cut_in_the_log_and_whole_in_the_file():
    names = [f'fuser.{i}.weight' for i in range(30)]
    report = replace(example(), suggestions=suggest([(name, (4,)) for name in names],
                                                    [(f'old.{name}', (4,)) for name in names]))
    lines = [line for line in load_report.log_lines(report) if 'not applied' in line]
    assert len(lines) == 10 and lines[0].endswith('fuser.0.weight <- old.fuser.0.weight')
    assert 'and 20 more such pairs, all in load_report.json' in load_report.log_lines(report)
    assert len(load_report.as_dict(report)['suggestions']) == 30
