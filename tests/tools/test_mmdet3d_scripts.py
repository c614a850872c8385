"""MMDetection3D's own scripts, those that need no GPU, on our configs.

Left out: `benchmark.py` and the distributed scripts call CUDA whatever the machine has.
"""
import functools
import json
import runpy
import sys
import types
from pathlib import Path

import mmcv.cnn
import mmdet3d
import pytest
from mmengine.config import Config
from mmengine.visualization import Visualizer
from PIL import Image

from bevfusion_enhanced.visualization import BEVFusionVisualizer

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = Path(mmdet3d.__file__).parent / '.mim' / 'tools'
CONFIGS = sorted(path.relative_to(REPO).as_posix() for path in (REPO / 'configs').rglob('*.py')
                 if '_base_' not in path.parts)
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(),
                                reason='this MMDetection3D was installed without its tools')

PLACES = '''
_base_ = {base!r}
data_root = {root!r}
places = dict(LoadBEVMapMasks=dict(data_root=data_root),
              ImageAug3D=dict(resize_lim=[1.1, 1.1]))  # the images of this dataset are 160 x 90
train_pipeline, test_pipeline = (
    [dict(step, **places.get(step['type'], {{}})) for step in steps]
    for steps in (_base_.train_pipeline, _base_.test_pipeline))
one = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    one, dataset=dict(data_root=data_root, pipeline=train_pipeline, indices=[1, 2]))
val_dataloader = dict(one, dataset=dict(data_root=data_root, pipeline=test_pipeline, indices=[1]))
test_dataloader = val_dataloader
val_evaluator = [dict(_base_.val_evaluator[1])]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=10)
default_hooks = dict(logger=dict(interval=1))
'''


@pytest.fixture(scope='module')
def config(mini_nuscenes, tmp_path_factory):
    """phase 4a at toy sizes over the small dataset, as a file."""
    path = tmp_path_factory.mktemp('configs') / 'own.py'
    path.write_text(PLACES.format(base=str(REPO / 'configs/mini/phase4a_task_gca.py'),
                                  root=f'{mini_nuscenes}/'))
    return path


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own():
    forget_visualizers()


def forget_visualizers() -> None:
    """Visualizers of one name are one for a process."""
    for kind in (Visualizer, BEVFusionVisualizer):
        kind._instance_dict.clear()


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script in this process, whose imports it shares; returns what it printed."""
    def run(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str((SCRIPTS / script).parent))
            runpy.run_path(str(SCRIPTS / script), run_name='__main__')
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize('name', CONFIGS)
def test_print_config_prints_what_can_be_read_again(call, name, tmp_path):
    printed = call('misc/print_config.py', REPO / name)
    again = tmp_path / 'again.py'
    again.write_text(printed.split('Config:\n', 1)[1])
    original = Config.fromfile(str(REPO / name), import_custom_modules=False)
    assert Config.fromfile(str(again), import_custom_modules=False).to_dict() == original.to_dict()


@pytest.mark.parametrize('options', [(), ('--aug',)])
def test_browse_dataset_draws_every_sample(call, config, tmp_path, options):
    call('misc/browse_dataset.py', config, '--not-show', '--output-dir', tmp_path / 'pictures',
         '--task', 'multi-modality_det', *options)
    pictures = sorted((tmp_path / 'pictures').iterdir())
    assert [path.name for path in pictures] == ['0.jpg', '1.jpg']
    with Image.open(pictures[0]) as picture:
        assert picture.format == 'JPEG' and picture.width == 1920
        assert len(set(picture.convert('RGB').resize((64, 64)).getdata())) > 200


def test_browse_dataset_looks_into_balanced_classes(call, config, tmp_path):
    """By the pipeline that it is told, which leaves the augmentations out."""
    balanced = tmp_path / 'balanced.py'
    balanced.write_text(f"_base_ = {str(config)!r}\n"
                        'train_dataloader = dict(dataset=dict(_delete_=True, '
                        "type='SeededCBGSDataset', dataset=_base_.train_dataloader.dataset))\n")
    for name, path in (('plain', config), ('balanced', balanced)):
        call('misc/browse_dataset.py', path, '--not-show', '--output-dir', tmp_path / name,
             '--task', 'multi-modality_det')
    drawn = [{path.read_bytes() for path in (tmp_path / name).iterdir()}
             for name in ('plain', 'balanced')]
    assert len(drawn[1]) == 2 and drawn[0] == drawn[1]
    assert len(list((tmp_path / 'balanced').iterdir())) > 2


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    """Folder of a training by MMDetection3D's script."""
    folder = tmp_path_factory.mktemp('theirs')
    forget_visualizers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['train.py', str(config), '--work-dir', str(folder / 'run')])
        runpy.run_path(str(SCRIPTS / 'train.py'), run_name='__main__')
    return folder


def test_train_leaves_a_checkpoint_and_a_log(trained):
    assert (trained / 'run/epoch_1.pth').is_file()
    lines = [json.loads(line) for path in trained.rglob('scalars.json')
             for line in path.read_text().splitlines()]
    assert len([line for line in lines if 'loss/map/divider/focal' in line]) == 2


def test_test_measures_and_draws(call, config, trained):
    call('test.py', config, trained / 'run/epoch_1.pth', '--work-dir', trained / 'test',
         '--show-dir', 'shown', '--task', 'multi-modality_det')
    pictures = list((trained / 'test').glob('*/shown/*.png'))
    assert len(pictures) == 1
    log = next((trained / 'test').rglob('*.log')).read_text()
    assert 'map/mean/iou@max' in log


def test_analyze_logs_reads_what_we_log(call, trained, monkeypatch, tmp_path):
    style = types.ModuleType('seaborn')  # which it asks for a style, and nobody installs
    style.set_style = lambda name: None
    monkeypatch.setitem(sys.modules, 'seaborn', style)
    log = next(path for path in trained.rglob('scalars.json') if 'test' not in path.parts)
    call('analysis_tools/analyze_logs.py', 'plot_curve', log, '--keys', 'loss',
         'heatmap', '--out', tmp_path / 'curve.png', '--backend', 'Agg')
    assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
    printed = call('analysis_tools/analyze_logs.py', 'cal_train_time', log)
    assert 'average iter time' in printed


def test_get_flops_counts_the_lidar_part(call, tmp_path, monkeypatch):
    # by default it prints to what was standard output when it was imported
    monkeypatch.setattr(mmcv.cnn, 'get_model_complexity_info', functools.partial(
        mmcv.cnn.get_model_complexity_info, print_per_layer_stat=False))
    over_toy = tmp_path / 'lidar.py'
    over_toy.write_text(f"_base_ = {str(REPO / 'configs/mini/phase4a_task_gca.py')!r}\n"
                        'model = dict(encoders=dict(camera=None), fuser=None)\n')
    printed = call('analysis_tools/get_flops.py', over_toy, '--modality', 'point',
                   '--shape', 1000, 5)
    assert 'GFLOPs' in printed.split('Flops: ')[1].splitlines()[0]
