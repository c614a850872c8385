"""MMEngine and mmcv are adapted once, whatever else was imported before."""
import sys

import mmengine.runner.checkpoint as mmengine_checkpoint
import pytest
import torch
from torch import nn

from bevfusion_enhanced import compat
from bevfusion_enhanced.checkpoints import write_checkpoint
from bevfusion_enhanced.errors import CheckpointError


class Code:
    def __reduce__(self):
        return print, ('executed',)


def test_applying_twice_changes_nothing():
    compat.apply()
    finders, schemes = list(sys.meta_path), dict(mmengine_checkpoint.CheckpointLoader._schemes)
    compat.apply()
    assert sys.meta_path == finders
    assert mmengine_checkpoint.CheckpointLoader._schemes == schemes


def test_pretrained_weights_are_read_safely(tmp_path):
    from mmengine.model import BaseModule
    compat.apply()

    class Part(BaseModule):
        def __init__(self, path):
            super().__init__(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
            self.layer = nn.Linear(2, 2)

    weights = {'layer.weight': torch.full((2, 2), 5.), 'layer.bias': torch.zeros(2)}
    write_checkpoint({'state_dict': weights}, tmp_path / 'a.pth')
    part = Part(tmp_path / 'a.pth')
    part.init_weights()
    torch.testing.assert_close(part.layer.weight.detach(), weights['layer.weight'])
    torch.save({'state_dict': Code()}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='builtins.print|holds print'):
        Part(tmp_path / 'evil.pth').init_weights()


def test_downloads_are_read_safely_too(tmp_path, capsys):
    compat.apply()
    (tmp_path / 'served').mkdir()
    torch.save({'state_dict': {'w': torch.ones(2)}}, tmp_path / 'served' / 'good.pth')
    torch.save({'state_dict': Code()}, tmp_path / 'served' / 'evil.pth')
    kept = tmp_path / 'kept'
    url = (tmp_path / 'served').as_uri()
    read = compat.load_url(f'{url}/good.pth', model_dir=str(kept))
    assert read['state_dict']['w'].sum() == 2 and (kept / 'good.pth').is_file()
    with pytest.raises(CheckpointError, match='nothing of it was executed'):
        compat.load_url(f'{url}/evil.pth', model_dir=str(kept))
    assert 'executed\n' not in capsys.readouterr().out
    assert mmengine_checkpoint.load_url is compat.load_url


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU the kernels are described')
def test_without_a_gpu_no_kernel_of_spconv_is_described():
    import spconv.algo
    assert not spconv.algo.CONV.all_desps
