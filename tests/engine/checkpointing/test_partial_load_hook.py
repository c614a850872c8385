"""Runs of a toy task, for real: loading in part, resuming, and nothing overwritten."""
import json
from pathlib import Path

import pytest
import torch

from bevfusion_enhanced.checkpoints import architecture_hash, read_checkpoint, write_checkpoint
from bevfusion_enhanced.errors import CheckpointError, ConfigError

GATED = ("model.gates=['object']", "model.heads=['object','map']")
FROZEN = ('optim_wrapper.optimizer.lr=0.', 'param_scheduler=None', 'train_cfg.max_epochs=1')


def files(folder):
    return {path: path.read_bytes() for path in Path(folder).glob('*.pth')}


def weights(path):
    return read_checkpoint(path)['state_dict']


def test_checkpoints_say_what_they_are(run):
    run('a')
    checkpoint = read_checkpoint('a/epoch_2.pth')
    record = checkpoint['meta']['bevfusion_enhanced']
    assert record['architecture'] == architecture_hash(checkpoint['state_dict'])
    assert record['classes'] == ['car', 'truck'] and record['version']
    assert record['tensors']['heads.object.weight'] == [1, 8]
    assert not list(Path('a').glob('*.tmp')) and not list(Path('a').glob('.*'))


def test_load_into_a_changed_architecture(run, log_of):
    run('a')
    runner = run('b', *GATED, *FROZEN, load_from=['a/epoch_2.pth'])
    old, new = weights('a/epoch_2.pth'), weights('b/epoch_1.pth')
    for key in ('encoders.lidar.backbone.weight', 'heads.object.weight'):
        torch.testing.assert_close(new[key], old[key], rtol=0, atol=0)
    assert torch.isfinite(new['task_gca.object.weight']).all()
    meta = read_checkpoint('b/epoch_1.pth')['meta']
    assert (meta['epoch'], meta['iter']) == (1, 2) and runner.epoch == 1
    report = json.loads(Path('b/load_report.json').read_text())
    assert report['fresh_modules'] == ['heads.map', 'task_gca.object']
    log = log_of('b')
    for line in ('load checkpoint from a/epoch_2.pth', 'not found in checkpoint: task_gca.object.*',
                 'task_gca.object: 72 parameters, fresh', 'Epoch(train) [1][1/2]'):
        assert line in log
    assert 'do not match exactly' not in log and 'missing keys' not in log


def test_optimizer_and_schedule_are_fresh_after_a_load(run):
    run('a')
    runner = run('b', 'train_cfg.max_epochs=1', load_from=['a/epoch_2.pth'])
    state = runner.optim_wrapper.optimizer.state_dict()['state']
    assert {float(entry['step']) for entry in state.values()} == {2.}
    assert runner.param_schedulers[0].last_step == 2


def test_resume_goes_on_as_if_never_stopped(run):
    run('whole', 'train_cfg.max_epochs=3')
    run('parts')
    runner = run('parts', 'train_cfg.max_epochs=3', resume='auto')
    assert runner.epoch == 3 and runner.iter == 6
    old, new = read_checkpoint('whole/epoch_3.pth'), read_checkpoint('parts/epoch_3.pth')
    torch.testing.assert_close(new['state_dict'], old['state_dict'], rtol=0, atol=0)
    torch.testing.assert_close(new['optimizer'], old['optimizer'], rtol=0, atol=0)
    assert new['param_schedulers'] == old['param_schedulers']


def test_automatic_resume_takes_the_newest_that_is_whole(run, log_of):
    run('a')
    path = Path('a/epoch_2.pth')
    data = bytearray(path.read_bytes())
    data[data.find(weights(path)['heads.object.weight'].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    Path('a/epoch_9.pth').write_bytes(b'PK cut short')
    runner = run('a', resume='auto')
    assert runner.epoch == 2
    log = log_of('a')
    assert 'epoch_1.pth, the newest valid checkpoint' in log
    assert 'skipped for resuming: checkpoint' in log and 'epoch_9.pth is damaged' in log


def test_automatic_resume_of_another_architecture_is_refused(run):
    run('a')
    before = files('a')
    with pytest.raises(CheckpointError, match=r'new heads\.map\.\*.*--work-dir NEW --load-from'):
        run('a', *GATED, 'train_cfg.max_epochs=3', resume='auto')
    assert files('a') == before


def test_automatic_resume_of_nothing_is_refused(run):
    with pytest.raises(CheckpointError, match='holds no checkpoint'):
        run('empty', resume='auto')


def test_explicit_resume_of_another_architecture_acts_as_a_load(run, log_of):
    run('a')
    runner = run('b', *GATED, 'train_cfg.max_epochs=1', resume='a/epoch_2.pth')
    assert runner.epoch == 1
    assert '--resume acts as --load-from' in log_of('b')
    assert Path('b/load_report.md').exists()
    with pytest.raises(CheckpointError, match='cannot resume: the architecture differs'):
        run('c', *GATED, 'default_hooks.checkpoint.on_architecture_change=error',
            resume='a/epoch_2.pth')


def test_classes_in_another_order_are_another_architecture(run):
    run('a')
    swapped = ("train_dataloader.dataset.classes=['truck','car']", 'train_cfg.max_epochs=3')
    with pytest.raises(CheckpointError, match=r"classes: \['car', 'truck'\] -> \['truck', 'car'\]"):
        run('a', *swapped, resume='auto')


def test_nothing_of_an_earlier_run_is_overwritten(run):
    run('a')
    run('b')
    before = {**files('a'), **files('b')}
    with pytest.raises(CheckpointError, match='already holds 2 checkpoints'):
        run('a')
    with pytest.raises(CheckpointError, match='already holds 2 checkpoints'):
        run('a', load_from=['b/epoch_1.pth'])
    with pytest.raises(CheckpointError, match='already holds 2 checkpoints'):
        run('a', resume='b/epoch_1.pth')
    with pytest.raises(CheckpointError, match='epoch_2.pth, which is further than epoch_1.pth'):
        run('a', resume='a/epoch_1.pth')
    with pytest.raises(CheckpointError, match='already holds 2 checkpoints'):
        run('a', *GATED, resume='a/epoch_2.pth')
    assert {**files('a'), **files('b')} == before


def test_garbage_stops_before_training(run):
    write_checkpoint({'state_dict': {'resnet.conv.weight': torch.ones(4, 4)}}, 'other.pth')
    with pytest.raises(CheckpointError, match='does not fit this model: 0 of 9 tensors'):
        run('a', load_from=['other.pth'])
    assert not files('a')


def test_each_module_comes_from_the_first_source_that_holds_it(run):
    run('a')
    state = weights('a/epoch_2.pth')
    lidar = {key: torch.full_like(value, 3.) for key, value in state.items()
             if key.startswith('encoders')}
    write_checkpoint({'state_dict': lidar}, 'lidar.pth')
    run('b', *FROZEN, load_from=['lidar.pth', 'a/epoch_2.pth'])
    loaded = weights('b/epoch_1.pth')
    assert (loaded['encoders.lidar.backbone.weight'] == 3).all()
    torch.testing.assert_close(loaded['heads.object.weight'], state['heads.object.weight'])
    report = json.loads(Path('b/load_report.json').read_text())
    assert report['modules']['encoders.lidar.backbone']['source'] == 'lidar.pth'
    assert report['shadowed'] == [{'module': 'encoders.lidar.backbone', 'source': 'a/epoch_2.pth'}]


def test_resume_needs_more_than_weights(run):
    run('a')
    bare = {'state_dict': weights('a/epoch_2.pth')}
    write_checkpoint(bare, 'bare.pth')
    with pytest.raises(CheckpointError, match='bare.pth holds no meta'):
        run('b', resume='bare.pth')


def test_unknown_option_is_a_config_error():
    from bevfusion_enhanced.engine.checkpointing.partial_load_hook import PartialLoadCheckpointHook
    with pytest.raises(ConfigError, match='choose load or error'):
        PartialLoadCheckpointHook(on_architecture_change='ignore')


def test_plain_mmengine_config_with_load_from_in_it(run, toy_config):
    run('a')
    toy_config.write_text(toy_config.read_text() + "load_from = 'a/epoch_2.pth'\n")
    run('b', 'train_cfg.max_epochs=1')
    assert json.loads(Path('b/load_report.json').read_text())['fresh_modules'] == []


def test_pretrained_init_goes_through_the_safe_reader(run):
    import mmengine.runner.checkpoint as mmengine_checkpoint

    from bevfusion_enhanced import compat
    run('a')
    loaded = mmengine_checkpoint._load_checkpoint('a/epoch_2.pth', map_location='cpu')
    assert loaded['meta']['epoch'] == 2
    assert mmengine_checkpoint.CheckpointLoader._get_checkpoint_loader('a/x.pth') \
        is compat.load_from_local


def test_reordered_parameters_keep_their_moments(run, toy_task, monkeypatch):
    run('whole', 'train_cfg.max_epochs=4')
    run('parts')
    original = toy_task.ToyModel.__init__

    def reordered(self, *arguments, **options):
        original(self, *arguments, **options)
        self._modules['encoders'] = self._modules.pop('encoders')

    monkeypatch.setattr(toy_task.ToyModel, '__init__', reordered)
    run('parts', 'train_cfg.max_epochs=4', resume='auto')
    old, new = read_checkpoint('whole/epoch_4.pth'), read_checkpoint('parts/epoch_4.pth')
    assert list(new['state_dict']) != list(old['state_dict'])
    torch.testing.assert_close(dict(new['state_dict']), dict(old['state_dict']), rtol=0, atol=0)


@pytest.fixture
def run_mmengine(toy_config, toy_task):
    """The same task with MMEngine's own hook and loop."""
    from mmengine.runner import Runner

    from bevfusion_enhanced.engine.configuration.config import load_config

    def train(work_dir, *overrides, load_from=None, resume=False):
        config = load_config(str(toy_config), overrides)
        config.merge_from_dict(dict(work_dir=work_dir, load_from=load_from, resume=resume,
                                    experiment_name=f'plain_{work_dir}_{resume}'))
        config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
        runner = Runner.from_cfg(config)
        runner.train()
        return runner

    return train


def test_mmengine_goes_on_from_our_checkpoints_and_we_from_its(run, run_mmengine, log_of):
    run_mmengine('whole', 'train_cfg.max_epochs=4')
    expected = read_checkpoint('whole/epoch_4.pth')
    run('ours')
    run_mmengine('theirs', 'train_cfg.max_epochs=4', load_from='ours/epoch_2.pth', resume=True)
    run('ours_again', 'train_cfg.max_epochs=4', resume='whole/epoch_2.pth')
    for folder in ('theirs', 'ours_again'):
        found = read_checkpoint(f'{folder}/epoch_4.pth')
        assert len(found['optimizer']['state']) == 6
        assert {float(state['step']) for state in found['optimizer']['state'].values()} == {8.}
        assert set(found['state_dict']) == set(expected['state_dict'])
    assert 'whole/epoch_2.pth does not name it; assigned in the order of its weights' in log_of(
        'ours_again')


def with_ema(toy_config):
    toy_config.write_text(toy_config.read_text() + '''
custom_hooks += [dict(type='EMAHook', momentum=0.1), dict(type='EMAWatch')]
''')


@pytest.fixture
def ema_watch():
    """The averaged model and the model, as they are before the first iteration of a run."""
    from mmdet3d.registry import HOOKS
    from mmengine.hooks import EMAHook, Hook

    class EMAWatch(Hook):
        seen = []

        def before_train(self, runner):
            ema = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
            self.seen.append([{key: value.clone() for key, value in model.state_dict().items()}
                              for model in (ema.ema_model.module, runner.model)])

    HOOKS.register_module(module=EMAWatch, force=True)
    yield EMAWatch
    HOOKS.module_dict.pop('EMAWatch')


def test_the_averaged_model_starts_as_the_loaded_one(run, toy_config, ema_watch, monkeypatch,
                                                     toy_task):
    def init_weights(self):
        for gate in self.task_gca.values():
            torch.nn.init.constant_(gate.weight, 0.25)

    monkeypatch.setattr(toy_task.ToyModel, 'init_weights', init_weights)
    run('a')
    with_ema(toy_config)
    run('b', *GATED, load_from=['a/epoch_2.pth'])
    averaged, model = ema_watch.seen[-1]
    assert (model['task_gca.object.weight'] == 0.25).all()
    torch.testing.assert_close(averaged, model, rtol=0, atol=0)
    old = weights('a/epoch_2.pth')
    torch.testing.assert_close({key: averaged[key] for key in old}, dict(old), rtol=0, atol=0)


def test_the_averaged_model_is_resumed(run, toy_config, ema_watch):
    with_ema(toy_config)
    run('whole', 'train_cfg.max_epochs=4')
    run('parts')
    run('parts', 'train_cfg.max_epochs=4', resume='auto')
    averaged, model = ema_watch.seen[-1]
    assert not torch.equal(averaged['heads.object.weight'], model['heads.object.weight'])
    old, new = read_checkpoint('whole/epoch_4.pth'), read_checkpoint('parts/epoch_4.pth')
    for entry in ('state_dict', 'ema_state_dict'):
        torch.testing.assert_close(dict(new[entry]), dict(old[entry]), rtol=0, atol=0)


def edited(path, edit, target):
    """A copy of a checkpoint with something changed."""
    checkpoint = read_checkpoint(path)
    edit(checkpoint)
    write_checkpoint(checkpoint, target)


@pytest.mark.parametrize('edit, says', [
    (lambda c: c['meta']['bevfusion_enhanced'].update(version='99.0.0'),
     r'odd.pth was written by bevfusion_enhanced 99.0.0, this is .*update'),
    (lambda c: c.pop('optimizer'), r'odd.pth holds no optimizer, .*--load-from'),
    (lambda c: c['optimizer_names']['']['groups'].append(['more']), 'edited or damaged'),
    (lambda c: c['meta']['bevfusion_enhanced']['tensors'].update(other=[3]), 'gone other'),
])
def test_what_cannot_be_resumed_is_said_in_one_line(run, edit, says):
    run('a')
    edited('a/epoch_2.pth', edit, 'odd.pth')
    before = files('a')
    with pytest.raises(CheckpointError, match=says) as caught:
        run('b', 'default_hooks.checkpoint.on_architecture_change=error',
            'train_cfg.max_epochs=3', resume='odd.pth')
    assert '\n' not in str(caught.value)
    assert files('a') == before and not files('b')


def test_a_folder_is_resumed_from_its_newest_checkpoint(run, log_of):
    run('a')
    runner = run('b', 'train_cfg.max_epochs=3', resume='a')
    assert runner.epoch == 3 and 'a/epoch_2.pth, the newest valid checkpoint' in log_of('b')
    Path('a', 'checkpoints').mkdir()
    for path in Path('a').glob('*.pth*'):
        path.rename(Path('a', 'checkpoints', path.name))
    assert run('d', 'train_cfg.max_epochs=3', resume='a').epoch == 3
    assert 'a/checkpoints/epoch_2.pth, the newest valid checkpoint' in log_of('d')
    Path('none').mkdir()
    with pytest.raises(CheckpointError, match='none holds no checkpoint'):
        run('c', resume='none')


def test_a_module_comes_from_the_source_assigned_to_it(run):
    run('a')
    state = weights('a/epoch_2.pth')
    write_checkpoint({'state_dict': {key: torch.full_like(value, 3.)
                                     for key, value in state.items()}}, 'threes.pth')
    run('b', *FROZEN, load_from=['a/epoch_2.pth', 'heads.object=threes.pth'])
    loaded = weights('b/epoch_1.pth')
    assert (loaded['heads.object.weight'] == 3).all()
    torch.testing.assert_close(loaded['encoders.lidar.backbone.weight'],
                               state['encoders.lidar.backbone.weight'])
    report = json.loads(Path('b/load_report.json').read_text())
    assert report['modules']['heads.object']['source'] == 'threes.pth'


def test_a_changed_option_of_the_optimizer_is_used_and_said(run, log_of):
    run('a')
    runner = run('a', 'train_cfg.max_epochs=3', 'optim_wrapper.optimizer.weight_decay=0.5',
                 resume='auto')
    assert runner.optim_wrapper.optimizer.param_groups[0]['weight_decay'] == 0.5
    assert 'weight_decay: 0.01 in the checkpoint, 0.5 from now on' in log_of('a')
