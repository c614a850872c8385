"""The commands of tools/experiments.py, on folders as trainings leave them."""
import csv
import io

import pytest
from rich.console import Console

from bevfusion_enhanced.checkpoints import write_checkpoint
from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.experiments import commands
from bevfusion_enhanced.experiments.status import FAILED


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def said(console):
    return console.file.getvalue()


def test_list_has_a_line_for_every_run(make_run, root, console):
    make_run('a/x', NDS=[0.25])
    make_run('a/y', state=FAILED, reason='disk full')
    commands.list_all(root=root, console=console)
    assert '0.2500 (e1)' in said(console) and '1/3' in said(console)
    assert 'failed' in said(console) and 'disk full' in said(console)


def test_compare_shows_what_differs_and_only_that(make_run, root, console, tmp_path):
    make_run('a/x', NDS=[0.25], lr=0.1)
    make_run('a/y', NDS=[0.5], lr=0.2, width=128)
    commands.compare(['x', 'y'], root=root, png=tmp_path / 'curves.png', console=console)
    text = said(console)
    assert 'optim_wrapper.optimizer.lr' in text and 'model.fuser.out_channels' in text
    assert 'ConvFuser' not in text and 'work_dir' not in text.replace(str(tmp_path), '')
    assert '0.5000 (e1)' in text
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(ConfigError, match='at least two'):
        commands.compare(['x'], root=root, png=tmp_path / 'c.png', console=console)


def test_compare_leaves_out_variables_that_no_runner_reads(make_run, root, console, tmp_path):
    for name, classes in (('x', 10), ('y', 11)):
        config = make_run(f'a/{name}', NDS=[0.25], lr=classes / 100).config
        config.write_text(f'{config.read_text()}\nnumber_of_classes = {classes}\n')
    commands.compare(['x', 'y'], root=root, png=tmp_path / 'curves.png', console=console)
    assert 'optimizer.lr' in said(console) and 'number_of_classes' not in said(console)


def test_best_names_the_run_and_its_checkpoint(make_run, root, console):
    make_run('a/x', NDS=[0.25])
    make_run('a/y', NDS=[0.2])
    commands.best('NDS', root=root, console=console)
    assert 'after epoch 1: a/x' in said(console) and 'epoch_1.pth' in said(console)
    with pytest.raises(ConfigError, match='has measured mAP'):
        commands.best('mAP', root=root, console=console)


def test_export_agrees_with_the_list_and_overwrites_nothing(make_run, root, console, tmp_path):
    make_run('a/x', NDS=[0.25])
    make_run('a/y', reason='a | b, c')
    for name in ('runs.csv', 'runs.md'):
        commands.export(tmp_path / name, root=root, force=False, console=console)
        with pytest.raises(ConfigError, match='--force'):
            commands.export(tmp_path / name, root=root, force=False, console=console)
    rows = list(csv.DictReader((tmp_path / 'runs.csv').open()))
    assert [row['run'] for row in rows] == ['a/x', 'a/y']
    assert (float(rows[0]['NDS']), int(rows[0]['NDS_epoch'])) == (0.25, 1)
    assert rows[1]['NDS'] == '' and rows[1]['why'] == 'a | b, c'
    assert rows[0]['tag'] == 'x' and int(rows[0]['bytes']) > 1000
    assert '| a/x | finished | 1/3 | - | 0.2500 (e1) |' in (tmp_path / 'runs.md').read_text()
    with pytest.raises(ConfigError, match='.csv or .md'):
        commands.export(tmp_path / 'runs.xls', root=root, force=False, console=console)


def test_show_names_the_files(make_run, root, console):
    files = make_run('a/x', NDS=[0.25])
    files.history.write_text('{"time": "2026-11-20", "command": "train.py a.py", '
                             '"changes": ["lr 0.1 -> 0.2"]}\n')
    commands.show('a/x', root=root, console=console)
    for text in ('train.py a.py', 'lr 0.1 -> 0.2', 'epoch_1.pth', 'config.py', 'metrics.jsonl'):
        assert text in said(console)


def test_no_runs_is_one_clear_line(root, console):
    with pytest.raises(ConfigError, match='no runs below'):
        commands.list_all(root=root, console=console)


@pytest.mark.parametrize('answer, deleted', [('n', 0), ('', 0), (None, 0), ('y', 1)])
def test_prune_asks_and_deletes_when_told(make_run, root, console, monkeypatch, answer, deleted):
    files = make_run('a/x')
    old, new = files.checkpoints / 'epoch_1.pth', files.checkpoints / 'epoch_2.pth'
    for epoch, path in enumerate((old, new), start=1):
        write_checkpoint(dict(meta=dict(epoch=epoch, iter=10 * epoch), state_dict={}), path)
    monkeypatch.setattr('sys.stdin', io.StringIO('' if answer is None else f'{answer}\n'))
    commands.prune([], root=root, keep=1, yes=False, console=console)
    assert '[y/N]' in said(console) and new.is_file()
    assert old.is_file() == (not deleted)
