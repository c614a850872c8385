"""Every config builds; derived configs differ from their bases in what they say alone."""
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES, MAP_CLASSES
from bevfusion_enhanced.engine.configuration.preflight import leaf_datasets

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.relative_to(REPO / 'configs').as_posix()
                 for path in (REPO / 'configs').rglob('*.py') if '_base_' not in path.parts)
PHASES = ('phase3_enhanced_seg.py', 'phase4a_task_gca.py')

# What a config at toy sizes may change: sizes, places of data, what follows from few iterations.
SIZES = {
    'embed_dims', 'depths', 'num_heads', 'drop_path_rate', 'in_channels', 'out_channels',
    'base_channels', 'encoder_channels', 'output_channels', 'layer_nums', 'hidden_channel',
    'num_proposals', 'feedforward_channels', 'num_pos_feats', 'decoder_channels', 'sparse_shape',
    'grid_size', 'voxel_size', 'point_cloud_range', 'pc_range', 'max_voxels', 'image_size',
    'feature_size', 'xbound', 'ybound', 'dbound', 'input_scope', 'output_scope', 'final_dim',
    'resize_lim', 'sweeps_num', 'pad_size_divisor', 'batch_size', 'num_workers', 'momentum',
    'dropout', 'ffn_drop', 'rot_range', 'scale_ratio_range', 'translation_std', 'encoder_paddings',
    'max_epochs', 'val_interval', 'interval', 'window_size', 'T_max', 'end', 'lr',
}
PLACES = {'data_root', 'ann_file'}


def load(name: str) -> Config:
    return Config.fromfile(str(REPO / 'configs' / name))


def build(config: Config) -> torch.nn.Module:
    init_default_scope('mmdet3d')
    return MODELS.build(config.model)


def leaves(value: Any, path: str = '') -> Dict[str, Any]:
    """{dotted path: leaf} of a nest of dicts and lists of dicts; a list of numbers is a leaf."""
    if isinstance(value, dict):
        nested = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        nested = ((str(index), item) for index, item in enumerate(value))
    else:
        return {path: value}
    return {key: leaf for name, item in nested
            for key, leaf in leaves(item, f'{path}.{name}').items()}


def effective(config: Config) -> Dict[str, Any]:
    """The leaves that the runner reads, without the variables that configs use to say them."""
    parts = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator',
             'test_evaluator', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'default_hooks',
             'custom_hooks', 'log_processor', 'default_scope', 'custom_imports')
    return leaves({part: config[part].to_dict() if isinstance(config[part], dict) else config[part]
                   for part in parts})


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith('mini/')])
def test_model_builds(name: str) -> None:
    assert sum(p.numel() for p in build(load(name)).parameters()) > 0


@pytest.mark.parametrize('name', PHASES)
def test_toy_configs_change_sizes_only(name: str) -> None:
    full, mini = effective(load(name)), effective(load(f'mini/{name}'))
    changed = {key for key in full.keys() | mini.keys() if full.get(key) != mini.get(key)}
    other = {key for key in changed if key.rsplit('.', 1)[-1] not in SIZES | PLACES}
    assert not other


@pytest.mark.parametrize('folder', ['', 'mini/'])
def test_phase4a_adds_the_gca_and_nothing_else(folder: str) -> None:
    before, after = (effective(load(folder + name)) for name in PHASES)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    length = {'max_epochs', 'T_max', 'end'} if folder else set()
    other = {key for key in changed if key.rsplit('.', 1)[-1] not in length}
    assert other and all(key.startswith('.model.task_gca') for key in other)


def test_phase4a_at_full_size_has_the_parameters_of_the_design() -> None:
    phase3, phase4a = (build(load(name)).state_dict() for name in PHASES)
    fresh = {key: tensor for key, tensor in phase4a.items() if key not in phase3}
    assert set(fresh) == {f'task_gca.{task}.fc.{layer}.weight'
                          for task in ('object', 'map') for layer in (0, 2)}
    assert sum(tensor.numel() for tensor in fresh.values()) == 262_144
    assert not set(phase3) - set(phase4a)


@pytest.mark.parametrize('name', [name for name in CONFIGS if name != 'mini/real_frame.py'])
def test_classes_are_in_the_order_of_the_references(name: str) -> None:
    config = load(name)
    for part in ('train', 'val', 'test'):
        for _, dataset in leaf_datasets(config[f'{part}_dataloader'].dataset, part):
            assert tuple(dataset.metainfo.classes) == tuple(DETECTION_CLASSES)
            assert tuple(dataset.metainfo.map_classes) == tuple(MAP_CLASSES)
    heads = config.model.heads
    assert heads.get('map') is None or tuple(heads.map.classes) == tuple(MAP_CLASSES)
    assert heads.get('object') is None or heads.object.num_classes == len(DETECTION_CLASSES)


FULL_SIZE_RUN = """
_base_ = {base!r}
data_root = {root!r}
places = dict(
    LoadBEVMapMasks=dict(data_root=data_root),
    ImageAug3D=dict(resize_lim=[4.4, 4.4]))  # the simulated images are 160 x 90
loaders = {{}}
train_pipeline, test_pipeline = (
    [dict(step, **places.get(step['type'], {{}})) for step in steps]
    for steps in (_base_.train_pipeline, _base_.test_pipeline))
one = dict(batch_size=1, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    one, dataset=dict(data_root=data_root, pipeline=train_pipeline, indices=[1, 2]))
val_dataloader = dict(one, dataset=dict(data_root=data_root, pipeline=test_pipeline, indices=[1]))
test_dataloader = val_dataloader
val_evaluator = [
    dict(_base_.val_evaluator[0],
         data_root=data_root, ann_file=data_root + 'nuscenes_infos_val.pkl'),
    _base_.val_evaluator[1]]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=-1, save_last=False))
"""


def test_phase4a_at_full_size_trains_and_predicts_on_a_cpu(mini_nuscenes: Path,
                                                           tmp_path: Path) -> None:
    config = tmp_path / 'full_size.py'
    config.write_text(FULL_SIZE_RUN.format(
        base=str(REPO / 'configs/phase4a_task_gca.py'), root=f'{mini_nuscenes}/'))
    run = subprocess.run(
        [sys.executable, str(REPO / 'tools/train.py'), str(config),
         '--work-dir', str(tmp_path / 'run')], capture_output=True, text=True)
    log = run.stdout + run.stderr
    assert run.returncode == 0, log[-3000:]
    assert 'Epoch(train) [1][2/2]' in log and 'loss/map/divider' in log
    assert 'map/mean/iou@max' in log and 'object/NDS' in log
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2 ** 20
    assert peak_gb < 16
