"""Training in bfloat16, also without a GPU: MMEngine's AmpOptimWrapper refuses to start there."""
from contextlib import contextmanager
from typing import Iterator

import torch
from mmdet3d.registry import OPTIM_WRAPPERS
from mmengine.optim import OptimWrapper
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """OptimWrapper whose forward passes run under autocast to bfloat16.

    Parameters and their updates stay in float32. bfloat16 has the range of float32, so losses need
    no scale (Micikevicius et al., 'Mixed Precision Training', ICLR 2018, for why float16 does).
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Where the losses of `model` are computed."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def is_fast_here() -> bool:
    """Whether this CPU computes in bfloat16 at least as fast as in float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
