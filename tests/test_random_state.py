"""Random states: independent streams, captured and put back whole."""
import random

import numpy as np
import torch

from bevfusion_enhanced import random_state
from bevfusion_enhanced.checkpoints.storage import read_checkpoint


def draw():
    return ([random.random() for _ in range(3)], random.gauss(0, 1), np.random.rand(3).tolist(),
            np.random.randn(), torch.rand(3).tolist())


def test_restored_from_a_file_goes_on_as_before(tmp_path):
    random_state.seed_all(5)
    draw()  # leaves half a pair of normal numbers with Python and with NumPy
    torch.save(dict(state=random_state.capture()), tmp_path / 'a.pth')
    expected = draw()
    draw()
    assert random_state.restore(read_checkpoint(tmp_path / 'a.pth')['state']) == ()
    assert draw() == expected


def test_streams_of_one_seed_are_independent():
    random_state.seed_cpu(1)
    python = [random.random() for _ in range(1000)]
    numpy = np.random.rand(1000)
    torch_ = torch.rand(1000, dtype=torch.float64).numpy()
    correlations = np.corrcoef([python, numpy, torch_])
    assert np.abs(correlations - np.eye(3)).max() < 0.15


def test_seeds_depend_on_every_part():
    seeds = {random_state.derive_seed(*parts) for parts in (
        (1, 2, 3), (1, 3, 2), (2, 2, 3), (1, 2), (1, 2, 3, 0), (-1, 2, 3), (1, 2, 2 ** 40),
        (1, 2 ** 32), (1, 0, 1))}
    assert len(seeds) == 9
    assert all(0 <= seed < 2 ** 64 for seed in seeds)


def test_blocks_leave_the_states_alone():
    random_state.seed_all(7)
    expected = draw()
    random_state.seed_all(7)
    with random_state.seeded_cpu(1):
        one = draw()
    with random_state.kept():
        draw()
    with random_state.seeded_cpu(1):
        assert draw() == one
    assert draw() == expected
