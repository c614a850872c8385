"""What tools/test.py keeps of the mini model, scored again by tools/eval_saved.py."""
import json
import runpy
import sys
from pathlib import Path

import mmdet3d
import pytest
import toy
from untrained_mini import write_untrained_mini


def test_main(arguments: list) -> int:
    return toy.load_module(toy.REPO / 'tools' / 'test.py').main(arguments + toy.own_experiment())


test_main.__test__ = False


def eval_main(arguments: list) -> int:
    return toy.load_module(toy.REPO / 'tools' / 'eval_saved.py').main(arguments)


@pytest.fixture(scope='module')
def folder(mini_nuscenes, tmp_path_factory) -> Path:
    """The mini config, and untrained weights whose boxes and maps are not empty."""
    folder = tmp_path_factory.mktemp('saved')
    write_untrained_mini(folder, mini_nuscenes, indices=[1, 2])
    return folder


def run_test(folder: Path, name: str, *options: str) -> Path:
    """The folder of a test's results; metrics.json lies above it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert test_main(['mini.py', 'a.pth', '--work-dir', name, *options]) == 0
    return next((folder / name).glob('*/metrics.json')).parent / 'results'


@pytest.fixture(scope='module')
def results(folder) -> Path:
    return run_test(folder, 'plain', '--save-masks')


def metrics_of(results: Path) -> dict:
    return json.loads((results.parent / 'metrics.json').read_text())


def test_kept_results_score_the_same(folder, results, tmp_path, capsys):
    files = {path.name for path in results.iterdir()}
    assert files == {'results_nusc.json', 'results_nusc.about.json', 'metrics_summary.json',
                     'map_results.npz', 'map_masks'}
    assert len(list((results / 'map_masks').iterdir())) == 2
    before = metrics_of(results)
    assert any(key.startswith('map/0-15m/') for key in before) and 'object/NDS' in before
    for task in ('map', 'object'):  # of which the one scene is
        assert any(key.startswith((f'{task}/day/', f'{task}/night/')) for key in before)
    assert eval_main([str(folder / 'mini.py'), str(results), '--out', str(tmp_path / 'a.json')]) \
        == 0
    assert json.loads((tmp_path / 'a.json').read_text()) == before
    said = capsys.readouterr().out
    assert 'protocol:' in said and 'checkpoint a.pth' in said and '15-30m' in said
    assert eval_main(['none', str(results.parent), '--out', str(tmp_path / 'b.json')]) == 0
    assert json.loads((tmp_path / 'b.json').read_text()) == before


def test_the_submission_is_the_official_form_alone(results):
    content = json.loads((results / 'results_nusc.json').read_text())
    assert content.keys() == {'meta', 'results'} and len(content['results']) == 2
    assert content['meta'].keys() == {'use_camera', 'use_lidar', 'use_radar', 'use_map',
                                      'use_external'}
    about = json.loads((results / 'results_nusc.about.json').read_text())
    assert about['protocol']['class_range']['car'] == 50
    assert about['protocol']['version'] == 'v1.0-mini' and about['conditions']['tta'] is False
    assert 'torch' in about['conditions']['software']


@pytest.mark.parametrize('override, says', [
    ('test_evaluator.1.thresholds=[0.3,0.5]', 'thresholds: saved [0.35'),
    ('test_dataloader.dataset.indices=[1,3]', 'samples: saved 2 of'),
    ('test_evaluator.0.rings=[[0,20]]', 'rings: saved')])
def test_other_rules_are_refused(folder, results, capsys, override, says):
    arguments = [str(folder / 'mini.py'), str(results), '--cfg-options', override]
    assert eval_main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and says in error and '--anyway' in error
    assert len(error.splitlines()) == 1
    assert eval_main([*arguments, '--anyway']) == 0
    assert 'scored by the saved rules' in capsys.readouterr().out


def test_other_rings(results, tmp_path):
    assert eval_main(['none', str(results), '--rings', '0,20,40',
                      '--out', str(tmp_path / 'a.json')]) == 0
    found = json.loads((tmp_path / 'a.json').read_text())
    assert any(key.startswith('map/20-40m/') for key in found)
    assert any(key.startswith('object/0-20m/') for key in found)
    assert not any('15-30m' in key for key in found)
    assert found['map/mean/iou@max'] == metrics_of(results)['map/mean/iou@max']


def test_a_submission_of_elsewhere(folder, results, mini_nuscenes, tmp_path, capsys):
    alone = tmp_path / 'theirs.json'
    alone.write_bytes((results / 'results_nusc.json').read_bytes())
    assert eval_main(['none', str(alone)]) == 2
    assert '--data-root and --version' in capsys.readouterr().err
    assert eval_main(['none', str(alone), '--data-root', str(mini_nuscenes), '--version',
                      'v1.0-mini', '--out', str(tmp_path / 'a.json')]) == 0
    found = json.loads((tmp_path / 'a.json').read_text())
    assert found == {key: value for key, value in metrics_of(results).items()
                     if key.startswith('object/')}


@pytest.mark.parametrize('content, says', [
    (None, 'holds no results'), ('{}', 'is no nuScenes submission'), ('{', 'is no JSON'),
    ('{"meta": {}, "results": {"none": []}}', 'are not in the tables')])
def test_results_that_are_none(mini_nuscenes, tmp_path, capsys, content, says):
    path = tmp_path / 'results_nusc.json'
    if content is not None:
        path.write_text(content)
    assert eval_main(['none', str(tmp_path), '--data-root', str(mini_nuscenes), '--version',
                      'v1.0-mini']) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1


def test_views_and_failures_are_said_with_the_result(folder, results):
    """And change it, while its rules stay the same."""
    other = run_test(folder, 'other', '--tta', '--corrupt', 'cameras=2', 'beams=4',
                     '--cfg-options', 'test_dataloader.dataset.indices=[1,2]')
    about = json.loads((other / 'results_nusc.about.json').read_text())
    assert about['conditions']['tta'] is True
    assert about['conditions']['corrupt'] == ['cameras=2', 'beams=4']
    assert about['protocol'] == json.loads(
        (results / 'results_nusc.about.json').read_text())['protocol']
    assert metrics_of(other)['map/mean/iou@0.50'] != metrics_of(results)['map/mean/iou@0.50']


def test_mmdetection3ds_own_script_merges_views(folder, results, monkeypatch):
    """By `tta_pipeline` and `tta_model` of the config; one view alone is the plain test."""
    script = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / 'test.py'
    if not script.is_file():
        pytest.skip('this MMDetection3D was installed without its tools')
    views = (folder / 'mini.py').read_text() + """
tta_pipeline = [*test_pipeline[:-2], dict(type='TestTimeAug', transforms=[
    [dict(type='BEVView')], *[[step] for step in test_pipeline[-2:]]])]
tta_model = dict(type='BEVFusionTTAModel', map_scope=[_base_.map_bound, _base_.map_bound],
                 box_merge='nms', iou_threshold=1.0)
"""
    (folder / 'views.py').write_text(views)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', [str(script), 'views.py', 'a.pth', '--tta', '--work-dir',
                                      'theirs', *toy.own_experiment()])
    runpy.run_path(str(script), run_name='__main__')
    path, = folder.glob('theirs/*/*.json')
    found, expected = json.loads(path.read_text()), metrics_of(results)
    assert found['map/mean/iou@0.50'] == pytest.approx(expected['map/mean/iou@0.50'], abs=1e-6)
    assert found['object/NDS'] == pytest.approx(expected['object/NDS'], abs=1e-6)


@pytest.mark.parametrize('options, says', [
    (['--corrupt', 'fog'], '--corrupt fog: unknown'),
    (['--tta', '--show-dir', 'pictures'], '--show-dir')])
def test_flags_that_do_not_fit(folder, monkeypatch, capsys, options, says):
    monkeypatch.chdir(folder)
    assert test_main(['mini.py', 'a.pth', '--work-dir', 'wrong', *options]) == 2
    assert says in capsys.readouterr().err
    assert not (folder / 'wrong').exists()
