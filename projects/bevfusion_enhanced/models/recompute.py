"""Computing anew in the backward pass what is cheap to compute, rather than keeping it.

Chen et al., 'Training Deep Nets with Sublinear Memory Cost', 2016. `with_cp` is MMDetection's name
for it. Between two convolutions lie a norm, an activation, perhaps a dropout: a pass over memory
each, and all of their outputs are as large as the convolutions'. Only layers without statistics of
their own may be run twice: group norms, not batch norms.
"""
from functools import partial
from typing import Callable, List

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, of whose steps only its inputs are kept where gradients are recorded.

    A last step of PyTorch's own whose output is not needed for its gradient, such as a 1x1
    convolution, is not run a second time.
    """
    if not torch.is_grad_enabled():
        return function
    return partial(checkpoint, function, use_reentrant=False)


def keep_convolutions_only(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Run `layers` on a map `x` (B, C, H, W), keeping their convolutions' outputs for the backward
    pass, and the inputs of those that are not 1x1, which would be run twice.
    """
    between: List[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            x = layer(recomputed(nn.Sequential(*between))(x) if between else x)
            between = []
        else:
            between.append(layer)
    return recomputed(nn.Sequential(*between))(x) if between else x
