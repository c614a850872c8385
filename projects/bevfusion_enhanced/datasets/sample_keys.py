"""Samples whose random numbers depend on their place in the epoch alone.

The augmentation of a sample is drawn from (seed of the run, epoch, place in the epoch's order, over
all processes). So it is the same for any number of loading workers, for any number of batches
loaded ahead, and wherever a run was stopped.
"""
from typing import Any, Iterable, Iterator, List, Optional, Sequence, Tuple

from mmengine.dist import get_dist_info
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ..errors import ConfigError
from ..random_state import derive_seed, seeded_cpu


class SampleKey(int):
    """The index of a sample that carries the seed of its random numbers, also between processes."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SampleKey':
        """A key of the sample `index`."""
        key = super().__new__(cls, index)
        key.seed = seed
        return key

    def __reduce__(self) -> Tuple[Any, ...]:
        """How to make it again in another process."""
        return SampleKey, (int(self), self.seed)


class KeyedSampler(Sampler):
    """Another sampler's indices as `SampleKey`s, from any place in the epoch on.

    Args:
        sampler: The sampler of this process. Its n-th index stands at the place `rank + n *
            world_size` of the epoch's order, as MMEngine's samplers deal them out.
        seed: Seed of the run's data, the same in all processes.

    Attributes:
        start: How many samples of this process to leave out at the beginning.
    """

    def __init__(self, *, sampler: Iterable[int], seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0
        self.start = 0
        self.rank, self.world_size = get_dist_info()

    def __iter__(self) -> Iterator[SampleKey]:
        """The keys from `start` on."""
        for number, index in enumerate(self.sampler):
            if number >= self.start:
                place = self.rank + number * self.world_size
                yield SampleKey(index, derive_seed(self.seed, self.epoch, place))

    def __len__(self) -> int:
        """Samples of a whole epoch in this process, wherever it starts."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; `start` stays as it is."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)


class KeyedFetch:
    """Reads samples of a dataset, drawing the random numbers of each from its key."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, indices: Sequence[int]) -> List[Any]:
        """The samples of a batch; a plain index draws from the process's own states."""
        return [self._fetch(index) for index in indices]

    def _fetch(self, index: int) -> Any:
        if not isinstance(index, SampleKey):
            return self.dataset[index]
        with seeded_cpu(index.seed):
            return self.dataset[int(index)]


def key_samples(loader: DataLoader, *, seed: int) -> KeyedSampler:
    """Let a loader draw each sample's random numbers by the sample's place, from now on.

    It works through torch's `__getitems__`, by which a loader asks for the samples of a batch, so
    that the dataset and its wrappers stay what they are.

    Raises:
        ConfigError: The loader makes no batches.
    """
    if loader.batch_sampler is None:
        raise ConfigError('train_dataloader.batch_size is None; give the number of samples of a '
                          'batch')
    inner = loader.batch_sampler.sampler
    if isinstance(inner, KeyedSampler):  # the loader of an earlier run of this process
        inner = inner.sampler
    sampler = KeyedSampler(sampler=inner, seed=seed)
    loader.batch_sampler.sampler = sampler
    loader.dataset.__getitems__ = KeyedFetch(loader.dataset)
    return sampler


def order_seed(loader: DataLoader) -> Optional[int]:
    """The seed that the loader's sampler shuffles by; None where it has none."""
    seed = getattr(loader.sampler, 'seed', None)
    return int(seed) if isinstance(seed, int) else None


def starts_anywhere(loader: DataLoader) -> bool:
    """Whether leaving samples out leaves whole batches out: not so where batches are sorted."""
    return type(loader.batch_sampler) is BatchSampler
