"""Keys: a sample's random numbers by its place in the epoch, whoever loads it."""
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader, Dataset

from bevfusion_enhanced.datasets import sample_keys
from bevfusion_enhanced.datasets.sample_keys import KeyedSampler, SampleKey, key_samples
from bevfusion_enhanced.errors import ConfigError


class Noise(Dataset):
    """(index, a random number)."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, np.random.rand()


def loader_of(*, seed=0, epoch=0, start=0, batch_size=3, **options):
    dataset = Noise()
    loader = DataLoader(dataset, batch_size, sampler=DefaultSampler(dataset, seed=1), **options)
    sampler = key_samples(loader, seed=seed)
    sampler.set_epoch(epoch)
    sampler.start = start
    return loader


def read(loader):
    """[(index, random number)] in the order of the epoch."""
    return [(int(index), float(number)) for batch in loader
            for index, number in zip(*batch, strict=True)]


def test_key_is_its_index_and_travels():
    key = SampleKey(3, seed=2 ** 63 + 1)
    assert key == 3 and ['a', 'b', 'c', 'd'][key] == 'd'
    copy = pickle.loads(pickle.dumps(key))
    assert (copy, type(copy), copy.seed) == (3, SampleKey, key.seed)


@pytest.mark.parametrize('options', [
    dict(num_workers=2), dict(num_workers=3, prefetch_factor=4), dict(batch_size=4),
    dict(num_workers=1, persistent_workers=True)])
def test_same_samples_however_they_are_loaded(options):
    np.random.seed(0)
    expected = read(loader_of())
    np.random.seed(1)
    assert read(loader_of(**options)) == expected


@pytest.mark.skipif('spawn' not in multiprocessing.get_all_start_methods(), reason='no spawn')
def test_dataset_travels_to_spawned_workers():
    dataset = loader_of().dataset
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.__getitems__([SampleKey(2, seed=9)]) == dataset.__getitems__([SampleKey(2, seed=9)])


def test_epochs_and_seeds_differ():
    numbers = {tuple(sorted(read(loader_of(**options)))) for options in (
        {}, dict(seed=1), dict(epoch=1))}
    assert len(numbers) == 3


def test_started_in_the_middle():
    assert read(loader_of(start=6)) == read(loader_of())[6:]
    assert read(loader_of(start=10)) == []
    assert len(loader_of(start=6)) == 4  # batches of a whole epoch


def test_states_of_the_process_stay_as_they_are():
    np.random.seed(4)
    expected = np.random.rand()
    np.random.seed(4)
    read(loader_of())
    assert np.random.rand() == expected


def test_place_is_that_over_all_processes(monkeypatch):
    order = [5, 3, 8, 1, 9, 0]
    whole = list(KeyedSampler(sampler=order, seed=7))
    for rank in (0, 1):
        monkeypatch.setattr(sample_keys, 'get_dist_info', lambda rank=rank: (rank, 2))
        part = list(KeyedSampler(sampler=order[rank::2], seed=7))
        assert [(key, key.seed) for key in part] == [(key, key.seed) for key in whole[rank::2]]


def test_error_of_a_sample_puts_the_states_back():
    class Broken(Noise):
        def __getitem__(self, index):
            raise ValueError('broken')

    fetch = sample_keys.KeyedFetch(Broken())
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match='broken'):
        fetch([SampleKey(0, seed=1)])
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_without_batches_is_refused():
    with pytest.raises(ConfigError, match='batch_size is None'):
        key_samples(DataLoader(Noise(), batch_size=None), seed=0)
