"""The mini config with its test over a small simulated dataset, and untrained weights for it."""
from pathlib import Path
from typing import Callable, Sequence, Union

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from bevfusion_enhanced.checkpoints import write_checkpoint
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES, MAP_CLASSES

REPO = Path(__file__).resolve().parents[1]
CONFIG = """
_base_ = {base!r}
data_root = {root!r}
places = dict(
    LoadBEVMapMasks=dict(data_root=data_root),
    ImageAug3D=dict(resize_lim=[1.1, 1.1]))  # the simulated images are 160 x 90
test_pipeline = [dict(step, **places.get(step['type'], {{}})) for step in _base_.test_pipeline]
test_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(
    data_root=data_root, pipeline=test_pipeline, indices={indices}))
test_evaluator = [
    dict(_base_.val_evaluator[0], data_root=data_root,
         ann_file=data_root + 'nuscenes_infos_val.pkl'),
    _base_.val_evaluator[1]]
train_dataloader, train_cfg, optim_wrapper, val_dataloader, val_cfg, val_evaluator = [None] * 6
param_scheduler = None
"""


def write_untrained_mini(folder: Path, data: Path, *, indices: Union[int, Sequence[int]],
                         more: str = '', change: Callable[[nn.Module], None] = lambda model: None
                         ) -> None:
    """Write `mini.py` and, with weights for it, `a.pth`.

    Args:
        folder: Where to.
        data: Root of the dataset.
        indices: Samples that are tested: how many, or which.
        more: Further lines of the config.
        change: What is done to the model before its weights are written.
    """
    base = REPO / 'configs' / 'mini' / 'phase4a_task_gca.py'
    (folder / 'mini.py').write_text(
        CONFIG.format(base=str(base), root=f'{data}/', indices=indices) + more)
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(folder / 'mini.py').model)
    change(model)
    write_checkpoint(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(
        classes=list(DETECTION_CLASSES), map_classes=list(MAP_CLASSES)))), folder / 'a.pth')
