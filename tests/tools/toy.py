"""The toy task of `tests/engine` for the command lines: its config, and how they are called."""
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import List

REPO = Path(__file__).resolve().parents[2]
ENGINE_TESTS = REPO / 'tests' / 'engine'


def load_module(path: Path) -> ModuleType:
    """Import a file that is not in a package."""
    spec = importlib.util.spec_from_file_location(f'{path.parent.name}_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_NUMBER = itertools.count()


def own_experiment() -> List[str]:
    """Options that name the experiment: MMEngine lets those of one name and second share a log."""
    return ['--cfg-options', f'experiment_name=toy_tool_{next(_NUMBER)}']


def write_config(folder: Path) -> Path:
    """The toy config below `folder`, as `configs/mini/toy.py`."""
    path = folder / 'configs' / 'mini' / 'toy.py'
    path.parent.mkdir(parents=True)
    path.write_text(load_module(ENGINE_TESTS / 'conftest.py').CONFIG)
    return path


def call(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, as a user would."""
    path = os.pathsep.join([str(ENGINE_TESTS), os.environ.get('PYTHONPATH', '')])
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], cwd=cwd, text=True,
        capture_output=True, timeout=300, env={**os.environ, 'PYTHONPATH': path})
