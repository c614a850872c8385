"""Fixtures and the rules for skipping."""
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / 'shared'


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
