"""The epoch reaches transforms in workers that live on; samples are enough for all processes."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, HOOKS
from mmengine.dataset import DefaultSampler
from mmengine.registry import DefaultScope, init_default_scope
from torch.utils.data import DataLoader, Dataset

from bevfusion_enhanced.datasets.object_database_writer import create_object_database
from bevfusion_enhanced.datasets.sample_keys import key_samples
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES
from bevfusion_enhanced.engine.hooks import dataset_hook
from bevfusion_enhanced.engine.hooks.dataset_hook import DatasetHook
from bevfusion_enhanced.errors import ConfigError


class _TellsEpoch:
    """A transform as BEVFusionObjectSample is: the epoch in memory that workers share."""

    def __init__(self) -> None:
        self.epoch = torch.full((1,), -1).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)


@DATASETS.register_module()
class EpochDataset(Dataset):
    """Samples of the toy task whose y is the epoch that their transform was told."""

    def __init__(self, length: int = 8) -> None:
        self.length, self.metainfo = length, dict(classes=['car', 'truck'])
        self.pipeline = SimpleNamespace(transforms=[SimpleNamespace(transforms=[_TellsEpoch()])])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        epoch = self.pipeline.transforms[0].transforms[0].epoch
        return dict(x=torch.linspace(-1, 1, 4) + index, y=epoch[0].float())


@HOOKS.register_module()
class SeenEpochsHook(DatasetHook):
    """Keeps what the batches of each epoch say."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        runner.message_hub.update_info('seen', runner.message_hub.runtime_info.get('seen', [])
                                       + [(runner.epoch, data_batch['y'].tolist())])


OVERRIDES = ('train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True',
             'train_dataloader.dataset.type=EpochDataset', 'train_cfg.max_epochs=3',
             'default_hooks.dataset.type=SeenEpochsHook')


def test_a_training_with_persistent_workers(run, tmp_path):
    runner = run(tmp_path / 'run', *OVERRIDES)
    seen = runner.message_hub.get_info('seen')
    assert len(seen) == 6  # eight samples in batches of four
    assert all(told == [float(epoch)] * 4 for epoch, told in seen)
    assert {epoch for epoch, _ in seen} == {0, 1, 2}


def test_more_processes_than_samples(run, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_hook, 'get_world_size', lambda: 8)
    run(tmp_path / 'enough', *OVERRIDES, 'train_cfg.max_epochs=1')
    monkeypatch.setattr(dataset_hook, 'get_world_size', lambda: 9)
    with pytest.raises(ConfigError, match='train_dataloader: 8 samples for 9 processes; start at'):
        run(tmp_path / 'few', *OVERRIDES)
    for name in ('val', 'test'):
        loader = DataLoader(EpochDataset(3))
        runner = SimpleNamespace(train_dataloader=DataLoader(EpochDataset(9)), val_loop=True,
                                 val_dataloader=loader, test_dataloader=loader)
        with pytest.raises(ConfigError, match=f'{name}_dataloader: 3 samples for 9 processes'):
            DatasetHook().before_train(runner) if name == 'val' else DatasetHook().before_test(
                runner)


def test_one_process_and_a_split_of_one_sample():
    DatasetHook().before_test(SimpleNamespace(test_dataloader=DataLoader(EpochDataset(1))))


@pytest.fixture(scope='module')
def pasted_config(mini_nuscenes, tmp_path_factory) -> dict:
    """CBGS over repeated samples with pasted objects and augmentations, two epochs of them."""
    if DefaultScope.get_current_instance() is None:
        init_default_scope('mmdet3d')
    out = tmp_path_factory.mktemp('objects')
    create_object_database(root_path=mini_nuscenes, out_dir=out, sweeps_num=1,
                           info_file=mini_nuscenes / 'nuscenes_infos_val.pkl')
    pipeline = [
        dict(type='LoadPointsWithSweeps', sweeps_num=1),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        dict(type='BEVFusionObjectSample', info_path=str(out / 'nuscenes_dbinfos_train.pkl'),
             classes=DETECTION_CLASSES, sample_groups=dict.fromkeys(DETECTION_CLASSES, 25),
             stop_epoch=1),
        dict(type='BEVFusionGlobalRotScaleTrans', rot_range=0.7, scale_ratio_range=[0.9, 1.1]),
        dict(type='BEVFusionRandomFlip3D'), dict(type='PointShuffle'),
        dict(type='PackBEVFusionInputs')]
    return dict(type='SeededCBGSDataset', dataset=dict(
        type='NuScenesMultiTaskDataset', data_root=str(mini_nuscenes), pipeline=pipeline,
        ann_file='nuscenes_infos_train.pkl', modality=dict(use_lidar=True)))


def loader_of(config: dict, workers: int) -> tuple:
    dataset = DATASETS.build(config)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list,
                        persistent_workers=workers > 0,
                        sampler=DefaultSampler(dataset, shuffle=True, seed=5))
    return loader, key_samples(loader, seed=3)


def epoch_of(loader: DataLoader, keys, epoch: int, start: int = 0) -> list:
    keys.start = start
    keys.set_epoch(epoch)
    DatasetHook().before_train_epoch(SimpleNamespace(train_dataloader=loader, epoch=epoch))
    return [sample for batch in loader for sample in batch]


def same(one: dict, other: dict) -> bool:
    boxes = [sample['data_samples'].gt_instances_3d.bboxes_3d.tensor for sample in (one, other)]
    return torch.equal(*boxes) and torch.equal(one['inputs']['points'], other['inputs']['points'])


def test_resampled_and_pasted_samples_go_on_exactly(pasted_config):
    """A run that stopped after three samples reads the rest as the run that went on."""
    loader, keys = loader_of(pasted_config, workers=1)
    first, second = (epoch_of(loader, keys, epoch) for epoch in (0, 1))
    assert len(first) == len(loader.dataset) == len(second) > 8

    np.random.seed(99)  # another process, in another state
    for epoch, whole in ((0, first), (1, second)):
        again, keys = loader_of(pasted_config, workers=0)
        rest = epoch_of(again, keys, epoch, start=3)
        assert len(rest) == len(whole) - 3
        assert all(same(one, other) for one, other in zip(rest, whole[3:], strict=True))

    annotated = {index: len(loader.dataset.dataset.get_data_info(index)['ann_info']['gt_labels_3d'])
                 for index in range(4)}

    def pasted(samples) -> list:
        return [len(sample['data_samples'].gt_instances_3d.labels_3d)
                - annotated[sample['data_samples'].sample_idx] for sample in samples]

    assert min(pasted(first)) > 0 and not any(pasted(second))
