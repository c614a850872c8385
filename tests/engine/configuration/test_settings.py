"""Settings of the command line reach the places where a config keeps them."""
import pytest
from mmengine.config import Config

from bevfusion_enhanced.engine.configuration.preflight import leaf_datasets
from bevfusion_enhanced.engine.configuration.settings import Settings, apply_settings, set_epochs
from bevfusion_enhanced.errors import ConfigError


@pytest.fixture
def config():
    return Config(dict(
        max_epochs=20,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=20),
        train_dataloader=dict(batch_size=4, num_workers=4, persistent_workers=True,
                              prefetch_factor=2),
        val_dataloader=dict(num_workers=4, persistent_workers=True),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=2e-4)),
        param_scheduler=[
            dict(type='LinearLR', by_epoch=False, begin=0, end=500),
            dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=20, T_max=20),
            dict(type='MultiStepLR', by_epoch=True, milestones=[10, 15])]))


def test_nothing_asked_for_changes_nothing(config):
    before = config.pretty_text
    apply_settings(config, Settings())
    assert config.pretty_text == before


def test_each_setting_has_its_place(config):
    apply_settings(config, Settings(batch_size=2, workers=1, lr=1e-3, seed=7))
    assert config.train_dataloader.batch_size == 2
    assert config.train_dataloader.num_workers == config.val_dataloader.num_workers == 1
    assert config.optim_wrapper.optimizer.lr == 1e-3 and config.randomness.seed == 7


def test_no_workers_need_no_processes(config):
    apply_settings(config, Settings(workers=0))
    for loader in (config.train_dataloader, config.val_dataloader):
        assert loader.num_workers == 0 and not loader.persistent_workers
        assert 'prefetch_factor' not in loader


@pytest.mark.parametrize('epochs', [5, 20, 40])
def test_what_ends_with_the_training_still_does(config, epochs):
    set_epochs(config, epochs)
    warm_up, cosine, steps = config.param_scheduler
    assert config.train_cfg.max_epochs == config.max_epochs == cosine.end == cosine.T_max == epochs
    assert warm_up.end == 500
    assert steps.milestones == [round(10 * epochs / 20), round(15 * epochs / 20)]


@pytest.mark.parametrize('name', ['phase4a_gt_paste.py', 'det_only_cbgs_gt_paste.py'])
@pytest.mark.parametrize('epochs, stop', [(40, 30), (10, 8), (1, 1)])
def test_pasting_ends_as_long_before_the_end(repo, name, epochs, stop):
    """Pasted objects are not in the images, so the last epochs have to do without."""
    config = Config.fromfile(str(repo / 'configs' / name), import_custom_modules=False)
    set_epochs(config, epochs)
    read_again = Config.fromstring(config.pretty_text, '.py')
    _, dataset = next(leaf_datasets(read_again.train_dataloader.dataset, 'dataset'))
    found = [step.stop_epoch for step in dataset.pipeline if 'stop_epoch' in step]
    assert found == [stop]


def test_accumulating_loads_larger_batches(config):
    apply_settings(config, Settings(batch_size=3, accumulate=4))
    assert config.train_dataloader.batch_size == 12 and config.train_cfg.accumulate == 4
    apply_settings(config, Settings(accumulate=2))  # of the same parts
    assert config.train_dataloader.batch_size == 6


@pytest.mark.parametrize('settings, says', [
    (dict(batch_size=0), '--batch-size 0'), (dict(epochs=-1), '--epochs -1'),
    (dict(accumulate=0), '--accumulate 0'), (dict(workers=-1), '--workers -1'),
    (dict(lr=0.0), '--lr 0.0'), (dict(lr=float('nan')), '--lr nan'),
])
def test_numbers_out_of_range_are_refused(config, settings, says):
    with pytest.raises(ConfigError, match=says):
        apply_settings(config, Settings(**settings))


def test_a_config_without_the_place_is_refused():
    with pytest.raises(ConfigError, match='--lr: .*optim_wrapper'):
        apply_settings(Config(dict(a=1)), Settings(lr=1.0))
    with pytest.raises(ConfigError, match='does not train by epochs'):
        set_epochs(Config(dict(train_cfg=dict(max_iters=5))), 3)
    with pytest.raises(ConfigError, match='does not train by epochs'):
        apply_settings(Config(dict(train_cfg=dict(type='IterBasedTrainLoop'))),
                       Settings(accumulate=2))
