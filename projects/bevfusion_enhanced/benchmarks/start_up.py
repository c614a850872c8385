"""Start-up: the help of the training command, and the import of the package."""
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import List

from bevfusion_enhanced.benchmarks.measure import Measurement, milliseconds

ROOT = Path(__file__).parents[3]


def _run(arguments: List[str]) -> str:
    environment = {key: value for key, value in os.environ.items()
                   if key != 'BEVFUSION_ENHANCED_LAZY'}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True,
                          capture_output=True, text=True)
    return done.stdout + done.stderr


def startup_help() -> Measurement:
    """`tools/train.py --help`; the reference is a Python that does nothing."""
    return Measurement(
        ours_ms=milliseconds(lambda: _run(['tools/train.py', '--help']), repeats=9),
        reference_ms=milliseconds(lambda: _run(['-c', '']), repeats=9),
        conditions='a process of its own; the reference is Python started and ended')


def package_import() -> Measurement:
    """`import bevfusion_enhanced`; the reference imports what it needs of others."""
    needed = ('import torch, mmengine.runner, spconv.core; spconv.core.ALL_IMPGEMM_PARAMS = []; '
              'spconv.core.ALL_NATIVE_PARAMS = []; import bevfusion_enhanced_mmcv_finder as f; '
              'f.install(); import mmdet3d.datasets, mmdet3d.models, mmdet3d.evaluation, '
              'mmdet.models, spconv.pytorch')
    if _has_gpu():
        needed = ('import torch, mmengine.runner, bevfusion_enhanced_mmcv_finder as f; '
                  'f.install(); import mmdet3d.datasets, mmdet3d.models, mmdet3d.evaluation, '
                  'mmdet.models, spconv.pytorch')
    return Measurement(
        ours_ms=_import_ms('import bevfusion_enhanced'), reference_ms=_import_ms(needed),
        conditions='as a process of its own measures it; the reference is the import of torch, '
                   'MMEngine, MMCV, MMDetection, MMDetection3D and spconv alone',
        details={'ours_alone_ms': round(_own_import_ms(), 1),
                 'process_ms': round(milliseconds(
                     lambda: _run(['-c', 'import bevfusion_enhanced']), repeats=3), 1)})


def _import_ms(statements: str) -> float:
    """Milliseconds that imports take in a fresh process, median of five."""
    timed = (f'import time; start = time.perf_counter(); {statements}; '
             'print("seconds", time.perf_counter() - start)')
    _run(['-c', timed])
    return 1e3 * statistics.median(
        float(re.search(r'^seconds (\S+)$', _run(['-c', timed]), re.M)[1]) for _ in range(5))


def _has_gpu() -> bool:
    import torch
    return torch.cuda.is_available()


def _own_import_ms() -> float:
    """Milliseconds in modules of this package alone, imports of others not counted."""
    log = _run(['-X', 'importtime', '-c', 'import bevfusion_enhanced'])
    own = re.findall(r'import time:\s+(\d+) \|\s+\d+ \|\s+bevfusion_enhanced[\w.]*$', log, re.M)
    return sum(map(int, own)) / 1e3
