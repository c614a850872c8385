"""Schedules of resumed runs: never cut, and started anew where that is asked for. Real toy runs."""
import math
from pathlib import Path

import pytest
import torch

from bevfusion_enhanced.checkpoints import read_checkpoint, write_checkpoint
from bevfusion_enhanced.errors import CheckpointError, ConfigError

FRESH = 'default_hooks.checkpoint.resume_schedule=False'
WARM_UP = "dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)"
COSINE = "dict(type='CosineAnnealingLR', eta_min=0., by_epoch=True, begin=0{end})"
EPOCHS = 'train_cfg.max_epochs={}'


@pytest.fixture
def scheduled(run, toy_config):
    """A run with these schedulers in its config."""
    text = toy_config.read_text()

    def train(folder, schedulers, *overrides, **options):
        toy_config.write_text(f'{text}\nparam_scheduler = [{schedulers}]\n')
        return run(folder, *overrides, **options)

    return train


def rates(log):
    """Base rate of every iteration in a log."""
    lines = [line for line in log.splitlines() if ' lr: ' in line]
    return [float(line.split(' lr: ')[1].split()[0]) for line in lines]


@pytest.mark.parametrize('new, says', [
    (f"{WARM_UP}, {COSINE.format(end='')}",
     r'1 scheduler \(LinearLR\), this run has 2 schedulers \(LinearLR, CosineAnnealingLR\)'),
    ('', r'1 scheduler \(LinearLR\), this run has no schedulers'),
    (WARM_UP.replace('LinearLR', 'ConstantLR').replace('start_', ''),
     'scheduler 1 is LinearLR of lr by iteration, that of this run ConstantLR of lr by iteration'),
    (WARM_UP.replace('by_epoch=False', 'by_epoch=True'),
     'that of this run LinearLR of lr by epoch'),
])
@pytest.mark.parametrize('kinds_recorded', [True, False])
def test_another_schedule_is_never_cut(scheduled, new, says, kinds_recorded):
    scheduled('a', WARM_UP)
    if not kinds_recorded:  # as MMEngine writes it
        says = says.replace(r'\(LinearLR\)', r'\(one with .*\)').replace('is LinearLR', 'is one .*')
        for path in Path('a').glob('*.pth'):
            checkpoint = read_checkpoint(path)
            del checkpoint['meta']['bevfusion_enhanced']
            write_checkpoint(checkpoint, path)
    before = {path: path.read_bytes() for path in Path('a').glob('*.pth')}
    with pytest.raises(CheckpointError, match=f'{says}.*--fresh-schedule'):
        scheduled('a', new, EPOCHS.format(3), resume='auto')
    assert {path: path.read_bytes() for path in Path('a').glob('*.pth')} == before


def test_a_fresh_schedule_keeps_weights_moments_and_epoch(scheduled, log_of):
    scheduled('a', WARM_UP, EPOCHS.format(3))
    old = read_checkpoint('a/epoch_3.pth')
    frozen = ('optim_wrapper.optimizer.lr=0.', 'optim_wrapper.optimizer.weight_decay=0.')
    runner = scheduled('b', '', FRESH, EPOCHS.format(4), *frozen, resume='a/epoch_3.pth')
    new = read_checkpoint('b/epoch_4.pth')
    assert (runner.epoch, new['meta']['iter']) == (4, 8)
    for key, value in old['state_dict'].items():
        if 'running' not in key and 'num_batches' not in key:
            torch.testing.assert_close(new['state_dict'][key], value, rtol=0, atol=0)
    steps = {float(state['step']) for state in new['optimizer']['state'].values()}
    assert steps == {8.}
    assert set(rates(log_of('b'))) == {0.}


@pytest.mark.parametrize('end', ['', ', end=5', ', end=8, T_max=8'])
def test_a_fresh_schedule_counts_from_where_the_run_goes_on(scheduled, log_of, end):
    scheduled('a', WARM_UP, EPOCHS.format(3))
    scheduled('b', COSINE.format(end=end), FRESH, EPOCHS.format(8), resume='a/epoch_3.pth')
    cosine = [0.01 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    expected = [rate for rate in cosine for _ in range(2)]
    assert rates(log_of('b')) == pytest.approx(expected, rel=1e-3)
    assert 'CosineAnnealingLR starts anew, from epoch 4 to 8 of 8' in log_of('b')


def test_a_fresh_schedule_takes_the_rate_of_the_config_and_can_be_resumed(scheduled, log_of):
    scheduled('a', WARM_UP, EPOCHS.format(2))
    options = (COSINE.format(end=''), EPOCHS.format(6), 'optim_wrapper.optimizer.lr=0.5')
    scheduled('whole', *options, FRESH, resume='a/epoch_2.pth')
    assert rates(log_of('whole'))[0] == 0.5
    for epoch in (5, 6):
        Path(f'whole/epoch_{epoch}.pth').rename(f'epoch_{epoch}.kept')
    scheduled('whole', *options, resume='auto')
    old, new = read_checkpoint('epoch_6.kept'), read_checkpoint('whole/epoch_6.pth')
    assert new['param_schedulers'] == old['param_schedulers']
    torch.testing.assert_close(new['optimizer'], old['optimizer'], rtol=0, atol=0)


def test_the_same_schedule_goes_on_and_says_what_the_config_has_otherwise(scheduled, log_of):
    scheduled('a', COSINE.format(end=''), EPOCHS.format(2))
    scheduled('a', COSINE.format(end=''), EPOCHS.format(4), 'optim_wrapper.optimizer.lr=0.02',
              resume='auto')
    log = log_of('a')
    assert 'T_max is 4 in this config; the run goes on with the 2 of the checkpoint' in log
    assert 'epoch_2.pth: optim_wrapper.optimizer.lr: 0.01 -> 0.02' in log
    assert 'the run goes on with the 0.01 of the checkpoint, not the 0.02 of this config' in log


def test_groups_in_another_number_get_their_values(scheduled, log_of):
    scheduled('a', f"{WARM_UP}, {COSINE.format(end=', end=4')}", EPOCHS.format(2))
    runner = scheduled('a', f"{WARM_UP}, {COSINE.format(end=', end=4')}", EPOCHS.format(4),
                       'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0.5',
                       resume='auto')
    groups = runner.optim_wrapper.optimizer.param_groups
    assert len(groups) == 6
    names = [name for name, _ in runner.model.named_parameters()]
    for group, name in zip(groups, names, strict=True):
        base = 0.005 if 'backbone' in name else 0.01
        assert group['initial_lr'] == pytest.approx(base)
        assert group['lr'] / base == pytest.approx(
            runner.optim_wrapper.base_param_settings['lr'] / 0.01)
    for scheduler in runner.param_schedulers:
        assert scheduler.base_values == [group['initial_lr'] for group in
                                         runner.optim_wrapper.param_groups]


MORE = 'default_hooks.checkpoint.more_epochs={}'


@pytest.mark.parametrize('by_iteration', [True, False])
def test_a_stretched_schedule_is_that_of_the_longer_run(scheduled, log_of, by_iteration):
    cosine = "dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=True, begin=0, T_max={0}, " \
             f"end={{0}}, convert_to_iter_based={by_iteration})"
    scheduled('whole', f'{WARM_UP}, {cosine.format(5)}', EPOCHS.format(5))
    whole = rates(log_of('whole'))
    scheduled('a', f'{WARM_UP}, {cosine.format(2)}', EPOCHS.format(2))
    assert rates(log_of('a')) != whole[:4]
    scheduled('a', f'{WARM_UP}, {cosine.format(5)}', EPOCHS.format(5), MORE.format('stretch'),
              resume='auto')
    assert rates(log_of('a'))[4:] == pytest.approx(whole[4:], rel=1e-4)
    assert f'schedule: that of a run of 5 epochs, at epoch {2}' in log_of('a')


@pytest.mark.parametrize('by_iteration', [True, False])
def test_a_stretched_schedule_counts_epochs_of_the_length_that_they_have_now(
        scheduled, log_of, by_iteration):
    cosine = "dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=True, begin=0, T_max={0}, " \
             f"end={{0}}, convert_to_iter_based={by_iteration})"
    larger = 'train_dataloader.batch_size=8'  # of the toy task: one iteration an epoch, not two
    scheduled('whole', cosine.format(4), EPOCHS.format(4), larger)
    scheduled('a', cosine.format(2), EPOCHS.format(2))
    scheduled('a', cosine.format(4), EPOCHS.format(4), MORE.format('stretch'), larger,
              resume='auto')
    assert rates(log_of('a'))[4:] == pytest.approx(rates(log_of('whole'))[2:], rel=1e-4)
    assert 'of the checkpoint (--fresh-schedule' not in log_of('a')


def test_a_run_of_the_same_length_is_not_stretched(scheduled, log_of):
    cosine = COSINE.format(end=', T_max=4, end=4')
    scheduled('a', cosine, EPOCHS.format(4))
    (Path('a') / 'epoch_4.pth').unlink()
    (Path('a') / 'epoch_3.pth').unlink()
    scheduled('a', cosine, EPOCHS.format(4), MORE.format('stretch'), resume='auto')
    assert 'schedule: that of' not in log_of('a')


def test_unknown_ways_of_going_on_longer_are_refused(run):
    with pytest.raises(ConfigError, match='choose one of hold, stretch, restart'):
        run('a', MORE.format('guess'))
