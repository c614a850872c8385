"""Batches are cut into equal parts, and a run that accumulates is one of larger batches."""
import pytest
import torch

from bevfusion_enhanced.engine.loop.micro_batches import split_batch
from bevfusion_enhanced.errors import ConfigError


@pytest.mark.parametrize('size, part_size, parts', [
    (8, 2, 4), (8, 3, 4), (8, 8, 1), (8, 100, 1), (7, 4, 7), (9, 4, 3), (1, 1, 1),
])
def test_parts_are_equal_as_few_as_can_be_and_in_order(size, part_size, parts):
    batch = dict(inputs=dict(x=torch.arange(size), names=[f'{i}' for i in range(size)]),
                 data_samples=tuple(range(size)), note=None)
    cut = split_batch(batch, part_size=part_size)
    assert len(cut) == parts and len({len(part['data_samples']) for part in cut}) == 1
    assert len(cut[0]['data_samples']) <= part_size
    assert torch.equal(torch.cat([part['inputs']['x'] for part in cut]), torch.arange(size))
    assert sum((part['inputs']['names'] for part in cut), []) == batch['inputs']['names']


def test_a_batch_that_is_not_over_samples_is_refused():
    with pytest.raises(ConfigError, match=r'entries of \[2, 3\] samples'):
        split_batch(dict(x=torch.zeros(2), y=[1, 2, 3]), part_size=1)


def test_accumulating_is_training_on_larger_batches(run):
    still = 'optim_wrapper.optimizer.type=SGD'
    norm_free = 'model.norm=False'
    whole = run('whole', still, norm_free, 'train_dataloader.batch_size=4')
    parts = run('parts', still, norm_free, 'train_dataloader.batch_size=4',
                'train_cfg.accumulate=2')
    assert parts.iter == whole.iter
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, msg=name)
