"""tools/ablate.py: plans, runs, resumes and tables; its tools stood in by quick scripts."""
import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.experiments import ablate as ablate_module
from bevfusion_enhanced.experiments.ablate import AblateOptions, ablate
from bevfusion_enhanced.experiments.ablation import (
    config_of,
    load_rebased,
    read_ablation,
    read_ablations,
)
from bevfusion_enhanced.experiments.run_files import RunFiles
from bevfusion_enhanced.experiments.status import locked

REPO = Path(__file__).resolve().parents[2]

# What the tools do as far as an ablation sees it: a checkpoint, costs and metrics; no imports.
TRAIN = '''
import json, os, pathlib, shutil, signal, sys, time
here = pathlib.Path(__file__).parent
config, run = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])
with open(here / 'calls.txt', 'a') as calls:
    print('train', run.parent.name, run.name, os.environ.get('CUDA_VISIBLE_DEVICES'), *sys.argv[4:],
          file=calls, flush=True)
def saved(*_):
    (run / 'saved').touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, saved)
(run / 'checkpoints').mkdir(parents=True, exist_ok=True)
if 'BROKEN' in config.read_text():
    sys.exit('ValueError: it is broken')
(run / 'began').touch()
while (here / 'slow').exists() and not (run / 'saved').exists():
    time.sleep(0.02)
shutil.copy(here / 'template.pth', run / 'checkpoints/epoch_2.pth')
(run / 'cost.json').write_text(json.dumps(dict(step_seconds=0.5, peak_gb=2.0)))
'''
TEST = '''
import json, pathlib, re, sys
here = pathlib.Path(__file__).parent
text, folder = pathlib.Path(sys.argv[1]).read_text(), pathlib.Path(sys.argv[4])
with open(here / 'calls.txt', 'a') as calls:
    print('test', folder.parent.parent.name, folder.parent.name,
          pathlib.Path(sys.argv[2]).parts[-4], file=calls, flush=True)
seed = int(re.search(r"seed=(\\d+)", text).group(1))
value = float(re.search(r"value=([\\d.]+)", text).group(1)) + seed / 100
out = folder / '20260101_000000'
out.mkdir(parents=True, exist_ok=True)
(out / 'metrics.json').write_text(json.dumps({
    'object/mAP': value, 'object/NDS': value / 2, 'map/mean/iou@max': None,
    'object/car/AOE': None}))
'''
BASE = '''
model = dict(type='ToyModel', value=0.5, sizes=dict(width=4))
width = 8
train_dataloader = dict(dataset=dict(type='ToyDataset'))
test_dataloader = dict(dataset=dict(type='ToyDataset'))
val_dataloader = dict(dataset=dict(type='ToyDataset'))
val_cfg = dict()
val_evaluator = dict(type='ToyMetric')
train_cfg = dict(by_epoch=True, max_epochs=10)
param_scheduler = [dict(type='LinearLR', by_epoch=False, begin=0, end=7),
                   dict(type='CosineAnnealingLR', by_epoch=True, T_max=10, begin=0, end=10)]
default_hooks = dict(checkpoint=dict(type='PartialLoadCheckpointHook', save_best='object/mAP'))
'''


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with tools, two bases and three ablations, of which one only tests."""
    monkeypatch.chdir(tmp_path)
    Path('tools').mkdir()
    Path('tools/train.py').write_text(TRAIN)
    Path('tools/test.py').write_text(TEST)
    torch.save(dict(state_dict={}, meta=dict(iter=16, epoch=2)), 'tools/template.pth')
    Path('base.py').write_text(BASE)
    Path('toy_base.py').write_text(BASE.replace('width = 8', 'width = 2'))
    Path('a').mkdir()
    Path('a/plain.py').write_text(
        "_base_ = '../base.py'\nablation = dict(question='Compared with', reference=True)\n")
    Path('a/wide.py').write_text(
        "_base_ = '../base.py'\nablation = dict(question='A wider model | or so')\n"
        'model = dict(value=0.7, sizes=dict(width={{_base_.width}}))\n')
    Path('a/blind.py').write_text(
        "_base_ = '../base.py'\nablation = dict(question='Blind', trained_as='plain')\n"
        'model = dict(value=0.1)\n')
    monkeypatch.setattr(ablate_module, 'size_of', lambda ablation, root: (1234567, 1.5))
    return tmp_path


def run(*names, seeds=(0, 1), epochs=2, jobs=1, devices=('cpu',), base=None, **changes):
    options = AblateOptions(
        configs=[f'a/{name}.py' for name in names], tools=Path('tools'), base=base,
        base_config=None, epochs=epochs, seeds=seeds, devices=devices, jobs=jobs,
        work_dir=Path('out'))
    return ablate(AblateOptions(**{**vars(options), **changes}), console=Console(quiet=True))


def calls():
    path = Path('tools/calls.txt')
    return path.read_text().splitlines() if path.is_file() else []


def test_everything_runs_once_and_the_table_says_what_came_out(work):
    assert run('plain', 'wide', 'blind') == 0
    assert sorted(line.split(' ')[:3] for line in calls()) == sorted(
        [step, name, f'seed_{seed}'] for seed in (0, 1)
        for step, name in (('train', 'plain'), ('test', 'plain'), ('train', 'wide'),
                           ('test', 'wide'), ('test', 'blind')))
    assert all(line.split()[3] == 'plain' for line in calls() if line.startswith('test blind'))
    lines = Path('out/table.md').read_text().splitlines()
    assert lines[0].startswith('| ablation | what it changes | seeds | mAP | NDS | mAP less ref')
    assert '| 0.505 ± 0.007 | 0.253 ± 0.004 | - | - | 1,234,567 | 1.50 | 0.500 ± 0.000' in lines[2]
    assert '| wide | A wider model \\| or so | 2 | 0.705 ± 0.007' in lines[3]
    assert '| +0.200 ± 0.000 | +0.100 ± 0.000 |' in lines[3]
    assert lines[4].endswith('| - | - |')  # what only tests has no training costs
    table = list(csv.DictReader(Path('out/table.csv').open()))
    assert [row['ablation'] for row in table] == ['plain', 'wide', 'blind']
    assert float(table[1]['mAP less reference mean']) == pytest.approx(0.2)
    assert table[0]['mIoU mean'] == '' and table[0]['reference'] == '1'
    runs = list(csv.DictReader(Path('out/runs.csv').open()))
    assert len(runs) == 6 and float(runs[3]['object/mAP']) == pytest.approx(0.71)
    assert Path('out/table.png').read_bytes().startswith(b'\x89PNG')


def test_the_same_command_does_nothing_twice_and_more_seeds_are_added(work):
    run('plain', seeds=(0,))
    before = calls()
    assert run('plain', seeds=(0,)) == 0 and calls() == before
    assert run('plain', seeds=(0, 1)) == 0
    assert calls()[len(before):] == ['train plain seed_1 ', 'test plain seed_1 plain']
    assert '| 2 | 0.505 ± 0.007 |' in Path('out/table.md').read_text()


def test_what_an_ablation_is_trained_as_is_run_too(work):
    assert run('blind', seeds=(0,)) == 0
    assert [line.split()[:2] for line in calls()] == [
        ['train', 'plain'], ['test', 'plain'], ['test', 'blind']]


def test_jobs_share_the_devices(work):
    torch.save(dict(state_dict={}), 'base.pth')
    assert run('plain', 'wide', seeds=(0, 1), jobs=2, devices=('3', '5'), base='base.pth') == 0
    trained = [line.split(' ') for line in calls() if line.startswith('train')]
    assert {line[3] for line in trained} == {'3', '5'}
    assert all(line[4:] == ['--load-from', 'base.pth'] for line in trained)


def test_a_failure_is_named_and_the_others_go_on(work, capsys):
    Path('a/bad.py').write_text("_base_ = '../base.py'\nmodel = dict(note='BROKEN')\n")
    console = Console(width=300)
    options = AblateOptions(configs=['a/bad.py', 'a/plain.py'], tools=Path('tools'), base=None,
                            base_config=None, epochs=2, seeds=(0,), devices=['cpu'], jobs=1,
                            work_dir=Path('out'))
    assert ablate(options, console=console) == 1
    said = capsys.readouterr().out
    assert 'bad, seed 0 failed: train.py ended with status 1: ValueError: it is broken' in said
    assert '1 of 2 runs done' in said and 'out/bad/seed_0.log' in said
    table = Path('out/table.md').read_text()
    assert '| bad | - | 0 of 1, failed: 0 | - |' in table and '| **plain** |' in table
    Path('tools/train.py').write_text(TRAIN.replace('BROKEN', 'mended'))
    Path('tools/test.py').write_text(TEST)
    before = calls()
    assert run('bad', 'plain', seeds=(0,)) == 0  # what failed is tried again
    assert [line.split()[1] for line in calls()[len(before):]] == ['bad', 'bad']


def test_stopping_saves_and_the_same_command_goes_on(work):
    Path('tools/slow').touch()

    def stop_once_begun():
        while not Path('out/plain/seed_0/began').exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_begun, daemon=True).start()
    assert run('plain', 'wide', seeds=(0,)) == 130
    assert Path('out/plain/seed_0/saved').exists()
    assert calls() == ['train plain seed_0 ']
    Path('tools/slow').unlink()
    assert run('plain', 'wide', seeds=(0,)) == 0
    assert calls()[1:3] == ['train plain seed_0 ', 'test plain seed_0 plain']


def test_killed_in_the_middle_the_same_command_waits_for_what_still_runs_and_goes_on(work):
    Path('tools/slow').touch()
    driver = os.fork()  # what it would import is here already
    if driver == 0:
        run('plain', seeds=(0,))
        os._exit(0)
    deadline = time.monotonic() + 60
    while not Path('out/plain/seed_0/began').exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    seen = calls()
    assert seen == ['train plain seed_0 '] and not Path('out/plain/seed_0.json').exists()

    with locked(RunFiles(Path('out/plain/seed_0'))):  # as the training that outlived it holds it
        again = threading.Thread(target=lambda: run('plain', seeds=(0,)))
        again.start()
        time.sleep(1.0)
        assert calls() == seen
        Path('tools/slow').unlink()
    again.join(timeout=60)
    assert not again.is_alive()
    assert calls()[1:] == ['train plain seed_0 ', 'test plain seed_0 plain']
    assert json.loads(Path('out/plain/seed_0.json').read_text())['metrics']['object/mAP'] == 0.5


@pytest.mark.parametrize('change, says', [
    (dict(epochs=3), r'seed_0 holds a run of other settings .*max_epochs: 2 -> 3'),
    (dict(base='other.pth'), 'the result of another config or of another --base'),
])
def test_a_folder_of_other_settings_is_left_alone(work, change, says):
    torch.save(dict(state_dict={}), 'other.pth')
    run('plain', seeds=(0,))
    before = Path('out/plain/seed_0.py').read_text()
    with pytest.raises(ConfigError, match=says):
        run('plain', **{**dict(seeds=(0,)), **change})
    assert Path('out/plain/seed_0.py').read_text() == before


@pytest.mark.parametrize('change, says', [
    (dict(epochs=0), 'at least 1'), (dict(jobs=0), 'at least 1'),
    (dict(seeds=(1, 1)), 'given twice'), (dict(devices=('gpu',)), 'numbers of GPUs, or cpu'),
    (dict(configs=['a/none.py']), 'a/none.py does not exist'),
    (dict(base_config='none.py'), 'none.py: there is no such file'),
    (dict(base='none.pth'), 'none.pth'),
])
def test_bad_input_starts_nothing(work, change, says):
    with pytest.raises(Exception, match=says) as caught:
        run('plain', **change)
    assert 'Error' in type(caught.value).__name__ and not calls()


def test_the_config_of_a_run_is_evaluated_once_at_its_end(work):
    config = config_of(read_ablation(Path('a/wide.py')), seed=4, epochs=5)
    assert config.train_cfg.max_epochs == 5 and config.randomness.seed == 4
    assert [s.end for s in config.param_scheduler] == [7, 5]
    assert config.val_dataloader is None and config.val_cfg is None
    assert config.default_hooks.checkpoint.save_best is None
    assert config.custom_hooks[-1].type == 'StepCostHook' and config.model.sizes.width == 8


def test_over_another_base_everything_of_the_base_is_the_other_ones(work):
    config = load_rebased(Path('a/wide.py'), 'toy_base.py')
    assert config.model.sizes.width == 2 and config.model.value == 0.7
    Path('a/several.py').write_text("_base_ = ['../base.py']\n")
    with pytest.raises(ConfigError, match='--base-config replaces one base'):
        load_rebased(Path('a/several.py'), 'toy_base.py')
    Path('a/odd.py').write_text("_base_ = '../base.py'\nx = _base_.nothing\n")
    with pytest.raises(ConfigError, match=r'config a/odd.py .*nothing.* \(over --base-config'):
        load_rebased(Path('a/odd.py'), 'toy_base.py')


def test_names_have_to_be_clear(work):
    Path('b').mkdir()
    Path('b/plain.py').write_text("_base_ = '../base.py'\n")
    with pytest.raises(ConfigError, match='same name'):
        read_ablations(['a/plain.py', 'b/plain.py'])
    Path('b/lost.py').write_text("_base_ = '../base.py'\nablation = dict(trained_as='x')\n")
    with pytest.raises(ConfigError, match="trained_as is 'x', but there is no"):
        read_ablations(['b/lost.py'])
    Path('b/typo.py').write_text("_base_ = '../base.py'\nablation = dict(qestion='?')\n")
    with pytest.raises(ConfigError, match='qestion'):
        read_ablations(['b/typo.py'])


@pytest.mark.parametrize('name', sorted(p.name for p in (REPO / 'configs/ablations').glob('*.py')))
def test_every_ablation_asks_something_and_changes_one_thing_at_both_sizes(name):
    from bevfusion_enhanced.checkpoints.config_difference import differences
    path = REPO / 'configs/ablations' / name
    for base in ('phase4a_task_gca.py', 'mini/phase4a_task_gca.py'):
        ablation = read_ablation(path, base_config=str(REPO / 'configs' / base))
        assert ablation.question
        original = read_ablation(REPO / 'configs' / base).config
        changed = {item.key for item in differences(original, ablation.config)
                   if item.key.startswith('model.') or 'dataloader' in item.key}
        things = {'.'.join(key.split('dataset.')[-1].split('.')[:2]) for key in changed}
        assert len(things) == (0 if ablation.reference else 1)
