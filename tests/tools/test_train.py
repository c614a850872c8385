"""tools/train.py, and MMDetection3D's own in a process of its own, on the toy task."""
import json
import time
from pathlib import Path

import pytest
import torch
import toy

TRAIN = toy.REPO / 'tools' / 'train.py'


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


def test_a_run_lives_where_its_config_says(trained):
    assert (trained / 'work_dirs/mini/toy/epoch_1.pth').is_file()


def test_the_same_command_again_is_refused_in_one_line(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(toy.ENGINE_TESTS))
    before = (trained / 'work_dirs/mini/toy/epoch_1.pth').read_bytes()
    assert toy.load_module(TRAIN).main(['configs/mini/toy.py']) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: work dir work_dirs') and '--resume' in error
    assert len(error.splitlines()) == 1
    assert (trained / 'work_dirs/mini/toy/epoch_1.pth').read_bytes() == before


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


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path('executed'),)


def test_code_in_a_checkpoint_runs_only_when_it_is_trusted(trained, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy.ENGINE_TESTS))
    toy.write_config(tmp_path)
    checkpoint = torch.load(trained / 'work_dirs/mini/toy/epoch_1.pth', weights_only=False)
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
    assert Path('work_dirs/mini/toy/epoch_1.pth').is_file()


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
        'load_from=work_dirs/mini/toy/epoch_1.pth', 'model.gates=[object]', cwd=trained)
    assert result.returncode == 0, result.stderr
    assert 'task_gca.object: 72 parameters, fresh' in result.stdout
    report = json.loads((trained / 'theirs/load_report.json').read_text())
    assert report['fresh_modules'] == ['task_gca.object']
    assert (trained / 'theirs/epoch_2.pth').is_file()
