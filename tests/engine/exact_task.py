"""A toy task that draws random numbers wherever a training can: data, model and scaler."""
import os
import random
import signal
import time
from typing import Dict, List, Optional, Sequence, Union

import numpy as np
import torch
from mmdet3d.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPERS
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.utils.data import Dataset


@DATASETS.register_module()
class RandomDataset(Dataset):
    """(x, y) with noise of Python, NumPy and torch; tells which samples were read in `record`."""

    metainfo = dict(classes=['car'])

    def __init__(self, length: int = 22, record: Optional[str] = None,
                 pause: float = 0.0) -> None:
        self.length, self.record, self.pause = length, record, pause

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Dict[str, torch.Tensor]:
        assert type(index) is int
        time.sleep(self.pause)
        if self.record is not None:
            with open(self.record, 'a') as file:
                file.write(f'{index}\n')
        x = torch.linspace(-1, 1, 4) + index / self.length
        x = x + random.gauss(0, 0.1) + np.random.randn() * 0.1 + torch.randn(4) * 0.1
        return dict(x=x.float(), y=x.sum().float())


@MODELS.register_module()
class DropoutModel(BaseModel):
    """Linear, norm, dropout, linear; a validation draws random numbers as well."""

    def __init__(self, data_preprocessor: Optional[dict] = None) -> None:
        super().__init__(data_preprocessor)
        self.encoders = nn.ModuleDict({'lidar': nn.Linear(4, 8)})
        self.decoder = nn.ModuleDict({'neck': nn.BatchNorm1d(8)})
        self.heads = nn.ModuleDict({'object': nn.Linear(8, 1)})

    def forward(self, x: torch.Tensor, y: torch.Tensor, mode: str = 'tensor') -> Union[
            Dict[str, torch.Tensor], List[torch.Tensor]]:
        bev = self.decoder['neck'](self.encoders['lidar'](x))
        bev = nn.functional.dropout(bev, 0.3, training=self.training)
        output = self.heads['object'](bev)[:, 0]
        if mode == 'loss':
            return {'loss/object': (output - y).abs().mean()}
        return list((output.detach() - y).abs() + 1e-3 * torch.rand(len(y)))


@METRICS.register_module()
class ErrorMetric(BaseMetric):
    """A score that falls with the mean error."""

    def process(self, data_batch: dict, data_samples: Sequence[torch.Tensor]) -> None:
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results: list) -> Dict[str, float]:
        return {'object/mAP': 1 / (1 + sum(results) / len(results))}


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(AmpOptimWrapper):
    """MMEngine's AmpOptimWrapper with a gradient scaler that works on a CPU; nothing is cast."""

    def __init__(self, *, optimizer: torch.optim.Optimizer, accumulative_counts: int = 1) -> None:
        OptimWrapper.__init__(self, optimizer, accumulative_counts)
        self._scale_update_param = None
        self.cast_dtype = None
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=8.0, growth_interval=3)

    def optim_context(self, model: nn.Module):
        return OptimWrapper.optim_context(self, model)


@HOOKS.register_module()
class SignalHook(Hook):
    """Signals the process itself at a moment of the first run in a folder.

    Args:
        name: The signal.
        stage: Hook's stage at which to send it.
        iteration: Number of training iterations counted by then.
        rank: Which process of several sends it.
    """

    def __init__(self, name: str, stage: str, iteration: int, rank: int = 0) -> None:
        self.number, self.iteration, self.rank = getattr(signal, name), iteration, rank
        setattr(self, stage, self._send)

    def get_triggered_stages(self) -> list:
        return []

    def _send(self, runner, *args, **kwargs) -> None:
        if runner.iter == self.iteration and runner.rank == self.rank and not runner._resume:
            os.kill(os.getpid(), self.number)
