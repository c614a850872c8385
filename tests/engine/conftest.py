"""The package made ready for MMEngine, configs of the toy task, and runs of it."""
import itertools
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CONFIG = '''
custom_imports = dict(imports=['bevfusion_enhanced', 'bevfusion_enhanced.engine', 'toy_task'])
default_scope = 'mmdet3d'
model = dict(type='ToyModel')
train_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True), dataset=dict(type='ToyDataset'))
test_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(type='ToyDataset'))
test_evaluator = dict(type='ToyMetric')
train_cfg = dict(by_epoch=True, max_epochs=2)
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='PartialLoadCheckpointHook', interval=1))
custom_hooks = [dict(type='RichProgressHook')]
randomness = dict(seed=0)
'''


@pytest.fixture(scope='session', autouse=True)
def toy_task():
    """Make the toy task importable, and MMEngine able to read checkpoints."""
    sys.path.insert(0, str(HERE))
    from bevfusion_enhanced import compat
    compat.apply()
    import toy_task as module
    yield module
    sys.path.remove(str(HERE))


@pytest.fixture(scope='session', autouse=True)
def _no_survey_of_the_machine():
    """MMEngine asks compilers and drivers for their versions at every start: seconds a run."""
    import mmengine.runner.runner as module
    patch = pytest.MonkeyPatch()
    patch.setattr(module, 'collect_env', lambda: {})
    yield
    patch.undo()


@pytest.fixture
def toy_config(tmp_path, monkeypatch):
    """Path of the toy config, in `configs/mini` below the current folder as a real one would be."""
    monkeypatch.chdir(tmp_path)
    path = Path('configs', 'mini', 'toy.py')
    path.parent.mkdir(parents=True)
    path.write_text(CONFIG)
    return path


_NUMBER = itertools.count()


@pytest.fixture
def run(toy_config):
    """Train the toy task for real: run(work_dir, 'key=value', ..., load_from=..., resume=...)."""
    from mmengine.runner import Runner

    from bevfusion_enhanced.engine.commands.train import TrainOptions, resolve

    def train(work_dir, *overrides, load_from=(), resume=None):
        options = TrainOptions(config=str(toy_config), work_dir=str(work_dir), overrides=overrides,
                               load_from=load_from, resume=resume)
        config = resolve(options)
        config.experiment_name = f'toy_{next(_NUMBER)}'
        runner = Runner.from_cfg(config)
        runner.train()
        return runner

    return train


@pytest.fixture
def log_of():
    """All that the runs in a folder logged."""
    def read(work_dir):
        return '\n'.join(path.read_text() for path in sorted(Path(work_dir).glob('*/*.log')))

    return read
