"""What is wrong with a config is said before anything is built."""
import copy

import pytest
import torch

from bevfusion_enhanced.checkpoints import write_checkpoint
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES, MAP_CLASSES
from bevfusion_enhanced.engine.configuration.preflight import check_config
from bevfusion_enhanced.errors import CheckpointError, ConfigError, DataError

TRAIN_PIPELINE = [dict(type='LoadMultiViewImages'), dict(type='LoadPointsWithSweeps'),
                  dict(type='LoadAnnotations3D'), dict(type='LoadBEVMapMasks')]


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'train.pkl').write_bytes(b'info')
    dataset = dict(type='NuScenesMultiTaskDataset', data_root=str(tmp_path / 'data'),
                   ann_file='train.pkl', pipeline=TRAIN_PIPELINE,
                   metainfo=dict(classes=list(DETECTION_CLASSES), map_classes=list(MAP_CLASSES)))
    model = dict(type='BEVFusion', encoders=dict(camera=dict(a=1), lidar=dict(b=1)),
                 heads=dict(object=dict(type='TransFusionHead', num_classes=10),
                            map=dict(type='BEVSegmentationHead', classes=list(MAP_CLASSES))))
    return copy.deepcopy(dict(
        model=model, work_dir=str(tmp_path / 'work'), load_from=None, resume=False,
        train_dataloader=dict(dataset=dict(type='CBGSDataset', dataset=dataset)),
        test_dataloader=dict(dataset=dataset)))


def dataset_of(config):
    return config['train_dataloader']['dataset']['dataset']


def test_a_sound_config_passes(config):
    before = copy.deepcopy(config)
    check_config(config, mode='train')
    check_config(config, mode='test')
    assert config == before


def without(key):
    return lambda config: config.pop(key)


def changed(**changes):
    return lambda config: dataset_of(config).update(changes)


def renamed(config):
    dataset_of(config)['metainfo']['classes'][0] = 'cra'


def fewer(config):
    dataset_of(config)['metainfo']['classes'].pop()


def other_map(config):
    config['model']['heads']['map']['classes'] = ['divider']


def no_loading(word):
    return lambda config: dataset_of(config).update(
        pipeline=[step for step in TRAIN_PIPELINE if word not in step['type']])


@pytest.mark.parametrize('break_it, error, says', [
    (without('model'), ConfigError, 'no model'),
    (without('train_dataloader'), ConfigError, 'no train_dataloader'),
    (changed(data_root='/no/where'), DataError,
     r'train_dataloader\.dataset\.dataset\.data_root: folder /no/where does not exist'),
    (changed(ann_file='val.pkl'), DataError, r'val\.pkl does not exist; .*create_data'),
    (renamed, ConfigError, "unknown class 'cra'; did you mean 'car'"),
    (fewer, ConfigError, 'num_classes is 10, but .* lists 9'),
    (other_map, ConfigError, 'make them agree'),
    (no_loading('Image'), ConfigError, r'model\.encoders\.camera is conf.*LoadMultiViewImages'),
    (no_loading('Points'), ConfigError, r'model\.encoders\.lidar is configured.*LoadPointsWithSw'),
    (no_loading('Map'), ConfigError, r'model\.heads\.map is configured.*LoadBEVMapMasks'),
    (no_loading('Annot'), ConfigError, r'model\.heads\.object is configured.*LoadAnnotations3D'),
    (lambda c: c['model'].update(encoders={}), ConfigError, r'model\.encoders is empty'),
    (lambda c: c['model'].update(heads=dict(map=None)), ConfigError, r'model\.heads is empty'),
    (lambda c: c.update(load_from='no.pth'), CheckpointError, r'no\.pth does not exist'),
    (lambda c: c.update(resume=True), CheckpointError, 'holds no checkpoint'),
    (lambda c: c['model']['encoders']['camera'].update(
        init_cfg=dict(type='Pretrained', checkpoint='swin.pth')), CheckpointError,
     r'model\.encoders\.camera\.init_cfg\.checkpoint: checkpoint swin\.pth does not exist'),
])
def test_one_mistake_one_line(config, break_it, error, says):
    break_it(config)
    with pytest.raises(error, match=says) as caught:
        check_config(config, mode='train')
    assert '\n' not in str(caught.value)


def test_a_modality_left_out_is_not_asked_for(config):
    del config['model']['encoders']['camera']
    no_loading('Image')(config)
    check_config(config, mode='train')


def test_an_empty_info_file(config, tmp_path):
    (tmp_path / 'data' / 'train.pkl').write_bytes(b'')
    with pytest.raises(DataError, match='is empty'):
        check_config(config, mode='test')


def test_work_dir(config, tmp_path):
    (tmp_path / 'file').write_text('')
    config['work_dir'] = str(tmp_path / 'file' / 'run')
    with pytest.raises(ConfigError, match='file is a file'):
        check_config(config, mode='train')


def test_work_dir_in_use(config, tmp_path):
    write_checkpoint({'w': torch.ones(1)}, tmp_path / 'work' / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match='--resume, or give another --work-dir'):
        check_config(config, mode='train')
    check_config(config, mode='test')
    config['resume'] = True
    check_config(config, mode='train')
