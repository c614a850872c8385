"""Creates the virtual environment and installs the lock and this package into it.

    python3 tools/install.py [--venv .venv]

Standard library only. Uses uv, fetched with pip where it is missing, or pip itself.
A second call finds the finished environment and returns at once. A compiled mmcv that is already in
the environment is left alone: mmcv-lite is then taken off the list.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / 'requirements' / 'lock.txt'
SUPPORTED = ((3, 10), (3, 13))
HAS_COMPILED_MMCV = ('from importlib.metadata import distributions as d; '
                     'print(any((x.metadata["Name"] or "").lower() == "mmcv" for x in d()))')


def python_of(venv: Path) -> Path:
    """The interpreter of a virtual environment, on any system."""
    return venv / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')


def state_of_requirements() -> str:
    """A digest of everything that decides what is installed, and where the package lies."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (LOCK, ROOT / 'setup.py', *sorted((ROOT / 'requirements').glob('*.in'))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find_uv(venv: Path) -> Optional[str]:
    """Path of uv: the one on PATH, or one installed into the environment by its pip."""
    found = shutil.which('uv')
    inside = python_of(venv).with_name('uv.exe' if os.name == 'nt' else 'uv')
    if found or inside.exists():
        return found or str(inside)
    fetched = subprocess.run([str(python_of(venv)), '-m', 'pip', 'install', '--quiet',
                              '--disable-pip-version-check', 'uv'])
    return str(inside) if fetched.returncode == 0 and inside.exists() else None


def find_supported_python() -> Optional[str]:
    """This interpreter where it is supported, else a supported one on PATH."""
    if SUPPORTED[0] <= sys.version_info[:2] < SUPPORTED[1]:
        return sys.executable
    names = (f'python3.{minor}' for minor in range(SUPPORTED[1][1] - 1, SUPPORTED[0][1] - 1, -1))
    return next(filter(None, map(shutil.which, names)), None)


def create(venv: Path) -> None:
    """Create the environment with a supported Python, or say which ones are."""
    python = find_supported_python()
    if python is None:
        sys.exit(f'error: Python {sys.version.split()[0]} is not supported; install Python 3.10, '
                 '3.11 or 3.12 and run `make PYTHON=/path/to/python3.11 ...`')
    uv = shutil.which('uv')
    command = [uv, 'venv', '--quiet', '--python', python, str(venv)] if uv else [
        python, '-m', 'venv', str(venv)]
    if subprocess.run(command).returncode != 0:
        sys.exit(f'error: could not create {venv} with {python}; on Debian and Ubuntu install the '
                 'package python3-venv, or install uv')


def locked_requirements(python: Path) -> str:
    """The lock's text, without mmcv-lite where the environment holds a compiled mmcv."""
    text = LOCK.read_text()
    answer = subprocess.run([str(python), '-c', HAS_COMPILED_MMCV], capture_output=True, text=True)
    if answer.stdout.strip() != 'True':
        return text
    print('a compiled mmcv is installed: it is kept, mmcv-lite is not installed')
    return '\n'.join(line for line in text.splitlines() if not line.startswith('mmcv-lite=='))


def install(venv: Path) -> None:
    """Install the lock, then this package, into the environment."""
    python = python_of(venv)
    uv = find_uv(venv)
    # bytecode, as pip makes it: where Python may not write any, every start takes thrice as long
    installer: List[str] = ([uv, 'pip', 'install', '--compile-bytecode', '--python', str(python)]
                            if uv else
                            [str(python), '-m', 'pip', 'install', '--disable-pip-version-check'])
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / 'lock.txt'
        lock.write_text(locked_requirements(python))
        print(f'installing {LOCK.relative_to(ROOT)} into {venv} with {"uv" if uv else "pip"}',
              flush=True)
        for arguments in (['--no-deps', '-r', str(lock)],
                          ['--no-deps', '--no-build-isolation', '-e', str(ROOT)]):
            if subprocess.run([*installer, *arguments]).returncode != 0:
                sys.exit(f'error: {" ".join(arguments)} could not be installed into {venv}; the '
                         'reason stands above. The same command goes on from here')
    subprocess.run([str(python), '-m', 'compileall', '-q', str(ROOT / 'projects')])


def main() -> None:
    """Install, unless the environment already holds what the requirements say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv')
    venv = parser.parse_args().venv
    stamp = venv / '.bevfusion_enhanced_installed'
    if stamp.exists() and stamp.read_text() == state_of_requirements():
        return
    if not python_of(venv).exists():
        create(venv)
    install(venv)
    stamp.write_text(state_of_requirements())


if __name__ == '__main__':
    main()
