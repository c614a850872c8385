"""What `make setup` installs, and what it leaves alone."""
import os
import sys
from email.message import Message
from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture
def install(repo: Path):
    spec = spec_from_file_location('install', repo / 'tools/install.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_distribution(folder: Path, name: str) -> None:
    """What pip leaves in site-packages of a package, as far as a look-up by name reads it."""
    info = folder / f'{name}-2.1.0.dist-info'
    info.mkdir()
    metadata = Message()
    metadata['Metadata-Version'], metadata['Name'], metadata['Version'] = '2.1', name, '2.1.0'
    (info / 'METADATA').write_text(str(metadata))


def test_mmcv_lite_is_installed_where_there_is_no_mmcv(install) -> None:
    assert 'mmcv-lite==2.1.0' in install.locked_requirements(Path(sys.executable)).splitlines()


def test_a_compiled_mmcv_is_kept(install, tmp_path: Path, monkeypatch) -> None:
    fake_distribution(tmp_path, 'mmcv')
    monkeypatch.setitem(os.environ, 'PYTHONPATH', str(tmp_path))
    lines = install.locked_requirements(Path(sys.executable)).splitlines()
    assert not [line for line in lines if line.startswith('mmcv')]
    assert 'mmdet3d==1.4.0' in lines


def test_the_package_requires_no_mmcv() -> None:
    required = [r for r in distribution('bevfusion_enhanced').requires if 'extra ==' not in r]
    assert required and not [r for r in required if r.startswith('mmcv')]
    lite = [r for r in distribution('bevfusion_enhanced').requires if 'extra == "lite"' in r]
    assert [r for r in lite if r.startswith('mmcv-lite')]


def test_a_finished_environment_is_left_alone(install, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / '.bevfusion_enhanced_installed').write_text(install.state_of_requirements())
    monkeypatch.setattr(sys, 'argv', ['install.py', '--venv', str(tmp_path)])
    monkeypatch.setattr(install.subprocess, 'run', lambda *a, **k: pytest.fail('it ran a command'))
    install.main()


def test_the_finder_lies_in_site_packages() -> None:
    assert any(path.name == 'bevfusion_enhanced_mmcv_finder.pth'
               for path in distribution('bevfusion_enhanced').files)
