"""What a pipeline's steps need is checked before anything is built."""
import copy

import pytest

from bevfusion_enhanced.engine.configuration.preflight_data import check_steps, hook_types
from bevfusion_enhanced.errors import ConfigError, DataError

CLASSES = ['car', 'bus']
HOOKS = hook_types(dict(default_hooks=dict(dataset=dict(type='DatasetHook'), other=None),
                        custom_hooks=[dict(type='RichProgressHook')]))


@pytest.fixture
def pipeline(tmp_path):
    (tmp_path / 'maps' / 'expansion').mkdir(parents=True)
    (tmp_path / 'objects.pkl').write_bytes(b'')
    return copy.deepcopy([
        dict(type='LoadPointsWithSweeps'), dict(type='LoadAnnotations3D'),
        dict(type='RandomApply', transforms=[dict(
            type='BEVFusionObjectSample', info_path=str(tmp_path / 'objects.pkl'), classes=CLASSES,
            sample_groups={}, stop_epoch=15)]),
        dict(type='BEVFusionRandomFlip3D'),
        dict(type='LoadBEVMapMasks', data_root=str(tmp_path))])


def check(pipeline, hooks=HOOKS, **metainfo):
    check_steps(pipeline, metainfo={**dict(classes=CLASSES), **metainfo}, hooks=hooks,
                where='train_dataloader.dataset')


def test_a_sound_pipeline(pipeline):
    assert HOOKS == ['DatasetHook', 'RichProgressHook']
    check(pipeline)
    pipeline[2]['transforms'][0]['stop_epoch'] = None
    check(pipeline, hooks=())


@pytest.mark.parametrize('break_it, error, says', [
    (lambda steps: steps[2]['transforms'][0].update(info_path='no.pkl'), DataError,
     r'pipeline: BEVFusionObjectSample\.info_path: GT database no\.pkl does not exist; write it'),
    (lambda steps: steps[4].update(data_root='nowhere'), DataError,
     r'LoadBEVMapMasks\.data_root: no vector maps: nowhere.maps.expansion does not exist'),
    (lambda steps: steps[2]['transforms'][0].update(classes=['bus', 'car']), ConfigError,
     'make them agree, in order too'),
    (lambda steps: steps.insert(2, steps.pop(3)), ConfigError,
     'comes after BEVFusionRandomFlip3D; put it before'),
    (lambda steps: steps.append(steps.pop(1)), ConfigError,
     'comes before LoadAnnotations3D; put it after')])
def test_one_mistake_one_line(pipeline, break_it, error, says):
    break_it(pipeline)
    with pytest.raises(error, match=says) as caught:
        check(pipeline)
    message = str(caught.value)
    assert message.startswith('train_dataloader.dataset.pipeline: ') and '\n' not in message


def test_nobody_tells_the_epoch(pipeline):
    with pytest.raises(ConfigError, match='stop_epoch is 15, but no hook tells the epoch; add '):
        check(pipeline, hooks=['RichProgressHook'])
