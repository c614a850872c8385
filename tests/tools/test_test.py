"""tools/test.py on the toy task: metrics on disk and on screen, and checkpoints that do not fit."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import toy

from bevfusion_enhanced.checkpoints import read_checkpoint, write_checkpoint

TEST = toy.REPO / 'tools' / 'test.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the toy config and weights for it."""
    folder = tmp_path_factory.mktemp('tests')
    toy.write_config(folder)
    sys.path.insert(0, str(toy.ENGINE_TESTS))
    from toy_task import ToyModel
    torch.manual_seed(0)
    meta = dict(dataset_meta=dict(classes=['car', 'truck']))
    write_checkpoint(dict(state_dict=ToyModel().state_dict(), meta=meta), folder / 'a.pth')
    yield folder
    sys.path.remove(str(toy.ENGINE_TESTS))


@pytest.fixture
def main(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda arguments: toy.load_module(TEST).main(arguments + toy.own_experiment())


def test_metrics_are_written_and_printed(folder, main, capsys):
    assert main(['configs/mini/toy.py', 'a.pth', '--work-dir', 'results']) == 0
    path, = folder.glob('results/*/metrics.json')
    metrics = json.loads(path.read_text())
    assert metrics['map/mean/iou@max'] == 0.5 and metrics['object/car/AOE'] is None
    output = capsys.readouterr().out
    assert '3D detection' in output and 'divider' in output and 'metrics.json' in output
    assert not list(folder.glob('results/load_report.*'))


def test_results_stay_out_of_the_folder_of_the_training(folder, main):
    assert main(['configs/mini/toy.py', 'a.pth']) == 0
    assert list(folder.glob('work_dirs/mini/toy/default/test/*/metrics.json'))


@pytest.mark.parametrize('options, says', [
    (["model.gates=[object]"], 'task_gca.object.*'),
    (['model.width=9'], 'have another shape'),
    (['test_dataloader.dataset.classes=[truck,car]'], 'test with the classes'),
])
def test_weights_that_do_not_fit_are_not_evaluated(folder, main, capsys, options, says):
    arguments = ['configs/mini/toy.py', 'a.pth', '--work-dir', 'refused', '--cfg-options', *options]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and says in error and len(error.splitlines()) == 1
    assert not list(folder.glob('refused/*/metrics.json'))


def test_more_in_the_checkpoint_than_in_the_model_is_fine(folder, main):
    checkpoint = read_checkpoint(folder / 'a.pth')
    checkpoint['state_dict']['heads.map.aux_classifier.weight'] = torch.ones(3)
    write_checkpoint(checkpoint, folder / 'more.pth')
    assert main(['configs/mini/toy.py', 'more.pth', '--work-dir', 'more']) == 0


def test_missing_checkpoint(main, capsys):
    assert main(['configs/mini/toy.py', 'none.pth']) == 2
    assert capsys.readouterr().err == 'error: checkpoint none.pth does not exist; check the path\n'


def test_unreadable_sample_names_itself(main, capsys):
    assert main(['configs/mini/toy.py', 'a.pth', '--work-dir', 'broken', '--cfg-options',
                 'test_dataloader.dataset.broken=5', 'test_dataloader.num_workers=1']) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == 'error: sample 5: LiDAR file a.bin is cut short; copy it again'


def test_mmdetection3ds_own_script(folder, main, monkeypatch, capsys):
    mmdet3d = pytest.importorskip('mmdet3d')
    script = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / 'test.py'
    if not script.is_file():
        pytest.skip('this MMDetection3D was installed without its tools')
    monkeypatch.setattr(sys, 'argv', [str(script), 'configs/mini/toy.py', 'a.pth', '--work-dir',
                                      'theirs'])
    runpy.run_path(str(script), run_name='__main__')
    assert list(folder.glob('theirs/*/*.json'))
