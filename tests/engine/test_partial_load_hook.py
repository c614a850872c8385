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
    from bevfusion_enhanced.engine import PartialLoadCheckpointHook
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
