"""Parameters, gradients and moments dealt out over the processes (FSDP), by config.

Zhao et al., 'PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel', VLDB 2023, as
torch's `fully_shard`: each process keeps a part of every tensor, and units of the model gather
theirs while they compute. State dicts are whole tensors as ever, so checkpoints go from sharded
trainings to others and back; to ask for one, all processes have to ask.
"""
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.registry import MODEL_WRAPPERS
from torch import nn
from torch.optim import Optimizer

from ...errors import ConfigError

UNITS = ('encoders.camera.backbone', 'encoders.camera.neck', 'encoders.camera.vtransform',
         'encoders.lidar.backbone', 'fuser', 'decoder.backbone', 'decoder.neck')


@MODEL_WRAPPERS.register_module()
class FullyShardedModel:
    """Shards a model in place: what is built is the model itself, not a wrapper.

    It is for trainings of whole iterations: PCGrad and GradNorm, which differentiate parts of the
    model by its parameters, and `EMAHook`, which copies it, expect whole parameters. `HealthHook`,
    which reads every gradient, leaves the run.

    Args:
        module: The model, on its device.
        units: Names of parts that gather their parameters on their own; names that the model does
            not have are passed over. A unit has to be called, not only its methods: the heads are
            none, and belong to the rest, which is gathered for the whole step.
        param_dtype: 'bfloat16' or 'float16' to compute in; None for the parameters' own.
        reshard_after_forward: Give a unit's parameters up between its forward and its backward
            pass: less memory, more traffic.

    Raises:
        ConfigError: torch is too old, the processes have not met, or a type is unknown.
    """

    def __new__(cls, module: nn.Module, *, units: Sequence[str] = UNITS,
                param_dtype: Optional[str] = None,
                reshard_after_forward: bool = True) -> nn.Module:
        """The model, sharded."""
        try:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        except ImportError as error:
            raise ConfigError('FullyShardedModel needs torch 2.6 or later; leave model_wrapper_cfg '
                              'out for MMDistributedDataParallel') from error
        if param_dtype not in (None, 'bfloat16', 'float16'):
            raise ConfigError(f"FullyShardedModel.param_dtype is {param_dtype!r}; give 'bfloat16', "
                              "'float16' or None")
        if getattr(module, 'task_balance', None) is not None:
            raise ConfigError('FullyShardedModel: model.task_balance differentiates by whole '
                              'parameters; leave one of the two out')
        _make_equal(module)
        device = next(module.parameters()).device.type
        mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
        options: Dict[str, Any] = dict(mesh=mesh, reshard_after_forward=reshard_after_forward)
        if param_dtype is not None:
            options['mp_policy'] = MixedPrecisionPolicy(param_dtype=getattr(torch, param_dtype))
        for name, part in list(module.named_modules()):
            if name in units and any(True for _ in part.parameters()):
                fully_shard(part, **options)
        fully_shard(module, **options)
        module._register_state_dict_hook(_give_whole)
        module._register_load_state_dict_pre_hook(_take_parts, with_module=True)
        return module


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are dealt out over the processes."""
    return any(_is_dealt(p) for p in model.parameters())


def whole(value: Any) -> Any:
    """A nest of dicts, lists and tuples with every tensor in it whole; all processes at once."""
    if _is_dealt(value):
        return value.detach().full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([whole(item) for item in value])
    return value


def deal_out_moments(optimizer: Optimizer) -> None:
    """Deal out the moments of sharded parameters, after whole ones were loaded."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (_is_dealt(parameter) and isinstance(value, torch.Tensor)
                    and not _is_dealt(value) and value.shape == parameter.shape):
                state[name] = _part_of(value, parameter)


def _make_equal(module: nn.Module) -> None:
    """Initialise all processes' models alike, before no process holds one whole."""
    if hasattr(module, 'init_weights'):
        module.init_weights()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(tensor.data, src=0)


def _give_whole(module: nn.Module, state: Dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, value in state.items():
        state[name] = whole(value)


def _take_parts(module: nn.Module, state: Dict[str, Any], prefix: str, metadata: Any, strict: bool,
                missing: List[str], unexpected: List[str], errors: List[str]) -> None:
    for name, parameter in module.named_parameters(prefix=prefix.rstrip('.')):
        value = state.get(name)
        if (_is_dealt(parameter) and isinstance(value, torch.Tensor) and not _is_dealt(value)
                and value.shape == parameter.shape):
            state[name] = _part_of(value, parameter)


def _part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, dealt out as another one is."""
    from torch.distributed.tensor import distribute_tensor
    value = value.detach().to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements)


def _is_dealt(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and hasattr(value, 'full_tensor')
