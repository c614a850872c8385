"""Folders as finished, running and killed trainings leave them."""
import json

import pytest

from bevfusion_enhanced.experiments.run_files import RunFiles
from bevfusion_enhanced.experiments.status import FINISHED, Status, write_status

CONFIG = '''
model = dict(type='BEVFusion', fuser=dict(type='ConvFuser', out_channels={width}))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr={lr}))
work_dir = '{name}'
'''


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, state=..., NDS=[value after epoch 1, ...], width=..., lr=...) -> RunFiles."""
    def make(name, *, state=FINISHED, NDS=(), width=64, lr=0.1, reason=''):
        files = RunFiles(tmp_path / 'work_dirs' / name)
        files.checkpoints.mkdir(parents=True)
        (files.checkpoints / 'epoch_1.pth').write_bytes(bytes(1000))
        files.config.write_text(CONFIG.format(width=width, lr=lr, name=name))
        lines = [dict(kind='train', epoch=1, iter=5 * (i + 1), loss=1. / (i + 1))
                 for i in range(3)]
        lines += [{'kind': 'val', 'epoch': epoch, 'iter': 10 * epoch, 'object/NDS': value}
                  for epoch, value in enumerate(NDS, start=1)]
        files.metrics.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        write_status(files, Status(state=state, epoch=len(NDS), max_epochs=3, reason=reason))
        return files

    return make


@pytest.fixture
def root(tmp_path):
    """The folder of all runs."""
    return tmp_path / 'work_dirs'
