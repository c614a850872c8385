"""What a run was started with: versions, hardware, commit."""
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, Optional

PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmdet3d',
            'spconv-cu120', 'spconv-cu126', 'numpy', 'timm', 'nuscenes-devkit')
_GIT_SECONDS = 10


def describe_environment() -> Dict[str, Any]:
    """Plain data for `environment.json`."""
    import torch

    from .. import __version__
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        'bevfusion_enhanced': __version__,
        'python': platform.python_version(),
        'system': platform.platform(),
        'host': platform.node(),
        'processors': os.cpu_count(),
        'packages': {name: found for name in PACKAGES if (found := _version(name))},
        'cuda': torch.version.cuda if torch.cuda.is_available() else None,
        'gpus': [dict(name=gpu.name, memory_gib=round(gpu.total_memory / 2**30, 1))
                 for gpu in gpus],
        'git': describe_git(Path(__file__).parent),
        'command': sys.argv,
    }


def describe_git(folder: Path) -> Optional[Dict[str, Any]]:
    """The commit of the working tree that `folder` lies in, and whether it was changed since.

    None where git is not installed or the folder is in no repository.
    """
    commit = _git(folder, 'rev-parse', 'HEAD')
    if commit is None:
        return None
    return {'commit': commit, 'dirty': bool(_git(folder, 'status', '--porcelain'))}


def _git(folder: Path, *arguments: str) -> Optional[str]:
    program = shutil.which('git')
    if program is None:
        return None
    try:
        done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True,
                              timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
