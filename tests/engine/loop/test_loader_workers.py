"""What a guarded worker of a data loader is like."""
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils.data import DataLoader, Dataset

from bevfusion_enhanced.engine.loop.loader_workers import guard_workers


class ThreadsOfBLAS(Dataset):
    """Says with how many threads its process multiplies matrices."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        np.ones((2, 2)) @ np.ones((2, 2))
        return max(pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'blas')


@pytest.mark.parametrize('guarded, threads', [(True, 1), (False, 2)])
def test_a_guarded_worker_multiplies_on_one_thread(guarded, threads):
    loader = DataLoader(ThreadsOfBLAS(), num_workers=1)
    if guarded:
        guard_workers(loader)
    with threadpool_limits(2, user_api='blas'):
        assert [int(batch) for batch in loader] == [threads]


def test_what_a_user_does_first_in_a_worker_is_still_done(tmp_path):
    loader = DataLoader(ThreadsOfBLAS(), num_workers=1,
                        worker_init_fn=lambda worker: (tmp_path / str(worker)).touch())
    guard_workers(loader)
    guard_workers(loader)
    list(loader)
    assert (tmp_path / '0').exists()
