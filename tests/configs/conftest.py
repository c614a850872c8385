"""The rig of cameras of the models' tests."""
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

MODELS = Path(__file__).resolve().parents[1] / 'models' / 'conftest.py'


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location('models_conftest', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def rig():
    """See `make_rig` there."""
    return _load(MODELS).make_rig
