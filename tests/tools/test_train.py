"""tools/train.py, and MMDetection3D's own in a process of its own, on the toy task."""
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
import toy

TRAIN = toy.REPO / 'tools' / 'train.py'
RUN = Path('work_dirs/mini/toy/default')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder in which the toy config was trained by the command line."""
    folder = tmp_path_factory.mktemp('runs')
    toy.write_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(toy.ENGINE_TESTS))
        status = toy.load_module(TRAIN).main(
            ['configs/mini/toy.py', *toy.own_experiment(), 'train_cfg.max_epochs=1'])
    assert status == 0
    return folder


def test_help_is_quick(tmp_path):
    start = time.perf_counter()
    result = toy.call(TRAIN, '--help', cwd=tmp_path)
    assert result.returncode == 0 and '--load-from' in result.stdout
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine; torch alone takes longer


def test_a_run_lives_where_its_config_and_tag_say(trained):
    folder = trained / RUN
    assert {path.name for path in folder.iterdir()} >= {
        'checkpoints', 'config.py', 'environment.json', 'history.jsonl', 'status.json'}
    assert (folder / 'checkpoints/epoch_1.pth').is_file() and list(folder.glob('log_*.txt'))
    status = json.loads((folder / 'status.json').read_text())
    assert (status['state'], status['epoch'], status['max_epochs']) == ('finished', 1, 1)
    assert json.loads((folder / 'environment.json').read_text())['packages']['mmengine'] == '0.10.7'


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A copy of the trained folder to go on in: copied() -> main of tools/train.py."""
    shutil.copytree(trained, tmp_path / 'copy')
    monkeypatch.chdir(tmp_path / 'copy')
    monkeypatch.syspath_prepend(str(toy.ENGINE_TESTS))
    main = toy.load_module(TRAIN).main
    return lambda *arguments: main(['configs/mini/toy.py', *arguments, *toy.own_experiment()])


def test_the_same_command_again_goes_on(copied, capsys):
    assert copied() == 0  # the config says two epochs, one is done
    assert 'going on with it' in capsys.readouterr().out
    assert sorted(path.name for path in (RUN / 'checkpoints').glob('*.pth')) == [
        'epoch_1.pth', 'epoch_2.pth']
    starts = [json.loads(line) for line in (RUN / 'history.jsonl').read_text().splitlines()]
    assert [start['epoch'] for start in starts] == [0, 1]
    assert any('train_cfg.max_epochs' in change for change in starts[1]['changes'])
    before = (RUN / 'checkpoints/epoch_2.pth').read_bytes()
    assert copied() == 0 and 'is finished: 2 of 2 epochs' in capsys.readouterr().out
    assert (RUN / 'checkpoints/epoch_2.pth').read_bytes() == before
    assert copied('--epochs', '3') == 0 and (RUN / 'checkpoints/epoch_3.pth').is_file()


def test_another_network_needs_another_tag(copied, capsys):
    status = copied('--cfg-options', 'model.width=16')
    error = capsys.readouterr().err.strip()
    assert status == 2 and 'model.width' in error and '--extra-tag' in error
    assert len(error.splitlines()) == 1
    assert copied('--extra-tag', 'wide', '--cfg-options', 'model.width=16') == 0
    assert (RUN.parent / 'wide/checkpoints/epoch_2.pth').is_file()
    assert copied('--extra-tag', 'a b') == 2


def test_restart_moves_the_old_run_aside(copied, capsys):
    before = (RUN / 'checkpoints/epoch_1.pth').read_bytes()
    assert copied('--restart') == 0
    moved = [path for path in RUN.parent.iterdir() if path.name.startswith('default_')]
    assert len(moved) == 1 and (moved[0] / 'checkpoints/epoch_1.pth').read_bytes() == before
    assert (RUN / 'checkpoints/epoch_2.pth').is_file()


def test_other_weights_are_not_left_out_silently(copied, capsys):
    assert copied('--load-from', str(RUN / 'checkpoints/epoch_1.pth')) == 2
    assert 'began from other weights' in capsys.readouterr().err


def test_going_back_sets_later_checkpoints_aside(copied, capsys):
    assert copied() == 0
    second = (RUN / 'checkpoints/epoch_2.pth').read_bytes()
    assert copied('--ckpt', str(RUN / 'checkpoints/epoch_1.pth')) == 0
    aside = list((RUN / 'checkpoints').glob('superseded_*/epoch_2.pth'))
    assert len(aside) == 1 and aside[0].read_bytes() == second
    assert (RUN / 'checkpoints/epoch_2.pth').is_file()


@pytest.mark.parametrize('arguments, says', [
    (['configs/none.py'], 'config configs/none.py does not exist'),
    (['configs/mini/toy.py', '--work-dir', 'w', '--load-from', 'none.pth'], 'none.pth'),
    (['configs/mini/toy.py', '--work-dir', 'w', '--resume'], 'holds no checkpoint'),
    (['configs/mini/toy.py', '--work-dir', 'w', '--cfg-options', 'oops'], 'key=value'),
    (['configs/mini/toy.py', '--work-dir', 'w', '--cfg-options',
      'train_dataloader.dataset.data_root=none'], 'folder none does not exist'),
])
def test_bad_input_stops_before_anything_is_written(trained, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(toy.ENGINE_TESTS))
    assert toy.load_module(TRAIN).main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and says in error and len(error.splitlines()) == 1
    assert not (trained / 'w').exists()


@pytest.mark.parametrize('break_it, says', [
    (lambda weights: {name: value * float('nan') for name, value in weights.items()}, 'nan|NaN'),
    (lambda weights: {f'layer1.{name}': value for name, value in weights.items()},
     'does not fit this model'),
])
def test_weights_that_are_of_no_use_leave_nothing_behind(copied, capsys, break_it, says):
    weights = torch.load(RUN / 'checkpoints/epoch_1.pth', weights_only=False)['state_dict']
    torch.save(break_it({name: value.float() for name, value in weights.items()}), 'odd.pth')
    assert copied('--extra-tag', 'odd', '--load-from', 'odd.pth') == 2
    assert re.search(says, capsys.readouterr().err) and not (RUN.parent / 'odd').exists()


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path('executed'),)


def test_code_in_a_checkpoint_runs_only_when_it_is_trusted(trained, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy.ENGINE_TESTS))
    toy.write_config(tmp_path)
    checkpoint = torch.load(trained / RUN / 'checkpoints/epoch_1.pth', weights_only=False)
    torch.save({'state_dict': checkpoint['state_dict'], 'extra': Payload()}, 'odd.pth')
    main = toy.load_module(TRAIN).main
    arguments = ['configs/mini/toy.py', '--load-from', 'odd.pth']
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: checkpoint odd.pth') and '--trust-checkpoint' in error
    assert not Path('executed').exists() and not Path('work_dirs').exists()
    status = main([*arguments, '--trust-checkpoint', *toy.own_experiment(),
                   'train_cfg.max_epochs=1'])
    assert status == 0 and Path('executed').exists()
    assert (RUN / 'checkpoints/epoch_1.pth').is_file()


def test_load_from_and_resume_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        toy.load_module(TRAIN).main(['c.py', '--load-from', 'a.pth', '--resume'])
    assert 'not allowed with' in capsys.readouterr().err


def test_mmdetection3ds_own_script_loads_in_part(trained):
    mmdet3d = pytest.importorskip('mmdet3d')
    script = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / 'train.py'
    if not script.is_file():
        pytest.skip('this MMDetection3D was installed without its tools')
    result = toy.call(
        script, 'configs/mini/toy.py', '--work-dir', 'theirs', '--cfg-options',
        f'load_from={RUN}/checkpoints/epoch_1.pth', 'model.gates=[object]', cwd=trained)
    assert result.returncode == 0, result.stderr
    assert 'task_gca.object: 72 parameters, fresh' in result.stdout
    report = json.loads((trained / 'theirs/load_report.json').read_text())
    assert report['fresh_modules'] == ['task_gca.object']
    assert (trained / 'theirs/epoch_2.pth').is_file()
