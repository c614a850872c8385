"""Runs are found, told apart and ranked from their folders alone."""
import pytest

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.experiments.run_files import config_folder, run_folder
from bevfusion_enhanced.experiments.runs import best_run, list_runs, read_lines, select_runs


@pytest.mark.parametrize('config, folder', [
    ('configs/phase4a.py', 'work_dirs/phase4a'),
    ('/somewhere/configs/mini/phase4a.py', 'work_dirs/mini/phase4a'),
    ('configs/old/configs/x.py', 'work_dirs/x'),
    ('elsewhere/x.py', 'work_dirs/x'),
])
def test_folder_follows_the_configs_path(config, folder):
    assert config_folder(config).as_posix() == folder
    assert run_folder(config, tag='t').as_posix() == f'{folder}/t'


def test_every_run_is_found_and_nothing_within_one(make_run, root):
    outer = make_run('mini/a/default', NDS=[0.1, 0.3, 0.2])
    make_run('mini/a/second')
    make_run('b/default')
    (outer.folder / 'inner').mkdir()
    (outer.folder / 'inner' / 'status.json').write_text('{}')
    (root / 'mini' / 'no_run').mkdir()
    runs = list_runs(root)
    assert [run.name for run in runs] == ['b/default', 'mini/a/default', 'mini/a/second']
    assert runs[1].best['NDS'] == (0.3, 2) and runs[2].best == {} and runs[1].tag == 'default'
    assert runs[1].size >= 1000
    assert list_runs(root / 'nowhere') == []


def test_a_run_is_named_by_its_path_or_the_end_of_it(make_run, root):
    first = make_run('mini/a/default')
    make_run('mini/b/default')
    for name in ('mini/a/default', 'a/default', str(first.folder)):
        assert select_runs(root, [name])[0].files == first
    with pytest.raises(ConfigError, match='fits 2 runs'):
        select_runs(root, ['default'])
    with pytest.raises(ConfigError, match='is no run below'):
        select_runs(root, ['c'])


def test_the_best_run_is_of_those_that_measured(make_run, root):
    make_run('a/x', NDS=[0.1])
    make_run('a/y', NDS=[0.05, 0.4, 0.2])
    make_run('a/z')
    runs = list_runs(root)
    assert best_run(runs, metric='NDS').name == 'a/y'
    assert best_run(runs, metric='mIoU') is None
    with pytest.raises(ConfigError, match='choose one of mAP, NDS, mIoU'):
        best_run(runs, metric='loss')


def test_lines_cut_short_by_a_kill_are_left_out(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"a": 1}\n[1]\n\n{"a": 2}\n{"a": ')
    assert read_lines(path) == [{'a': 1}, {'a': 2}]
    assert read_lines(tmp_path / 'none') == []
