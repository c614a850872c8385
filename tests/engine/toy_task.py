"""A task small enough to train for real in a test: a line fitted in the names of the real model."""
from typing import Dict, List, Optional, Sequence

import torch
from mmdet3d.registry import DATASETS, METRICS, MODELS
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from bevfusion_enhanced.errors import DataError

CLASSES = ['car', 'truck']


@DATASETS.register_module()
class ToyDataset(Dataset):
    """(x, y) with y the sum of x; `broken` is the index of a sample that cannot be read."""

    def __init__(self, length: int = 8, classes: Sequence[str] = CLASSES, broken: int = -1,
                 data_root: Optional[str] = None, ann_file: str = '') -> None:
        self.length, self.broken = length, broken
        self.metainfo = dict(classes=list(classes))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Dict[str, torch.Tensor]:
        if index == self.broken:
            raise DataError(f'sample {index}: LiDAR file a.bin is cut short; copy it again')
        x = torch.linspace(-1, 1, 4) + index
        return dict(x=x, y=x.sum())


@MODELS.register_module()
class ToyModel(BaseModel):
    """Encoder, decoder with a norm, one head per name in `heads`, a gate per name in `gates`."""

    def __init__(self, width: int = 8, heads: Sequence[str] = ('object',),
                 gates: Sequence[str] = (), norm: bool = True,
                 data_preprocessor: Optional[dict] = None) -> None:
        super().__init__(data_preprocessor)
        self.encoders = nn.ModuleDict({'lidar': nn.ModuleDict({'backbone': nn.Linear(4, width)})})
        self.decoder = nn.ModuleDict(
            {'neck': nn.BatchNorm1d(width) if norm else nn.Identity()})
        self.task_gca = nn.ModuleDict({name: nn.Linear(width, width) for name in gates})
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in heads})

    def forward(self, x: torch.Tensor, y: torch.Tensor, mode: str = 'tensor'):
        bev = self.decoder['neck'](self.encoders['lidar']['backbone'](x))
        outputs: List[torch.Tensor] = []
        for name, head in self.heads.items():
            gated = self.task_gca[name](bev) if name in self.task_gca else bev
            outputs.append(head(gated)[:, 0])
        if mode == 'loss':
            return {f'loss/{name}': (output - y).abs().mean()
                    for name, output in zip(self.heads, outputs, strict=True)}
        return [output.detach() for output in outputs[0]]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Reports what the real metrics report, under their names."""

    def process(self, data_batch: dict, data_samples: Sequence[torch.Tensor]) -> None:
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results: list) -> Dict[str, float]:
        value = min(abs(sum(results)) / 1e3, 1.0)
        return {'object/mAP': value, 'object/NDS': value, 'object/mATE': 1.0,
                'object/car/AP': value, 'object/car/AOE': float('nan'),
                'map/divider/iou@0.50': 0.25, 'map/divider/iou@max': 0.5,
                'map/mean/iou@0.50': 0.25, 'map/mean/iou@max': 0.5}
