"""A killed and resumed run is the same, bit for bit, as one that never stopped."""
import itertools
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import (
    CONFIG,
    Child,
    assert_same,
    assert_same_runs,
    events,
    one_thread,
    scalar_lines,
    start_group,
    trained,
)

_NUMBER = itertools.count()
_KILLS = 10  # for each of two kinds of run

BY_ITERATIONS = (
    'default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=5',
    'optim_wrapper.accumulative_counts=3', 'default_hooks.checkpoint.save_best=mAP')
WITH_WORKERS = (
    'train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True',
    'default_hooks.checkpoint.max_keep_ckpts=2', 'optim_wrapper.accumulative_counts=4')


@pytest.fixture(scope='module', autouse=True)
def _imported():
    """What a training imports once it runs, so that no child has to."""
    import torch._inductor  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from mmdet3d.utils import register_all_modules
    register_all_modules(init_default_scope=False)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a training in a child: start(work_dir, 'key=value', ...); it resumes where it can."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, True))
    config = Path('configs', 'exact.py')
    config.parent.mkdir()
    config.write_text(CONFIG)

    started = []

    def begin(work_dir, *overrides, processes=1):
        output = tmp_path / f'output_{next(_NUMBER)}.txt'
        if processes == 1:
            children = [Child(lambda: train(config, work_dir, overrides, 'none'), output)]
        else:
            children = start_group(lambda: train(config, work_dir, overrides, 'pytorch'), output,
                                   processes)
        started.extend(children)
        return children[0] if processes == 1 else children

    with one_thread():
        yield begin
    for child in started:
        child.end()


@pytest.fixture
def finish(start):
    """Train to the end, and return what was printed."""
    def run(work_dir, *overrides, processes=1):
        children = start(work_dir, *overrides, processes=processes)
        children = [children] if processes == 1 else children
        assert [child.wait() for child in children] == [0] * processes, children[0].text()
        return children[0].text()

    return run


def train(config, work_dir, overrides, launcher):
    """Train in this process: from the newest checkpoint where there is one, else from nothing."""
    from mmengine.runner import Runner

    from bevfusion_enhanced.engine.commands.train import TrainOptions, resolve
    from bevfusion_enhanced.engine.configuration.config import make_deterministic
    from bevfusion_enhanced.engine.runs.run_folder import list_checkpoints
    resume = 'auto' if list_checkpoints(work_dir) else None
    config = resolve(TrainOptions(config=str(config), work_dir=str(work_dir), overrides=overrides,
                                  resume=resume, launcher=launcher))
    make_deterministic(config)
    config.experiment_name = f'exact_{next(_NUMBER)}'
    Runner.from_cfg(config).train()


@pytest.mark.parametrize(('overrides', 'last'), [
    (BY_ITERATIONS, 'iter_24.pth'), (WITH_WORKERS, 'epoch_4.pth')],
    ids=['by iterations', 'by epochs with workers'])
def test_killed_at_random_moments(start, finish, overrides, last):
    before = time.monotonic()
    finish('whole', *overrides)
    duration = time.monotonic() - before

    moments, folders = random.Random(0), (Path(f'killed_{n}') for n in itertools.count())
    kills, folder = 0, next(folders)
    while kills < _KILLS:
        child = start(folder, *overrides)
        time.sleep(moments.uniform(0.2, 0.9) * duration)
        child.send(signal.SIGKILL)
        code = child.wait()
        assert code in (0, -signal.SIGKILL), child.text()
        kills += code != 0
        if code == 0:  # it was done before
            assert_same_runs(Path('whole'), folder, last)
            folder = next(folders)
    finish(folder, *overrides)
    assert_same_runs(Path('whole'), folder, last)


def test_every_checkpoint_is_one_to_go_on_from(finish):
    overrides = (*BY_ITERATIONS, 'train_cfg.max_epochs=2')
    finish('whole', *overrides)
    names = {path.name for path in Path('whole').glob('iter_*.pth')}
    assert names == {'iter_5.pth', 'iter_6.pth', 'iter_10.pth', 'iter_12.pth'}
    for name in names:  # iter_6.pth was written at the end of a validation
        folder = Path(f'from_{name}')
        shutil.copytree('whole', folder)
        for other in names - {name}:
            (folder / other).unlink()
        finish(folder, *overrides)
        assert_same_runs(Path('whole'), folder, 'iter_12.pth')


def test_workers_change_nothing(finish):
    for workers in (0, 1, 2):
        finish(f'workers_{workers}', 'train_cfg.max_epochs=2',
               f'train_dataloader.num_workers={workers}')
        assert_same_runs(Path('workers_0'), Path(f'workers_{workers}'), 'epoch_2.pth')


def test_resume_in_mid_epoch_reads_no_sample_again(finish, tmp_path):
    stop = ('default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=4',
            'train_cfg.max_epochs=1')
    finish('whole', *stop, f'train_dataloader.dataset.record={tmp_path / "whole.txt"}')
    order = (tmp_path / 'whole.txt').read_text().split()
    assert sorted(order, key=int) == [str(index) for index in range(22)]

    Path('whole', 'iter_6.pth').unlink()  # iter_4.pth is the newest now
    finish('whole', *stop, f'train_dataloader.dataset.record={tmp_path / "rest.txt"}')
    assert (tmp_path / 'rest.txt').read_text().split() == order[16:]


def send(name, stage, iteration, **options):
    """Overrides that make the training signal itself."""
    hook = dict(type='SignalHook', name=name, stage=stage, iteration=iteration, **options)
    pairs = ','.join(f'{key}={value}' for key, value in hook.items())
    return (f'default_hooks.signal.{pair}' for pair in pairs.split(','))


@pytest.mark.parametrize(('name', 'code', 'stage', 'iteration', 'stopped_at'), [
    ('SIGTERM', 143, 'before_train_iter', 8, 'iter_9.pth'),
    ('SIGINT', 130, 'after_train_epoch', 12, 'epoch_2.pth'),
    ('SIGTERM', 143, 'before_val_iter', 12, 'epoch_2.pth'),
    ('SIGINT', 130, 'before_val_epoch', 6, 'iter_6.pth'),
])
def test_signal_saves_and_stops(start, finish, name, code, stage, iteration, stopped_at):
    common = ('default_hooks.checkpoint.interval=2', 'optim_wrapper.accumulative_counts=4')
    finish('whole', *common)
    child = start('stopped', *common, *send(name, stage, iteration))
    assert child.wait() == code, child.text()
    assert f'stopped by {name}; go on with' in child.text()
    assert Path('stopped', stopped_at).is_file()
    assert Path('stopped', 'last_checkpoint').read_text().endswith(stopped_at)
    finish('stopped', *common)
    assert_same_runs(Path('whole'), Path('stopped'), 'epoch_4.pth')


@pytest.mark.parametrize(('name', 'code'), [('SIGTERM', 143), ('SIGINT', 130)])
def test_signal_to_the_group_spares_the_workers(start, finish, name, code):
    common = ('train_dataloader.num_workers=2', 'train_cfg.max_epochs=2')
    slow = 'train_dataloader.dataset.pause=0.1'  # seconds a sample: workers are always at work
    finish('whole', *common)
    child = start('stopped', *common, slow)
    wait_for(lambda: 'Epoch(train) [1][2/6]' in child.text())
    child.send_group(getattr(signal, name))
    assert child.wait() == code, child.text()
    finish('stopped', *common)
    assert_same_runs(Path('whole'), Path('stopped'), 'epoch_2.pth')


def test_second_signal_stops_at_once(start):
    child = start('stopped', 'train_dataloader.dataset.pause=60')
    wait_for(lambda: 'Checkpoints will be saved' in child.text())
    time.sleep(0.2)
    child.send(signal.SIGTERM)
    wait_for(lambda: 'a second signal stops at once' in child.text())
    child.send(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert not list(Path('stopped').glob('*.pth'))


# Several processes.

GROUP = ('default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=4',
         'optim_wrapper.accumulative_counts=3', 'train_dataloader.batch_size=2',
         'train_dataloader.dataset.length=24')


def test_two_processes_killed_and_resumed(start, finish):
    finish('whole', *GROUP, processes=2)
    states = trained(Path('whole', 'iter_24.pth'))['processes']
    assert len(states) == 2
    assert states[0]['random']['torch'].tolist() != states[1]['random']['torch'].tolist()
    assert states[1]['buffers']  # the norms of the second process saw other samples

    children = start('killed', *GROUP, processes=2)
    wait_for(lambda: Path('killed', 'iter_8.pth.sha256').is_file())
    for child in children:
        child.send(signal.SIGKILL)
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 2
    finish('killed', *GROUP, processes=2)
    assert_same_runs(Path('whole'), Path('killed'), 'iter_24.pth')


def test_signal_to_one_of_two_processes_stops_both(start, finish):
    finish('whole', *GROUP, processes=2)
    for stage, iteration, stopped_at in (('before_train_iter', 8, 'iter_9.pth'),
                                         ('before_val_iter', 12, 'iter_12.pth')):
        children = start(stage, *GROUP, *send('SIGTERM', stage, iteration, rank=1), processes=2)
        assert [child.wait() for child in children] == [143, 143], children[0].text()
        assert Path(stage, stopped_at).is_file()
        finish(stage, *GROUP, processes=2)
        assert_same_runs(Path('whole'), Path(stage), 'iter_24.pth')


def test_other_number_of_processes_says_what_is_not_exact(finish, tmp_path):
    overrides = (*GROUP, 'train_cfg.max_epochs=1')
    finish('run', *overrides, processes=2)
    Path('run', 'iter_6.pth').unlink()
    record = tmp_path / 'rest.txt'
    text = finish('run', *overrides, f'train_dataloader.dataset.record={record}')
    assert '2 processes trained before, 1 go on' in text
    assert 'an epoch had 6 iterations and has 12 now' in text
    assert len(set(record.read_text().split())) == 24 - 4 * 2 * 2
    assert [line['iter'] for line in scalar_lines(Path('run')) if 'iter' in line] == [
        *range(1, 5), *range(5, 9)]
    assert trained(Path('run', 'iter_8.pth'))['progress']['batches'] == 12


def test_a_validation_that_was_due_is_left_out_where_there_is_none_now(finish):
    finish('run', 'train_cfg.max_epochs=2')
    assert trained(Path('run', 'epoch_2.pth'))['progress']['validation_due']
    finish('run', 'train_cfg.max_epochs=3', 'val_cfg=None', 'val_dataloader=None',
           'val_evaluator=None')
    assert not trained(Path('run', 'epoch_3.pth'))['progress']['validation_due']


def test_checkpoint_without_a_training_state_says_so(finish):
    import torch

    from bevfusion_enhanced.checkpoints.storage import read_checkpoint
    finish('run', 'train_cfg.max_epochs=2')
    path = Path('run', 'epoch_1.pth')
    content = read_checkpoint(path)
    del content['training_state']
    for old in Path('run').glob('epoch_*'):
        old.unlink()
    torch.save(content, path)
    text = finish('run', 'train_cfg.max_epochs=2')
    assert 'not resumed exactly: the checkpoint holds no random states' in text
    assert_same(trained(Path('run', 'epoch_2.pth'))['iteration'], 12)


# Through the command line.


@pytest.fixture
def tool(tmp_path, repo):
    """Start a script of the project in a process of its own: tool(script, argument, ...)."""
    environment = {**os.environ, 'PYTHONPATH': str(repo / 'tests' / 'engine'),
                   'OMP_NUM_THREADS': '1'}  # as in the forked ones
    processes = []

    def begin(*arguments):
        with open(tmp_path / f'tool_{len(processes)}.txt', 'w') as output:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)], cwd=tmp_path, env=environment,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        processes.append(process)
        return process, Path(output.name)

    yield begin
    for process in processes:
        process.kill()


def test_training_tool_killed_then_stopped_then_finished(finish, tool, repo):
    """SIGKILL, then SIGTERM, then the very command that the training printed."""
    options = ('default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=5',
               'train_dataloader.num_workers=1', 'train_dataloader.dataset.pause=0.02')
    finish('whole', *options)
    start = (repo / 'tools/train.py', 'configs/exact.py', '--work-dir', 'run', '--deterministic',
             '--cfg-options', *options)
    folder = Path('run', 'checkpoints')

    killed, output = tool(*start)
    wait_for((folder / 'iter_5.pth').is_file, process=killed, output=output)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL

    stopped, output = tool(*start, '--resume')
    wait_for((folder / 'iter_10.pth').is_file, process=stopped, output=output)
    stopped.terminate()
    assert stopped.wait() == 143, output.read_text()
    command = re.search(r'stopped by SIGTERM; go on with: python (.*)', output.read_text())
    assert not (folder / 'iter_20.pth').is_file()

    finished, output = tool(*shlex.split(command.group(1)))
    assert finished.wait() == 0, output.read_text()
    assert_same(trained(Path('whole', 'iter_24.pth')), trained(folder / 'iter_24.pth'))
    assert scalar_lines(Path('whole')) == scalar_lines(Path('run'))
    assert events(Path('whole')) == events(Path('run'))


def wait_for(condition, *, process=None, output=None, seconds=120):
    """Until it holds; a process that ends before is a failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, output.read_text()
        time.sleep(0.005)
