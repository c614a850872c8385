"""How large a model is: parameters, and operations of one prediction."""
import copy
from dataclasses import dataclass
from typing import Dict

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SPARSE = 'encoders.lidar.backbone'
NOT_COUNTED = ('sparse convolutions, voxelization, pooling to the BEV map, norms, activations and '
               'resampling')


@dataclass(frozen=True)
class Complexity:
    """The size of a model.

    Attributes:
        parameters: Learnable values.
        trained: Those of them that are not frozen.
        gflops: 10^9 floating point operations (a multiplication and an addition are two) of the
            convolutions, matrix products and attention of one prediction; see `NOT_COUNTED`.
        by_module: The same for the parts of the model, by name, down to three levels.
    """

    parameters: int
    trained: int
    gflops: float
    by_module: Dict[str, float]


def measure(config: Config) -> Complexity:
    """Build the model of a config, and predict the first sample of its test data on the CPU."""
    from mmdet3d.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    loader = copy.deepcopy(config.test_dataloader)
    loader.update(batch_size=1, num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)
    return complexity_of(MODELS.build(config.model), next(iter(Runner.build_dataloader(loader))))


def complexity_of(model: nn.Module, batch: dict) -> Complexity:
    """The size of a model, and what one prediction of a batch takes.

    Args:
        model: With a `test_step`; its training mode is restored.
        batch: As a data loader gives it.
    """
    training = model.training
    model.train()  # what a config freezes, a backbone freezes only now
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.test_step(batch)
    model.train(training)
    prefix = f'{type(model).__name__}.'
    counts = {name.removeprefix(prefix): sum(operations.values()) / 1e9
              for name, operations in counter.get_flop_counts().items()
              if name.startswith(prefix) and name.count('.') <= 3}
    # on a CPU spconv multiplies some of its matrices in a way that is seen, and most in others
    hidden = counts.pop(SPARSE, 0.0)
    return Complexity(parameters=sum(p.numel() for p in model.parameters()), trained=trained,
                      gflops=counter.get_total_flops() / 1e9 - hidden, by_module=counts)
