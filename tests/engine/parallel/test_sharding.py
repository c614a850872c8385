"""Two processes that share out a model's parameters train what two with a copy each do."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from processes import one_thread, start_group
from torch import nn

from bevfusion_enhanced.checkpoints.storage import read_checkpoint
from bevfusion_enhanced.engine.commands.train import TrainOptions, train
from bevfusion_enhanced.engine.parallel.sharding import FullyShardedModel, is_sharded, whole
from bevfusion_enhanced.errors import ConfigError

REPO = Path(__file__).resolve().parents[3]
SHARDED = ('model_wrapper_cfg.type=FullyShardedModel',
           'model_wrapper_cfg.units=[encoders.lidar.backbone]')


def run(toy_config, folder, name, *overrides, load_from=(), fails=''):
    """Train in two processes into `folder/name`, or fail with a message; what they printed."""
    options = TrainOptions(
        config=str(toy_config), work_dir=str(folder / name), launcher='pytorch',
        load_from=load_from, overrides=('optim_wrapper.clip_grad.max_norm=1.0',
                                        f'experiment_name=sharding_{name}', *overrides))
    with one_thread():
        group = start_group(lambda: train(options), folder / f'{name}_{len(overrides)}', count=2)
        codes = [child.wait() for child in group]
    printed = '\n'.join(child.text() for child in group)
    assert (codes == [0, 0]) is not bool(fails) and fails in printed, printed[-6000:]
    return printed


def state(folder, name, epoch):
    path = next((folder / name).rglob(f'epoch_{epoch}.pth'))
    checkpoint = read_checkpoint(path)
    return checkpoint['state_dict'], checkpoint['optimizer']['state']


def assert_alike(left, right):
    assert list(left) == list(right)
    for key, value in left.items():
        if isinstance(value, dict):
            assert_alike(value, right[key])
        elif isinstance(value, torch.Tensor):
            assert type(value) is type(right[key]) is torch.Tensor
            torch.testing.assert_close(right[key], value, msg=str(key))
        else:
            assert value == right[key]


def test_training_saving_going_on_and_loading(toy_config, tmp_path):
    run(toy_config, tmp_path, 'copies')
    run(toy_config, tmp_path, 'parts', *SHARDED)
    for left, right in zip(state(tmp_path, 'copies', 2), state(tmp_path, 'parts', 2)):
        assert_alike(left, right)

    run(toy_config, tmp_path, 'stopped', *SHARDED, 'train_cfg.max_epochs=1')
    run(toy_config, tmp_path, 'stopped', *SHARDED)  # goes on, with moments
    for left, right in zip(state(tmp_path, 'parts', 2), state(tmp_path, 'stopped', 2)):
        assert_alike(left, right)

    run(toy_config, tmp_path, 'refused', *SHARDED, 'model_wrapper_cfg.param_dtype=float8',
        fails="FullyShardedModel.param_dtype is 'float8'")  # so it is what is used above

    checkpoint = str(next((tmp_path / 'parts').rglob('epoch_2.pth')))
    for name, options in (('loaded_copies', ()), ('loaded_parts', SHARDED)):
        run(toy_config, tmp_path, name, *options, 'train_cfg.max_epochs=1',
            load_from=[checkpoint])
    assert_alike(state(tmp_path, 'loaded_copies', 1)[0], state(tmp_path, 'loaded_parts', 1)[0])


def member(folder):
    """One process: parts of a model, whole where it is asked for."""
    torch.distributed.init_process_group('gloo')
    torch.manual_seed(torch.distributed.get_rank())  # models differ until they are made equal
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    names = list(model.state_dict())
    sharded = FullyShardedModel(model, units=['0', 'nothing'])
    assert sharded is model and is_sharded(model)
    assert model[0].weight.to_local().shape == (2, 6)
    state = model.state_dict()
    assert list(state) == names and state['0.weight'].shape == (4, 6)
    assert all(type(value) is torch.Tensor for value in state.values())
    everyone = [None, None]
    torch.distributed.all_gather_object(everyone, state)
    assert all(torch.equal(everyone[0][name], everyone[1][name]) for name in names)
    doubled = {name: value * 2 for name, value in state.items()}
    model.load_state_dict(doubled)
    assert torch.equal(whole(model[2].weight), 2 * state['2.weight'])
    assert torch.equal(doubled['2.weight'], 2 * state['2.weight'])  # not edited


def test_state_dicts_are_whole(tmp_path):
    with one_thread():
        group = start_group(lambda: member(tmp_path), tmp_path / 'output', count=2)
        codes = [child.wait() for child in group]
    assert codes == [0, 0], group[0].text() + group[1].text()


def test_what_cannot_be_combined_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="'float8'.*'bfloat16'"):
        FullyShardedModel(model, param_dtype='float8')
    model.task_balance = nn.Identity()
    with pytest.raises(ConfigError, match='task_balance'):
        FullyShardedModel(model)


def test_health_is_not_measured_where_no_process_has_a_gradient(toy_config, tmp_path):
    """And nothing else changes."""
    watched = tmp_path / 'watched.py'
    watched.write_text(f"_base_ = {str(toy_config)!r}\ncustom_hooks = [dict(type='HealthHook')]\n")
    one = ('train_cfg.max_epochs=1',)
    run(toy_config, tmp_path, 'unwatched', *SHARDED, *one)
    run(watched, tmp_path, 'watched_copies', *one)
    printed = run(watched, tmp_path, 'watched', *SHARDED, *one)
    assert 'health is not measured in this run' in printed
    assert not list((tmp_path / 'watched').rglob('record.md'))
    assert list((tmp_path / 'watched_copies').rglob('record.md'))
    for left, right in zip(state(tmp_path, 'unwatched', 1), state(tmp_path, 'watched', 1)):
        assert_alike(left, right)


@pytest.mark.parametrize('strategy', ['fsdp', 'sync_bn'])
@pytest.mark.parametrize('name', ['phase1_baseline', 'lidar_only', 'mini/phase4a_task_gca'])
def test_any_config_can_be_trained_so(tmp_path, name, strategy):
    """By naming the strategy as another base, with nothing else to say."""
    bases = [str(REPO / f'configs/{part}.py') for part in (name, f'_base_/strategies/{strategy}')]
    (tmp_path / 'own.py').write_text(f'_base_ = {bases!r}\n')
    plain, own, alone = (Config.fromfile(str(path), import_custom_modules=False).to_dict()
                         for path in (bases[0], tmp_path / 'own.py', bases[1]))
    assert alone and own == {**plain, **alone}


def test_the_config_asks_for_it():
    leaf = Config.fromfile(str(REPO / 'configs/phase4a_fsdp.py'), import_custom_modules=False)
    assert leaf.model_wrapper_cfg.type == FullyShardedModel.__name__
    assert leaf.model.encoders.camera.backbone.with_cp
