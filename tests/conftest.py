"""Fixtures and the rules for skipping."""
import subprocess
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / 'shared'

# A process that a test forks would wait for ever for the OpenMP threads that its parent had.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list) -> None:
    no_shared = pytest.mark.skip(reason=f'needs {SHARED}, which is not here')
    no_gpu = pytest.mark.skip(reason='needs a CUDA device')
    for item in items:
        if 'needs_shared' in item.keywords and not (SHARED / 'parity').is_dir():
            item.add_marker(no_shared)
        if 'gpu' in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(scope='session')
def repo() -> Path:
    return REPO


@pytest.fixture(scope='session')
def shared() -> Path:
    return SHARED


@pytest.fixture(scope='session')
def mini_nuscenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small simulated dataset (two scenes of four key frames) with its info files."""
    from bevfusion_enhanced.datasets.nuscenes_infos import create_infos
    from bevfusion_enhanced.synthetic.dataset import create_dataset
    root = tmp_path_factory.mktemp('mini_nuscenes') / 'data'
    create_dataset(out=root, scenes=2, keyframes=4, sweeps=2, image_scale=0.1, lidar_columns=128,
                   workers=1)
    create_infos(root_path=root, version='v1.0-mini')
    return root


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(folder)],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'cannot mount a small disk: {done.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '--lazy', str(folder)], check=True)
