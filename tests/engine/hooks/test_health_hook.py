"""Real runs of a small model that can be made sick: what the hook writes, skips, stops, resumes."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.structures import BaseDataElement
from processes import one_thread, start_group
from torch import nn
from torch.utils.data import Dataset

from bevfusion_enhanced.checkpoints.storage import read_checkpoint, write_checkpoint
from bevfusion_enhanced.engine.commands.health_benchmark import benchmark
from bevfusion_enhanced.engine.configuration.config import load_config
from bevfusion_enhanced.engine.hooks.health_hook import HealthHook, tokens_of
from bevfusion_enhanced.errors import ConfigError, TrainingError
from bevfusion_enhanced.models.task_balance import GradientProbe

CONFIG = '''
model = dict(type='WatchedModel')
train_dataloader = dict(
    batch_size=2, num_workers=0, collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(type='WatchedDataset'))
custom_hooks = [dict(type='HealthHook', interval=1, update_interval=1, cosine_interval=2,
                     max_bad_steps=3)]
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1.0))
param_scheduler = []
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
'''


@DATASETS.register_module(force=True)
class WatchedDataset(Dataset):
    """12 samples with tokens; those in `bad` have an input that is not a number."""

    def __init__(self, bad=(), length=12):
        self.bad, self.length = set(bad), length
        self.metainfo = dict(classes=['car', 'bus'])

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        x = torch.linspace(-1, 1, 4) * (1 + index % 5)
        if index in self.bad:
            x = x * math.nan
        return dict(inputs=x, data_samples=BaseDataElement(metainfo=dict(token=f'token{index}')))


class CountingHead(nn.Linear):
    """Counts two classes, the second of which is annotated but never matched."""

    def __init__(self):
        super().__init__(8, 1)
        self.calls = 0

    def take_class_counts(self):
        calls, self.calls = self.calls, 0
        return dict(truths=torch.tensor([4, 2]) * calls, positives=torch.tensor([3, 0]) * calls)


@MODELS.register_module(force=True)
class WatchedModel(BaseModel):
    """Two heads on a shared map of one cell; they pull it apart."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        torch.manual_seed(0)
        self.fuser = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.heads = nn.ModuleDict({'object': CountingHead(), 'map': nn.Linear(8, 1)})
        self.gradient_probe = GradientProbe()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        shared = self.fuser(torch.stack(list(inputs)))
        if mode != 'loss':
            return list(shared.detach())
        self.heads['object'].calls += 1
        losses = {'object': {'l1': (self.heads['object'](shared) - 1).abs().mean()},
                  'map': {'l1': (self.heads['map'](shared) + 1).abs().mean()}}
        cosines = self.gradient_probe.look(losses, {task: shared for task in losses})
        return {**{f'loss/{task}/l1': named['l1'] for task, named in losses.items()},
                **{f'stats/{name}': value for name, value in cosines.items()}}


@pytest.fixture
def watched_config(toy_config):
    toy_config.write_text(toy_config.read_text() + CONFIG)
    return toy_config


def lines(folder, kind=None):
    records = [json.loads(line)
               for line in Path(folder, 'metrics.jsonl').read_text().splitlines()]
    return [r for r in records if kind in (None, r['kind'])]


def test_a_healthy_run_is_told_in_full_and_not_changed(run, watched_config):
    runner = run('a')
    record = Path('a', 'record.md').read_text()
    epochs, steps = lines('a', 'epoch'), lines('a', 'train')
    assert [e['epoch'] for e in epochs] == [1, 2] and [s['iter'] for s in steps] == [*range(1, 13)]
    last = epochs[-1]['measurements']
    assert last['losses.total.mean'] == pytest.approx(
        sum(s['loss'] for s in steps[6:]) / 6, rel=1e-5)
    assert last['losses.total.first'] == pytest.approx(steps[6]['loss'], rel=1e-5)
    assert last['losses.task.object.share'] + last['losses.task.map.share'] == pytest.approx(1)
    assert last['gradients.total.steps'] == 6 and last['gradients.module.fuser.share'] > 0
    assert last['gradients.total.median'] == pytest.approx(torch.tensor(
        [s['gradients/total'] for s in steps[6:]]).double().quantile(0.5).item(), rel=1e-5)
    assert last['cosine.object~map.looks'] == 3 and abs(last['cosine.object~map.mean']) <= 1
    assert last['classes.object.car.truths'] == 24 and last['classes.object.bus.positives'] == 0
    assert last['updates.module.fuser.mean'] > 0 and last['learning_rate.all.last'] == 0.01
    assert last['weights.nonfinite'] == last['weights.changed'] == 0
    assert 'class object.bus was annotated but never matched' in record
    assert not {'step', 'backward'} & set(vars(runner.optim_wrapper))
    events = list(Path('a').rglob('events.out.tfevents*'))
    assert events and b'gradients/heads.map' in events[0].read_bytes()
    plain = run('b', 'custom_hooks=[]')
    for (name, watched), (_, alone) in zip(runner.model.state_dict().items(),
                                           plain.model.state_dict().items(), strict=True):
        assert torch.equal(watched, alone), name


def test_a_bad_sample_is_skipped_and_named(run, watched_config, log_of):
    runner = run('a', 'train_dataloader.dataset.bad=[5]')
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    events = lines('a', 'event')
    assert [e['iter'] for e in events] == [3, 9]
    assert events[0]['samples'] == ['token4', 'token5'] and events[0]['modules']
    assert events[0]['restored'] == ['fuser.1.running_mean', 'fuser.1.running_var']
    measured = lines('a', 'epoch')[-1]['measurements']
    assert (measured['steps.nonfinite'], measured['steps.updates']) == (1, 5)
    record = Path('a', 'record.md').read_text()
    assert 'token4, token5' in record and '1 steps were skipped' in record
    assert 'health: 1 steps were skipped' in log_of('a')


def test_many_bad_steps_in_a_row_stop_the_run(run, watched_config):
    run('good')
    with pytest.raises(TrainingError) as error:
        run('a', 'train_dataloader.dataset.bad=[7,8,10]', 'train_dataloader.dataset.length=12')
    message = str(error.value)
    assert '3 steps in a row' in message and 'iteration 6' in message and '\n' not in message
    assert 'no good checkpoint was saved before' in message
    assert '**stopped**' in Path('a', 'record.md').read_text()
    with pytest.raises(TrainingError, match='the last good checkpoint is .*epoch_2.pth'):
        run('good', 'train_dataloader.dataset.bad=[0,2,4]', 'train_cfg.max_epochs=3',
            resume='auto')
    assert 'epoch_2.pth' in Path('good', 'record.md').read_text()


def test_two_bad_steps_in_a_row_do_not(run, watched_config):
    run('a', 'train_dataloader.dataset.bad=[7,8]')
    measured = lines('a', 'epoch')[-1]['measurements']
    assert measured['steps.longest_row'] == 2 and measured['steps.nonfinite'] == 2


def test_nothing_is_lost_by_a_stop_in_the_middle_of_an_epoch(run, watched_config):
    settings = ('default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=4',
                'train_dataloader.dataset.bad=[3]')
    run('whole', *settings)
    whole = lines('whole')
    Path('whole', 'iter_12.pth').unlink()
    run('whole', *settings, resume='auto')  # from iteration 8, the second of its epoch
    again = lines('whole')
    assert [(r['kind'], r['iter']) for r in again] == [(r['kind'], r['iter']) for r in whole]
    for old, new in zip(whole, again, strict=True):
        if old['kind'] == 'epoch':
            old['measurements'].pop('steps.resumed')
            assert new['measurements'].pop('steps.resumed') == float(old['epoch'] == 2)
            new['measurements'].pop('gradients.after_resume', None)
            assert new['measurements'] == pytest.approx(old['measurements'])
    record = Path('whole', 'record.md').read_text()
    assert '(resumed)' in record and 'token2, token3' in record


def test_a_damaged_checkpoint_shows_on_resuming(run, watched_config):
    run('a')
    path = Path('a', 'epoch_2.pth')
    checkpoint = read_checkpoint(path)
    checkpoint['state_dict']['heads.map.weight'] *= 30
    write_checkpoint(checkpoint, path)
    run('a', 'train_cfg.max_epochs=3', resume='auto')
    event = lines('a', 'event')[0]
    assert event['count'] == 1 and event['tensors'][0].startswith('heads.map.weight jumped')
    record = Path('a', 'record.md').read_text()
    assert 'not what they were when the checkpoint was written' in record
    assert 'train_cfg.max_epochs: 2 -> 3' in record


def test_a_whole_checkpoint_does_not(run, watched_config):
    run('a')
    run('a', 'train_cfg.max_epochs=3', resume='auto')
    assert not lines('a', 'event')
    assert lines('a', 'epoch')[-1]['measurements']['weights.changed_on_load'] == 0


def test_two_processes_skip_together_and_count_together(watched_config, tmp_path):
    from mmengine.runner import Runner

    from bevfusion_enhanced.engine.commands.train import TrainOptions, resolve

    def train():
        config = resolve(TrainOptions(
            config=str(watched_config), work_dir='a', launcher='pytorch',
            overrides=('train_dataloader.dataset.bad=[5]',)))
        config.experiment_name = 'two_processes'
        Runner.from_cfg(config).train()

    with one_thread():
        children = start_group(train, tmp_path / 'output', 2)
        try:
            codes = [child.wait() for child in children]
        finally:
            for child in children:
                child.end()
    assert codes == [0, 0], children[1].text()[-2000:]
    event = lines('a', 'event')[0]
    assert event['iter'] == 2 and event['samples'] == ['token5', 'token7']  # of the second process
    last = lines('a', 'epoch')[-1]['measurements']
    assert last['steps.nonfinite'] == 1 and last['steps.updates'] == 2
    assert last['classes.object.car.truths'] == 2 * 3 * 4  # processes, steps, annotated
    assert last['cosine.object~map.looks'] == 4 and last['losses.total.mean'] > 0
    assert read_checkpoint(Path('a', 'epoch_2.pth'))['state_dict']['fuser.1.running_mean'].isfinite(
        ).all()


def test_the_benchmark_times_every_part(watched_config):
    result = benchmark(load_config(str(watched_config)), iterations=11)
    assert all(cost.seconds > 0 for cost in result.costs if 'update over' not in cost.part)
    assert [cost.every for cost in result.costs] == [1, 1, 50, 100, 200, 6]
    assert result.share == pytest.approx(sum(c.seconds / c.every for c in result.costs)
                                         / result.step)
    assert 'a step without them' in result.table() and not Path('a').exists()


def test_what_cannot_be_watched():
    weight = nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapperDict(a=OptimWrapper(optimizer=torch.optim.SGD([weight], lr=1)))
    with pytest.raises(ConfigError, match='watches one optimizer'):
        HealthHook().before_train(SimpleNamespace(optim_wrapper=wrapper))
    with pytest.raises(ConfigError, match='interval and max_bad_steps'):
        HealthHook(interval=0)
    with pytest.raises(ConfigError, match='are no rules'):
        HealthHook(thresholds=dict(nonsense=1))


def test_tokens():
    samples = [BaseDataElement(metainfo=dict(token='a')), BaseDataElement(metainfo=dict(
        sample_idx=7)), BaseDataElement()]
    assert tokens_of(dict(data_samples=samples)) == ['a', '7', '?']
    assert tokens_of(dict(x=1)) == tokens_of([1]) == tokens_of(None) == []
