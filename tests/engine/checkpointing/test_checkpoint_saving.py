"""Real runs of the toy task whose writes fail, wait or succeed: what lies in the folder then."""
import errno
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import HOOKS, METRICS
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper

from bevfusion_enhanced.checkpoints import durable, read_checkpoint, verify_checkpoint
from bevfusion_enhanced.checkpoints.background import BackgroundWriter
from bevfusion_enhanced.checkpoints.folder import find_newest
from bevfusion_enhanced.checkpoints.snapshot import Snapshot
from bevfusion_enhanced.engine.checkpointing import background_save
from bevfusion_enhanced.engine.checkpointing.checkpoint_saving import SafeCheckpointHook
from bevfusion_enhanced.engine.checkpointing.unchanging import tells_before_it_steps
from bevfusion_enhanced.engine.runs.run_folder import require_writable
from bevfusion_enhanced.errors import CheckpointError, ConfigError


@METRICS.register_module(force=True)
class ScriptedMetric(BaseMetric):
    """Reports the next of `values` at each validation, as both a task's metric and another's."""

    def __init__(self, values):
        super().__init__()
        self.values = list(values)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        value = self.values.pop(0)
        return {'object/NDS': value, 'map/mean/iou@max': 1 - value}


@HOOKS.register_module(force=True)
class CallHook(Hook):
    """Calls `CallHook.at[stage]` where there is one."""

    priority = 'LOWEST'
    at = {}

    def before_train_epoch(self, runner):
        self.at.get('before_train_epoch', lambda _: None)(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.at.get('after_train_iter', lambda _: None)(runner)


@pytest.fixture(autouse=True)
def _no_calls():
    CallHook.at = {}
    yield
    CallHook.at = {}


@pytest.fixture
def hooked(toy_config):
    """The toy config with `CallHook`, and with validations that report these values."""
    def prepare(values=()):
        text = toy_config.read_text() + "\ncustom_hooks += [dict(type='CallHook')]\n"
        if values:
            text += ('val_dataloader, val_cfg = test_dataloader, dict()\n'
                     f"val_evaluator = dict(type='ScriptedMetric', values={list(values)})\n")
        toy_config.write_text(text)

    return prepare


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook))


def names(folder):
    return sorted(path.name for path in Path(folder).glob('*.pth'))


def option(**options):
    return [f'default_hooks.checkpoint.{name}={value}' for name, value in options.items()]


def epochs(number):
    return f'train_cfg.max_epochs={number}'


def fail_on(monkeypatch, *, files):
    """Have the disk full whenever one of these files is written; the list may change later."""
    original = os.write

    class Full:
        path = {}

        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, path, *arguments):
            descriptor = os.open(path, *arguments)
            self.path[descriptor] = Path(path).name
            return descriptor

        def write(self, descriptor, data):
            if any(f'.{name}.' in self.path.get(descriptor, '') for name in files):
                raise OSError(errno.ENOSPC, 'No space left on device')
            return original(descriptor, data)

    monkeypatch.setattr(durable, 'os', Full())


def test_every_file_has_its_sums_and_the_last_is_named(run):
    run('a')
    for path in Path('a').glob('*.pth'):
        verify_checkpoint(path)
        assert path.with_name(path.name + '.sha256').read_text().endswith('\n')
    assert names('a') == ['epoch_1.pth', 'epoch_2.pth']
    assert Path('a/last_checkpoint').read_text() == str(Path('a/epoch_2.pth').resolve())


def test_contents_are_those_of_mmengine(run, toy_config):
    text = toy_config.read_text().replace(
        'custom_hooks = [', "custom_hooks = [dict(type='EMAHook', momentum=0.5), ")
    toy_config.write_text(text)
    runner = run('a')
    ours = read_checkpoint('a/epoch_2.pth')
    runner.save_checkpoint('b', 'theirs.pth', by_epoch=False)
    theirs = read_checkpoint('b/theirs.pth')
    assert set(ours) - set(theirs) == {'training_state'} and not set(theirs) - set(ours)
    assert set(theirs['meta']) == set(ours['meta'])
    for entry in ('cfg', 'seed', 'experiment_name', 'mmengine_version', 'dataset_meta', 'epoch'):
        assert ours['meta'][entry] == theirs['meta'][entry]
    assert ours['meta']['iter'] == 4
    for entry in ('state_dict', 'ema_state_dict', 'optimizer'):
        torch.testing.assert_close(ours[entry], theirs[entry], rtol=0, atol=0)
    assert ours['param_schedulers'] == theirs['param_schedulers']
    weight = 'heads.object.weight'
    assert not torch.equal(ours['state_dict'][weight], ours['ema_state_dict'][f'module.{weight}'])
    torch.testing.assert_close(runner.model.state_dict()[weight],
                               ours['ema_state_dict'][f'module.{weight}'], rtol=0, atol=0)
    assert ours['state_dict']._metadata == theirs['state_dict']._metadata
    loss = ours['message_hub']['log_scalars']['train/loss']
    assert len(loss.data[0]) == 4


def test_training_goes_on_during_a_write_and_one_write_waits_for_the_other(
        run, hooked, monkeypatch):
    hooked()
    stepped, in_flight, order = threading.Event(), [], []
    write = background_save.write_checkpoint

    def slow(checkpoint, path):
        in_flight.append(path.name)
        assert in_flight == [path.name]
        if path.name == 'iter_2.pth':
            order.append(stepped.wait(20))
        write(checkpoint, path)
        in_flight.remove(path.name)

    monkeypatch.setattr(background_save, 'write_checkpoint', slow)
    seen = {}

    def look(runner):
        seen[runner.iter + 1] = {name: value.clone()
                                 for name, value in runner.model.state_dict().items()}
        if runner.iter + 1 == 3:
            stepped.set()

    CallHook.at['after_train_iter'] = look
    run('a', *option(by_epoch=False, interval=2), epochs(2))
    assert order == [True]  # the third step was over while the first write was not
    for number in (2, 4):  # and yet neither is torn
        torch.testing.assert_close(dict(read_checkpoint(f'a/iter_{number}.pth')['state_dict']),
                                   seen[number], rtol=0, atol=0)


@pytest.fixture
def late_copies(monkeypatch):
    """Have the writer begin to copy when the event is set, or after a second where all wait."""
    copy_now, event, waited = Snapshot._copy_now, threading.Event(), []

    def late(snapshot, item):
        if threading.current_thread() is not threading.main_thread():
            waited.append(event.wait(1))
        copy_now(snapshot, item)

    monkeypatch.setattr(Snapshot, '_copy_now', late)
    event.waited = waited
    return event


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def weights_in(path):
    return dict(read_checkpoint(path)['state_dict'])


def add_hook(toy_config, name, options=''):
    toy_config.write_text(toy_config.read_text()
                          + f"\ncustom_hooks += [dict(type='{name}'{options})]\n")


def test_the_optimizer_waits_for_the_copy_and_the_forward_does_not(run, toy_config, late_copies):
    seen = {}

    @HOOKS.register_module(force=True)
    class WatchHook(Hook):
        def before_train(self, runner):
            def stepped(*_):
                seen[len(seen) + 1] = state_of(runner.model)
                late_copies.clear()
            runner.optim_wrapper.optimizer.register_step_post_hook(stepped)
            next(runner.model.parameters()).register_hook(lambda _: late_copies.set())

    add_hook(toy_config, 'WatchHook')
    run('a', *option(by_epoch=False, interval=3, save_last=False), epochs(2))
    assert late_copies.waited and all(late_copies.waited)  # for the backward of the fourth step
    torch.testing.assert_close(weights_in('a/iter_3.pth'), seen[3], rtol=0, atol=0)


@pytest.mark.parametrize('case', ['accumulated', 'dropped', 'validated'])
def test_averages_wait_for_the_copy_where_no_step_does(run, toy_config, late_copies, monkeypatch,
                                                       case):
    averages, update = [], ExponentialMovingAverage.update_parameters
    swap = EMAHook._swap_ema_parameters

    def updated(average, model):
        update(average, model)
        averages.append(state_of(average.module))
        late_copies.set()

    def swapped(hook):
        swap(hook)
        late_copies.set()

    monkeypatch.setattr(ExponentialMovingAverage, 'update_parameters', updated)
    monkeypatch.setattr(EMAHook, '_swap_ema_parameters', swapped)
    original = BackgroundWriter.submit

    def submit(writer, job):
        late_copies.clear()
        original(writer, job)

    monkeypatch.setattr(BackgroundWriter, 'submit', submit)
    add_hook(toy_config, 'EMAHook', ', momentum=0.5')
    options, name, number = option(by_epoch=False, interval=3), 'iter_3.pth', 3
    if case == 'validated':
        toy_config.write_text(toy_config.read_text() + (
            '\nval_dataloader, val_cfg = test_dataloader, dict()\n'
            "val_evaluator = dict(type='ScriptedMetric', values=[0.5, 0.6, 0.7])\n"))
        options, name, number = [], 'epoch_1.pth', 2
    if case == 'accumulated':
        options += ['optim_wrapper.accumulative_counts=3']
    if case == 'dropped':
        monkeypatch.setattr(OptimWrapper, 'step', lambda wrapper, **_: (
            None if wrapper._inner_count == 4 else wrapper.optimizer.step()))
    run('a', *options, epochs(3))
    assert late_copies.waited
    torch.testing.assert_close(weights_in(f'a/{name}'), averages[number - 1], rtol=0, atol=0)


@pytest.mark.parametrize('stage', ['before_train_iter', 'before_train_epoch', 'after_train_iter'])
def test_a_hook_that_changes_weights_does_not_tear_a_copy(run, toy_config, late_copies, stage):
    """Through `data`, as MMEngine's own hooks do, which torch does not count as a change."""
    seen = {}

    class Halving(Hook):
        priority = 'LOWEST'

        def halve(self, runner, *arguments, **options):
            seen.setdefault(runner.iter + (stage == 'after_train_iter'), state_of(runner.model))
            for parameter in runner.model.parameters():
                parameter.data.mul_(0.5)
            late_copies.set()

    setattr(Halving, stage, Halving.halve)
    Halving.halve.__module__ = __name__
    HOOKS.register_module(name='Halving', module=Halving, force=True)
    add_hook(toy_config, 'Halving')
    name, number = ('epoch_1.pth', 2) if stage == 'before_train_epoch' else ('iter_3.pth', 3)
    run('a', *(option(by_epoch=False, interval=3) if number == 3 else ()), epochs(2))
    torch.testing.assert_close(weights_in(f'a/{name}'), seen[number], rtol=0, atol=0)


@pytest.mark.parametrize('frozen', [True, False])
def test_a_forward_that_changes_weights(run, late_copies, monkeypatch, toy_task, log_of, frozen):
    """What no gradient trains is copied at once; other changes are found, once."""
    forward, seen = toy_task.ToyModel.forward, []

    def changing(model, *arguments, **options):
        seen.append(state_of(model))
        weight = model.encoders['lidar']['backbone'].weight
        weight.requires_grad_(not frozen)
        if frozen:
            weight.data.add_(1)
        else:
            with torch.no_grad():
                weight.mul_(1.5)
        late_copies.set()
        return forward(model, *arguments, **options)

    monkeypatch.setattr(toy_task.ToyModel, 'forward', changing)
    original = BackgroundWriter.submit

    def submit(writer, job):
        late_copies.clear()
        original(writer, job)

    monkeypatch.setattr(BackgroundWriter, 'submit', submit)
    run('a', *option(by_epoch=False, interval=3, save_last=False), epochs(5))
    assert names('a') == ['iter_3.pth', 'iter_6.pth', 'iter_9.pth'][not frozen:]
    for number in (3, 6, 9)[not frozen:]:
        torch.testing.assert_close(weights_in(f'a/iter_{number}.pth'), seen[number], rtol=0, atol=0)
    assert ('changed outside the optimizer' in log_of('a')) is not frozen
    assert log_of('a').count('from now on training waits') == (not frozen)


def test_an_optimizer_that_steps_unseen_is_not_relied_on():
    class Silent(torch.optim.SGD):
        def step(self, closure=None):
            return None

    weights = [torch.nn.Parameter(torch.ones(1))]
    told = torch.optim.SGD(weights, lr=1)
    silent = Silent(weights, lr=1)
    assert tells_before_it_steps(told) and tells_before_it_steps(silent)
    silent.step = lambda closure=None: None
    assert not tells_before_it_steps(silent)

    class Wrapper(torch.optim.Optimizer):  # around another one, without the base's beginnings
        def __init__(self, inner):
            self.inner = inner

        def step(self, closure=None):
            return self.inner.step(closure)

    assert not tells_before_it_steps(Wrapper(told)) and not tells_before_it_steps(object())


def test_files_of_another_name_are_resumed_from_and_not_overwritten(run, log_of):
    named = option(filename_tmpl='toy.v1_{}.pth')
    run('a', *named)
    assert names('a') == ['toy.v1_1.pth', 'toy.v1_2.pth']
    with pytest.raises(CheckpointError, match='already holds 2 checkpoints of an earlier run'):
        run('a', *named)
    with pytest.raises(CheckpointError, match='toy.v1_2.pth, which is further than toy.v1_1.pth'):
        run('a', *named, resume='a/toy.v1_1.pth')
    run('a', *named, epochs(3), resume='auto')
    assert names('a') == ['toy.v1_1.pth', 'toy.v1_2.pth', 'toy.v1_3.pth']
    assert 'toy.v1_2.pth, the newest valid checkpoint' in log_of('a')


def test_a_hook_that_may_read_values_gets_them(run, toy_config):
    found = []

    @HOOKS.register_module(force=True)
    class ReadingHook(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            found.append({name: value.clone() for name, value in checkpoint['state_dict'].items()})

    toy_config.write_text(
        toy_config.read_text() + "\ncustom_hooks += [dict(type='ReadingHook')]\n")
    run('a', epochs(1))
    torch.testing.assert_close(dict(read_checkpoint('a/epoch_1.pth')['state_dict']), found[-1],
                               rtol=0, atol=0)


def test_the_old_is_deleted_after_the_new_is_in_place(run, hooked, monkeypatch):
    hooked([0.1, 0.2, 0.3])
    seen, rename = {}, durable.rename

    def watch(source, target):
        seen.setdefault(target.name, names('a'))
        rename(source, target)

    monkeypatch.setattr(durable, 'rename', watch)
    run('a', *option(max_keep_ckpts=1, save_best='NDS'), epochs(3))
    assert seen['epoch_2.pth'] == ['best_NDS_epoch_1.pth', 'epoch_1.pth']
    assert seen['best_NDS_epoch_3.pth'] == ['best_NDS_epoch_2.pth', 'epoch_3.pth']
    assert names('a') == ['best_NDS_epoch_3.pth', 'epoch_3.pth']
    assert not list(Path('a').glob('epoch_1.pth*'))
    assert len(list(Path('a').glob('*.sha256'))) == 2


def test_best_of_a_weighted_sum_and_of_several(run, hooked):
    hooked([0.2, 0.6, 0.4])
    run('a', *option(save_best='0.25*mIoU+0.75*NDS'), epochs(3))
    assert 'best_0.25_mIoU+0.75_NDS_epoch_2.pth' in names('a')
    info = read_checkpoint('a/epoch_3.pth')['message_hub']['runtime_info']
    assert info['best_score'] == pytest.approx(0.55)
    assert Path(info['best_ckpt']).name == 'best_0.25_mIoU+0.75_NDS_epoch_2.pth'
    best = read_checkpoint(info['best_ckpt'])
    assert 'optimizer' not in best and 'training_state' not in best
    assert best['meta']['epoch'] == 2 and best['meta']['bevfusion_enhanced']
    torch.testing.assert_close(best['state_dict'], read_checkpoint('a/epoch_2.pth')['state_dict'])
    run('b', *option(save_best='[NDS,mIoU]'), epochs(3))
    assert names('b') == ['best_NDS_epoch_2.pth', 'best_mIoU_epoch_1.pth', 'epoch_1.pth',
                          'epoch_2.pth', 'epoch_3.pth']
    run('c', *option(save_best='auto'), epochs(1))
    assert names('c') == ['best_object_NDS_epoch_1.pth', 'epoch_1.pth']


def test_the_best_so_far_survives_a_resume(run, hooked, toy_config):
    hooked([0.5, 0.4, 0.6])
    run('a', *option(save_best='NDS', max_keep_ckpts=1), epochs(1))
    toy_config.write_text(toy_config.read_text().replace('[0.5, 0.4, 0.6]', '[0.4, 0.6]'))
    run('a', *option(save_best='NDS', max_keep_ckpts=1), epochs(2), resume='auto')
    # what the run was resumed from stays until it ends
    assert names('a') == ['best_NDS_epoch_1.pth', 'epoch_1.pth', 'epoch_2.pth']
    # the validation after the second epoch comes first: epoch_2.pth was written before it
    run('a', *option(save_best='NDS', max_keep_ckpts=1), epochs(3), resume='auto')
    assert names('a') == ['best_NDS_epoch_3.pth', 'epoch_2.pth', 'epoch_3.pth']


def test_a_metric_that_is_not_there_is_an_error_of_the_config(run, hooked):
    hooked([0.5])
    with pytest.raises(ConfigError, match='the validation reports no object/mAP; it reports map'):
        run('a', *option(save_best='mAP'), epochs(1))
    verify_checkpoint('a/epoch_1.pth')


def test_full_disk_costs_a_checkpoint_and_no_more(run, log_of, monkeypatch):
    fail_on(monkeypatch, files=['epoch_3.pth'])
    runner = run('a', *option(max_keep_ckpts=2), epochs(4))
    assert runner.epoch == 4 and names('a') == ['epoch_2.pth', 'epoch_4.pth']
    log = log_of('a')
    assert 'checkpoint not saved: cannot write' in log
    assert 'a/epoch_3.pth: No space left on device' in log and 'Training goes on' in log
    assert log.count('No space left') == 1
    info = read_checkpoint('a/epoch_4.pth')['message_hub']['runtime_info']
    assert info['keep_ckpt_ids'] == [2, 4]
    assert not list(Path('a').glob('.*'))


def test_full_disk_at_the_best_keeps_the_best_before(run, hooked, log_of, monkeypatch):
    hooked([0.5, 0.9, 0.7])
    fail_on(monkeypatch, files=['best_NDS_epoch_2.pth'])
    run('a', *option(save_best='NDS'), epochs(3))
    assert 'best_NDS_epoch_3.pth' in names('a')  # better than the best that is there
    assert 'best_NDS_epoch_1.pth' not in names('a')
    assert 'is saved to best_NDS_epoch_3.pth' in log_of('a')
    assert 'is saved to best_NDS_epoch_2.pth' not in log_of('a')
    info = read_checkpoint('a/epoch_3.pth')['message_hub']['runtime_info']
    assert info['best_score'] == 0.7 and info['best_ckpt'].endswith('best_NDS_epoch_3.pth')


def test_the_end_of_training_is_tried_once_more(run, log_of, monkeypatch):
    attempts, write = [], background_save.write_checkpoint

    def fail_once(checkpoint, path):
        attempts.append(path.name)
        if attempts == ['epoch_1.pth', 'epoch_2.pth']:
            raise CheckpointError('cannot write: full')
        write(checkpoint, path)

    monkeypatch.setattr(background_save, 'write_checkpoint', fail_once)
    run('a')
    assert attempts == ['epoch_1.pth', 'epoch_2.pth', 'epoch_2.pth']
    assert 'trying once more to write epoch_2.pth' in log_of('a')
    assert read_checkpoint('a/epoch_2.pth')['meta']['iter'] == 4


def test_a_training_whose_end_cannot_be_written_is_an_error(run, monkeypatch):
    fail_on(monkeypatch, files=['epoch_2.pth'])
    with pytest.raises(CheckpointError, match='training ended, but epoch_2.pth could not be'):
        run('a')
    assert find_newest('a', skipped=pytest.fail).path.name == 'epoch_1.pth'
    assert Path('a/last_checkpoint').read_text() == str(Path('a/epoch_1.pth').resolve())


LOGS = '''
visualizer = dict(type='Visualizer', vis_backends=[
    dict(type='RunLocalVisBackend'), dict(type='RunTensorboardVisBackend')])
'''


@pytest.mark.parametrize('where', ['checkpoints', 'everything'])
def test_training_on_a_disk_that_is_full_for_a_while(run, hooked, small_disk, where, toy_config,
                                                     capfd):
    """Somebody else fills a real disk for the time of the second epoch."""
    folder, filler = small_disk / 'a', small_disk / 'filler'

    def fill(runner):
        hook_of(runner)._saver._writer.wait()
        if runner.epoch == 1:
            with open(filler, 'wb', buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        break
        if runner.epoch == 2:
            assert names(folder) == ['epoch_1.pth']
            filler.unlink()

    hooked()
    CallHook.at['before_train_epoch'] = fill
    options = option(max_keep_ckpts=1)
    if where == 'checkpoints':
        run('a', *options, *option(out_dir=small_disk), epochs(3))
    else:
        toy_config.write_text(toy_config.read_text() + LOGS)
        run(folder, *options, 'train_dataloader.dataset.length=240', epochs(3))
        steps = [json.loads(line)['step'] for line in (folder / 'scalars.json').open()]
        assert steps == list(range(1, 181))  # what could not be logged waited
    assert names(folder) == ['epoch_3.pth']
    verify_checkpoint(folder / 'epoch_3.pth')
    said = capfd.readouterr().out
    assert said.count('epoch_2.pth: No space left on device') == 1
    if where == 'everything':
        assert said.count('its lines wait until there is space') == 1
        assert said.count('those of this time are lost') == 1
    assert not list(folder.glob('.*'))


def test_save_now_writes_the_iteration_and_waits(run, hooked):
    hooked()
    paths = []

    def save(runner):
        if runner.iter + 1 in (1, 3):
            paths.append(hook_of(runner).save_now(runner, reason='a test asks'))
            verify_checkpoint(paths[-1])
            assert Path('a/last_checkpoint').read_text() == str(paths[-1])
            assert hook_of(runner).save_now(runner, reason='again') == paths[-1]

    CallHook.at['after_train_iter'] = save
    run('a')
    assert paths == [Path('a/iter_1.pth').resolve(), Path('a/iter_3.pth').resolve()]
    meta = read_checkpoint(paths[1])['meta']
    assert (meta['epoch'], meta['iter']) == (1, 3)
    assert names('a') == ['epoch_1.pth', 'epoch_2.pth', 'iter_1.pth', 'iter_3.pth']


def test_save_now_of_what_was_just_saved_writes_nothing(run, hooked, monkeypatch):
    hooked()
    written, write = [], background_save.write_checkpoint

    def count(checkpoint, path):
        written.append(path.name)
        write(checkpoint, path)

    monkeypatch.setattr(background_save, 'write_checkpoint', count)
    CallHook.at['after_train_iter'] = lambda runner: hook_of(runner).save_now(runner, reason='stop')
    run('a', *option(by_epoch=False, interval=1), epochs(1))
    assert written == ['iter_1.pth', 'iter_2.pth']


def test_save_now_tells_that_it_failed(run, hooked, monkeypatch):
    hooked()
    fail_on(monkeypatch, files=['iter_3.pth'])

    def save(runner):
        if runner.iter + 1 == 3:
            hook_of(runner).save_now(runner, reason='stop')

    CallHook.at['after_train_iter'] = save
    with pytest.raises(CheckpointError, match='iter_3.pth could not be written'):
        run('a')
    assert find_newest('a', skipped=pytest.fail).path.name == 'epoch_1.pth'


def test_checkpoints_of_a_stop_count_among_those_kept(run, hooked):
    hooked()

    def save(runner):
        if runner.iter + 1 == 3:
            hook_of(runner).save_now(runner, reason='stop')

    CallHook.at['after_train_iter'] = save
    run('a', *option(max_keep_ckpts=2), epochs(3))
    assert names('a') == ['epoch_2.pth', 'epoch_3.pth']


def test_logs_are_flushed_before_a_checkpoint(run, hooked, monkeypatch):
    hooked()
    order, write = [], background_save.write_checkpoint
    monkeypatch.setattr(background_save, 'write_checkpoint', lambda checkpoint, path: (
        order.append(path.name), write(checkpoint, path)))

    def listen(runner):
        backend = next(iter(runner.visualizer._vis_backends.values()))
        monkeypatch.setattr(backend, 'flush_log', lambda: order.append('flush'), raising=False)

    CallHook.at['before_train_epoch'] = listen
    run('a')
    assert [*dict.fromkeys(order[:2])] == ['flush', 'epoch_1.pth']
    assert order[-1] == 'epoch_2.pth' and 'flush' in order[2:]


def test_published_file(run):
    run('a', *option(published_keys='[meta,state_dict]'))
    published, = Path('a').glob('epoch_2-*.pth')
    verify_checkpoint(published)
    assert set(read_checkpoint(published)) == {'meta', 'state_dict'}


@pytest.mark.parametrize('options, says', [
    (dict(save_best='0.5*'), 'not a metric or a weighted sum'),
    (dict(save_best='speed'), 'Cannot infer the rule for key speed'),
    (dict(save_best='NDS', rule='best'), 'rule must be greater, less'),
    (dict(backend_args=dict(backend='petrel')), 'give its path as out_dir'),
    (dict(save_begin=-1), 'save_begin'),
])
def test_bad_options(options, says):
    with pytest.raises(ConfigError, match=says):
        SafeCheckpointHook(**options)


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot be written to .*give another --work-dir'):
        require_writable(tmp_path / 'file' / 'run')
    require_writable(tmp_path / 'new' / 'run')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_read_only_disk_is_told_before_training(tmp_path):
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', str(tmp_path)],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'cannot mount a read-only disk: {done.stderr.strip()}')
    try:
        with pytest.raises(CheckpointError, match='Read-only file system'):
            require_writable(tmp_path / 'run')
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)
