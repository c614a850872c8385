"""tools/preflight.py and the start scripts: one line a check, nothing started unless agreed to."""
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import toy

TOOLS = toy.REPO / 'tools'
TITLES = ['environment', 'imports', 'config', 'data', 'model', 'checkpoint', 'gates (GCA)',
          'memory (dry run)', 'disk', 'duration']


@pytest.fixture
def preflight(tmp_path, monkeypatch):
    """main of tools/preflight.py in a folder with the toy config."""
    toy.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy.ENGINE_TESTS))
    monkeypatch.setattr(sys, 'stdin', io.StringIO(''))
    main = toy.load_module(TOOLS / 'preflight.py').main
    return lambda *arguments: main(['configs/mini/toy.py', *arguments, *toy.own_experiment()])


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith('[')]


def test_every_check_is_a_line_and_nobody_answering_starts_nothing(preflight, capsys):
    assert preflight() == 0
    out = capsys.readouterr().out
    for number, title in enumerate(TITLES, start=1):
        assert f'[{number}/{len(TITLES)}] ok     {title}: ' in out
    assert 'nothing was started' in out
    assert not Path('work_dirs').exists()


@pytest.mark.parametrize('answer, started', [('y\n', True), ('n\n', False), ('\n', False)])
def test_training_starts_once_agreed_to(preflight, monkeypatch, answer, started):
    monkeypatch.setattr(sys, 'stdin', io.StringIO(answer))
    assert preflight() == 0
    assert Path('work_dirs/mini/toy/default/checkpoints/epoch_2.pth').is_file() == started


def test_yes_asks_nothing_and_the_load_is_reported(preflight, capsys, tmp_path):
    assert preflight('--yes') == 0
    first = 'work_dirs/mini/toy/default/checkpoints/epoch_2.pth'
    capsys.readouterr()
    assert preflight('--yes', '--extra-tag', 'gated', '--load-from', first, '--cfg-options',
                     'model.gates=[object]') == 0
    out = capsys.readouterr().out
    assert 'checkpoint: 9 tensors reused, 2 fresh (task_gca.object)' in out
    assert 'gates (GCA): object: 72 parameters' in out
    report = json.loads(Path('work_dirs/mini/toy/gated/load_report.json').read_text())
    assert report['fresh_modules'] == ['task_gca.object']


@pytest.mark.parametrize('options, title', [
    (['--cfg-options', 'train_dataloader.dataset.ann_file=none.pkl'], 'config'),
    (['--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=100',
      'train_cfg.max_epochs=100'], 'disk'),
])
def test_a_check_that_fails_starts_nothing(preflight, capsys, monkeypatch, options, title):
    usage = shutil.disk_usage('.')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=100))
    assert preflight('--yes', *options) == 2
    captured = capsys.readouterr()
    assert f'FAILED {title}: ' in captured.out and 'nothing was started' in captured.err
    assert not Path('work_dirs').exists()


def test_the_start_script_names_its_config_and_checkpoint(monkeypatch):
    script = toy.load_module(TOOLS / 'phase4a_task_gca.py')
    seen = []
    monkeypatch.setattr(script.preflight, 'main', lambda arguments: seen.append(arguments) or 0)
    assert script.main(['epoch_5.pth', '--yes']) == 0
    assert seen == [[str(toy.REPO / 'configs' / 'phase4a_task_gca.py'), '--yes', '--load-from',
                     'epoch_5.pth']]
    assert script.main([]) == 2 and script.main(['--yes']) == 2


@pytest.mark.skipif(shutil.which('bash') is None, reason='there is no bash to run the script with')
def test_the_shell_script_is_the_same(tmp_path):
    import subprocess
    done = subprocess.run([shutil.which('bash'), str(TOOLS / 'phase4a_task_gca.sh')],
                          capture_output=True, text=True, env={'PYTHON': sys.executable,
                                                               'PATH': '/usr/bin:/bin'})
    assert done.returncode == 2 and 'CKPT' in done.stderr
