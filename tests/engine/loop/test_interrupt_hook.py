"""Signals: who has them when, and what the user is told."""
import signal

import pytest
from mmengine.config import Config

from bevfusion_enhanced.engine.configuration.config import (
    DEFAULT_SEED,
    make_deterministic,
    use_exact_resume,
)
from bevfusion_enhanced.engine.loop.interrupt_hook import how_to_go_on


@pytest.mark.parametrize(('argv', 'command'), [
    ('tools/train.py c.py', 'tools/train.py c.py --resume'),
    ('tools/train.py c.py --resume', 'tools/train.py c.py --resume'),
    ('tools/train.py c.py --resume a.pth --amp', 'tools/train.py c.py --amp --resume'),
    ('tools/train.py c.py --load-from a.pth m=b.pth --work-dir w',
     'tools/train.py c.py --work-dir w --resume'),
    ('tools/train.py --pretrained=a.pth c.py', 'tools/train.py c.py --resume'),
    ('tools/train.py --restart c.py', 'tools/train.py c.py --resume'),
    ('tools/train.py c.py --extra-tag auto',
     'tools/train.py c.py --extra-tag auto --work-dir RUN --resume'),
])
def test_command_that_goes_on(argv, command, monkeypatch):
    monkeypatch.delenv('TORCHELASTIC_RUN_ID', raising=False)
    assert how_to_go_on(argv.split(), work_dir='RUN') == f'go on with: python {command}'


def test_command_of_several_processes_is_not_guessed(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', '1')
    assert 'same command and --resume' in how_to_go_on(['tools/train.py', 'c.py'], work_dir='RUN')


@pytest.mark.parametrize('broken', [-1, 3])
def test_signals_are_given_back(run, tmp_path, broken):
    from bevfusion_enhanced.errors import DataError
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    options = ('train_cfg.max_epochs=1', f'train_dataloader.dataset.broken={broken}')
    if broken < 0:
        run(tmp_path / 'run', *options)
    else:
        with pytest.raises(DataError):
            run(tmp_path / 'run', *options)
    assert [signal.getsignal(number)
            for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_config_without_anything_gets_what_exact_resume_needs():
    config = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=2)))
    use_exact_resume(config)
    assert config.train_cfg == dict(type='ResumableTrainLoop', max_epochs=2)
    assert config.default_hooks.interrupt.type == 'InterruptHook'
    assert config.randomness.seed == DEFAULT_SEED


@pytest.mark.parametrize('loop', [
    dict(by_epoch=False, max_iters=2), dict(type='IterBasedTrainLoop', max_iters=2),
    dict(type='MyLoop', max_epochs=2)])
def test_other_loops_stay(loop):
    config = Config(dict(train_cfg=dict(loop), randomness=dict(seed=5),
                         default_hooks=dict(interrupt=None)))
    use_exact_resume(config)
    assert config.train_cfg == loop
    assert config.randomness.seed == 5
    assert config.default_hooks.interrupt is None


def test_deterministic_config(monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':16:8')
    config = Config(dict(randomness=dict(seed=None, diff_rank_seed=True),
                         env_cfg=dict(cudnn_benchmark=True)))
    make_deterministic(config)
    assert config.randomness == dict(seed=DEFAULT_SEED, deterministic=True, diff_rank_seed=False)
    assert config.env_cfg.cudnn_benchmark is False
