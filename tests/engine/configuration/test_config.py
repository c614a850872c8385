"""Configs that cannot be read are named."""
from pathlib import Path

import pytest

from bevfusion_enhanced.engine.commands.train import TrainOptions, resolve
from bevfusion_enhanced.engine.configuration.config import load_config, use_checkpoint_hook
from bevfusion_enhanced.errors import ConfigError

REPO = Path(__file__).parents[3]


@pytest.mark.parametrize('text, says', [
    (None, 'does not exist'),
    ('a = dict(', r'c\.py: .*line 1'),
    ("_base_ = ['none.py']", 'base of it is missing'),
    ('a = unknown_name', 'unknown_name'),
    ("custom_imports = dict(imports=['no_such_package'])", 'no_such_package'),
])
def test_unreadable_config(tmp_path, text, says):
    path = tmp_path / 'c.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(str(path))
    assert '\n' not in str(caught.value) and 'c.py' in str(caught.value)


def test_overrides(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text('a = dict(b=1, c=[dict(d=2)])\n')
    config = load_config(str(path), ['a.b=[1,x]', 'a.c.0.d=3.5', 'e.f=None'])
    assert (config.a.b, config.a.c[0].d, config.e.f) == ([1, 'x'], 3.5, None)
    for wrong in ('a', '=3', 'a.c.7.d=1', 'a=[1,(2]', 'a.c=[dict(d=1,e=2)]'):
        with pytest.raises(ConfigError, match='--cfg-options'):
            load_config(str(path), [wrong])


def test_options_reach_the_config(toy_config):
    config = resolve(TrainOptions(config=str(toy_config), load_from=['a.pth', 'b.pth']))
    assert Path(config.work_dir) == Path('work_dirs/mini/toy/default')
    assert config.load_from == ['a.pth', 'b.pth'] and config.resume is False
    config = resolve(TrainOptions(config=str(toy_config), load_from=['a.pth']))
    assert config.load_from == 'a.pth'
    config = resolve(TrainOptions(config=str(toy_config), resume='auto', work_dir='w'))
    assert (config.load_from, config.resume, config.work_dir) == (None, True, 'w')
    with pytest.raises(ConfigError, match='one of the two'):
        resolve(TrainOptions(config=str(toy_config), load_from=['a.pth'], resume='auto'))


def test_monitoring_reaches_the_hook_however_it_is_set(toy_config):
    toy_config.write_text(toy_config.read_text() + (
        "\nmonitoring = dict(interval=50, warn_norm=None)"
        "\ncustom_hooks = [dict(type='RichProgressHook'),"
        " dict(type='HealthHook', warn_share=0.5)]\n"))
    config = resolve(TrainOptions(config=str(toy_config), overrides=[
        'monitoring.warn_norm=70.', 'monitoring.warn_share=0.1']))
    assert config.custom_hooks == [dict(type='RichProgressHook'), dict(
        type='HealthHook', warn_share=0.5, interval=50, warn_norm=70.)]


def test_the_default_configs_monitor():
    config = resolve(TrainOptions(config=str(REPO / 'configs/mini/phase3_enhanced_seg.py'),
                                  overrides=['monitoring.interval=7']))
    [hook] = [hook for hook in config.custom_hooks if hook['type'] == 'HealthHook']
    assert hook['interval'] == 7 and hook['max_bad_steps'] == 10


def test_options_of_a_start_reach_the_checkpoint_hook(toy_config):
    def hook(**options):
        return resolve(TrainOptions(config=str(toy_config), **options)).default_hooks.checkpoint

    assert hook(resume='auto', fresh_schedule=True)['resume_schedule'] is False
    assert 'resume_schedule' not in hook(resume='auto')
    classes = hook(load_from=['a.pth'], source_classes=['classes=car,truck'])['source_classes']
    assert classes == {'classes': ['car', 'truck']}
    for options in ({}, dict(resume='auto')):
        with pytest.raises(ConfigError, match='--source-classes: .*--load-from'):
            hook(source_classes=['classes=car'], **options)


def test_deterministic_reaches_the_runner(toy_config, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    config = resolve(TrainOptions(config=str(toy_config), deterministic=True))
    assert config.randomness.deterministic is True


def test_amp_reaches_the_optimizer_wrapper(toy_config, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    config = resolve(TrainOptions(config=str(toy_config), amp=True))
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.optim_wrapper.loss_scale == 'dynamic'
    with pytest.raises(ConfigError, match='ApexOptimWrapper'):
        resolve(TrainOptions(config=str(toy_config), amp=True,
                             overrides=['optim_wrapper.type=ApexOptimWrapper']))


def test_our_checkpoint_hook_takes_the_place_of_mmengines(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text("default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=3))\n")
    config = load_config(str(path))
    use_checkpoint_hook(config)
    assert config.default_hooks.checkpoint == dict(type='PartialLoadCheckpointHook', interval=3)


def test_processes_without_a_gpu_are_torchruns(toy_config, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(ConfigError, match='use torchrun'):
        resolve(TrainOptions(config=str(toy_config), launcher='pytorch'))
