import importlib.util
import io
import json
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.config import Config
from rich.console import Console

from bevfusion_enhanced.engine.commands.cli import run_cli
from bevfusion_enhanced.errors import CheckpointError, DataError


@pytest.fixture(scope='module')
def demo(repo) -> ModuleType:
    spec = importlib.util.spec_from_file_location('demo', repo / 'tools' / 'demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data_root(demo, tmp_path) -> Path:
    """The smallest folder that counts as a dataset."""
    root = tmp_path / 'synthetic'
    root.mkdir()
    (root / demo.MANIFEST).write_text(json.dumps({'revision': demo.REVISION}))
    for name in demo.INFOS:
        (root / name).touch()
    return root


# ---- folders


def test_a_complete_dataset_needs_no_step(demo, data_root):
    assert demo.data_steps(data_root, workers=2) == []


def test_missing_infos_are_written_again(demo, data_root):
    (data_root / demo.INFOS[1]).unlink()
    step, = demo.data_steps(data_root, workers=2)
    assert step.command == ('tools/create_data.py', '--root-path', str(data_root), '--version',
                            'v1.0-mini')


def test_a_dataset_of_another_simulator_is_refused(demo, data_root):
    (data_root / demo.MANIFEST).write_text(json.dumps({'revision': -1}))
    with pytest.raises(DataError, match=f'{data_root}.*--data-root'):
        demo.data_steps(data_root, workers=2)


def test_a_missing_dataset_is_generated(demo, tmp_path):
    steps = demo.data_steps(tmp_path / 'new', workers=3)
    assert [step.command[0] for step in steps] == ['tools/create_synthetic_nuscenes.py',
                                                   'tools/create_data.py']
    assert steps[0].command[1:] == ('--out', str(tmp_path / 'new'), '--workers', '3')
    (tmp_path / 'new').mkdir()
    assert len(demo.data_steps(tmp_path / 'new', workers=3)) == 2


def test_newest_checkpoint_is_the_one_of_the_last_epoch(demo, tmp_path):
    with pytest.raises(CheckpointError, match='epoch_N.pth'):
        demo.newest_checkpoint(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    for name in ('epoch_9.pth', 'epoch_10.pth', 'epoch_best.pth', 'epoch_11.pth.tmp'):
        (tmp_path / 'checkpoints' / name).touch()
    assert demo.newest_checkpoint(tmp_path).name == 'epoch_10.pth'


def test_paths_are_shown_relative_to_the_repository(demo, repo, tmp_path):
    assert demo.shown(repo / 'data' / 'synthetic') == 'data/synthetic'
    assert demo.shown(tmp_path) == str(tmp_path)


# ---- commands


def test_commands_of_the_two_phases(demo, repo):
    work_dir = repo / 'work_dirs' / 'demo'
    first = demo.train_step('phase3', work_dir, ())
    assert first.command == ('tools/train.py', 'configs/mini/phase3_enhanced_seg.py',
                             '--work-dir', 'work_dirs/demo/phase3')
    checkpoint = work_dir / 'phase3' / 'checkpoints' / 'epoch_5.pth'
    second = demo.train_step('phase4a', work_dir, (), load_from=checkpoint)
    assert second.command == ('tools/train.py', 'configs/mini/phase4a_task_gca.py',
                              '--load-from', 'work_dirs/demo/phase3/checkpoints/epoch_5.pth',
                              '--work-dir', 'work_dirs/demo/phase4a')


def test_evaluation_uses_the_last_checkpoint(demo, tmp_path):
    (tmp_path / 'phase4a' / 'checkpoints').mkdir(parents=True)
    (tmp_path / 'phase4a' / 'checkpoints' / 'epoch_5.pth').touch()
    step = demo.evaluate_step('phase4a', tmp_path, ('--cfg-options', 'a=1'), tmp_path / 'pictures')
    assert step.command == ('tools/test.py', 'configs/mini/phase4a_task_gca.py',
                            f'{tmp_path}/phase4a/checkpoints/epoch_5.pth', '--work-dir',
                            f'{tmp_path}/phase4a/test', '--show-dir', f'{tmp_path}/pictures',
                            '--cfg-options', 'a=1')


def test_another_data_root_reaches_every_part_of_a_config(demo):
    config = Config(dict(
        train=dict(data_root='old/', pipeline=[dict(type='A'), dict(type='B', data_root='old/')]),
        test=[dict(ann_file='old/infos.pkl', other='data/old/'), dict(n=3)]))
    options = demo.root_options(config._cfg_dict, 'old/', '/new/')
    assert options == ['train.data_root=/new/', 'train.pipeline.1.data_root=/new/',
                       'test.0.ann_file=/new/infos.pkl']
    config.merge_from_dict(dict(option.split('=', 1) for option in options))
    assert config.train.pipeline[1] == dict(type='B', data_root='/new/')
    assert config.test[0] == dict(ann_file='/new/infos.pkl', other='data/old/')


# ---- running them


def make_runner(demo: ModuleType, tmp_path: Path) -> tuple:
    stream = io.StringIO()
    return demo.Runner(console=Console(file=stream, width=80), log_dir=tmp_path / 'logs'), stream


def test_a_step_prints_its_command_and_keeps_its_output(demo, tmp_path):
    runner, stream = make_runner(demo, tmp_path)
    runner.run(demo.Step('1_hello', 'say hello', ('-c', 'print("hello [there]")')))
    assert "$ python -c 'print(\"hello [there]\")'" in stream.getvalue()
    assert 'done in 0.0 min' in stream.getvalue()
    assert (tmp_path / 'logs' / '1_hello.txt').read_text() == 'hello [there]\n'
    assert list(runner.minutes) == ['1_hello']


def test_a_failing_step_stops_with_its_status_and_last_line(demo, tmp_path):
    runner, _ = make_runner(demo, tmp_path)
    code = 'import sys; print("start"); sys.exit("error: no such thing")'
    with pytest.raises(demo.StepFailed, match='"fail" ended with exit status 1: '
                                              'error: no such thing') as caught:
        runner.run(demo.Step('2_fail', 'fail', ('-c', code)))
    assert caught.value.status == 1
    with pytest.raises(demo.StepFailed, match='no output') as caught:
        runner.run(demo.Step('3_killed', 'die', ('-c', 'import os; os.kill(os.getpid(), 15)')))
    assert caught.value.status == 128 + 15


def test_the_report_saves_the_summary_and_names_the_files(demo, tmp_path):
    figures = {name: 0.5 for name in ('mAP', 'NDS', 'mIoU', 'mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')}
    figures.update(AP={'car': 0.5}, IoU={'divider': 0.5})
    for name in ('pictures/000001_a.png', 'phase4a/20250101_000000/load_report.json'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    stream = io.StringIO()
    summary = dict(phase3=figures, phase4a=figures, minutes=1.25)
    demo.report(summary, work_dir=tmp_path, pictures=tmp_path / 'pictures',
                console=Console(file=stream, width=80))
    assert json.loads((tmp_path / 'summary.json').read_text()) == summary
    for name in ('summary.json', 'pictures/000001_a.png', 'load_report.json', 'AP car'):
        assert name in stream.getvalue()


STAND_INS = {
    'create_synthetic_nuscenes': """
        root = Path(option('--out')); root.mkdir(parents=True)
        (root / 'synthetic.json').write_text(json.dumps({'revision': REVISION}))""",
    'create_data': """
        for name in INFOS: (Path(option('--root-path')) / name).touch()""",
    'train': """
        work_dir = Path(option('--work-dir')) / 'checkpoints'; work_dir.mkdir(parents=True)
        (work_dir / 'epoch_4.pth').touch(); (work_dir / 'epoch_5.pth').touch()""",
    'test': """
        folder = Path(option('--work-dir')) / '20250101_000000'; folder.mkdir(parents=True)
        value = 0.5 if 'phase4a' in sys.argv[1] else 0.25
        (folder / 'metrics.json').write_text(json.dumps({name: value for name in METRICS}))""",
}
METRICS = ['object/mAP', 'object/NDS', 'object/mATE', 'object/mASE', 'object/mAOE', 'object/mAVE',
           'object/mAAE', 'object/car/AP', 'map/mean/iou@max', 'map/divider/iou@max']


@pytest.fixture
def small_repo(demo, tmp_path, monkeypatch) -> Path:
    """A repository whose tools leave the files that the real ones leave, and note their calls."""
    root = tmp_path / 'repo'
    (root / 'tools').mkdir(parents=True)
    for name, body in STAND_INS.items():
        head = f"""
        import json, sys
        from pathlib import Path
        REVISION, INFOS, METRICS = {demo.REVISION}, {demo.INFOS}, {METRICS}
        option = lambda name: sys.argv[sys.argv.index(name) + 1]
        with open('calls.txt', 'a') as calls: print(*sys.argv, file=calls)"""
        (root / 'tools' / f'{name}.py').write_text(textwrap.dedent(head + body))
    monkeypatch.setattr(demo, 'REPO', root)
    monkeypatch.setattr(demo, 'DATA_ROOT', root / 'data' / 'synthetic')
    return root


def test_the_whole_order(demo, small_repo):
    work_dir = small_repo / 'work_dirs' / 'demo'
    stream = io.StringIO()
    for _ in range(2):
        demo.run_demo(data_root=demo.DATA_ROOT, work_dir=work_dir, workers=2,
                      console=Console(file=stream, width=80))
    first, second = (f'work_dirs/demo/{phase}/checkpoints/epoch_5.pth'
                     for phase in ('phase3', 'phase4a'))
    runs = ['tools/train.py configs/mini/phase3_enhanced_seg.py --work-dir work_dirs/demo/phase3',
            f'tools/train.py configs/mini/phase4a_task_gca.py --load-from {first} '
            '--work-dir work_dirs/demo/phase4a',
            f'tools/test.py configs/mini/phase3_enhanced_seg.py {first} '
            '--work-dir work_dirs/demo/phase3/test',
            f'tools/test.py configs/mini/phase4a_task_gca.py {second} '
            '--work-dir work_dirs/demo/phase4a/test --show-dir work_dirs/demo/pictures']
    assert (small_repo / 'calls.txt').read_text().splitlines() == [
        'tools/create_synthetic_nuscenes.py --out data/synthetic --workers 2',
        'tools/create_data.py --root-path data/synthetic --version v1.0-mini', *runs, *runs]
    assert len(list((small_repo / 'work_dirs').glob('demo_2*/summary.json'))) == 1
    summary = json.loads((work_dir / 'summary.json').read_text())
    assert summary['phase3']['mAP'] == 0.25 and summary['phase4a']['IoU'] == {'divider': 0.5}
    assert 0. <= summary['minutes'] < 1.
    assert all(f'$ python {run}' in stream.getvalue() for run in runs)


def test_the_command_ends_with_one_line(demo, data_root, tmp_path, monkeypatch, capsys):
    (data_root / demo.MANIFEST).write_text('{}')
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--data-root', str(data_root),
                                      '--work-dir', str(tmp_path / 'work')])
    assert run_cli(demo.main) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    assert not (tmp_path / 'work').exists()


def test_the_status_of_a_failing_step_is_the_commands(demo, tmp_path, monkeypatch, capsys):
    step = demo.Step('1_fail', 'fail', ('-c', 'import sys; sys.exit(7)'))
    monkeypatch.setattr(demo, 'data_steps', lambda data_root, workers: [step])
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--work-dir', str(tmp_path / 'work')])
    with pytest.raises(SystemExit) as caught:
        run_cli(demo.main)
    assert caught.value.code == 7
    assert capsys.readouterr().err.startswith('error: the demo stopped: "fail" ended')
