"""A residual backbone for BEV maps.

Shapes: B samples, C_i channels, X_i and Y_i cells after stage i.
"""
from typing import List, Sequence, Tuple

from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.layers import ResLayer
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError


@MODELS.register_module()
class GeneralizedResNet(nn.ModuleList):
    """Stages of residual blocks (He et al., CVPR 2016) without a stem, as many as are listed.

    The backbone of the decoder in BEVFusion's camera-only models (Liu et al., ICRA 2023).

    Args:
        in_channels: channels of the map.
        blocks: for each stage its number of blocks, its channels, and the stride of its first.

    Raises:
        ConfigError: there is no stage, or one is not of three positive numbers.
    """

    def __init__(self, *, in_channels: int, blocks: Sequence[Tuple[int, int, int]]) -> None:
        super().__init__()
        if not blocks or any(len(stage) != 3 or min(stage) < 1 for stage in blocks):
            raise ConfigError('GeneralizedResNet needs for each stage (blocks, channels, stride), '
                              f'got blocks={list(blocks)}')
        for count, channels, stride in blocks:
            self.append(ResLayer(BasicBlock, in_channels, channels, count, stride=stride,
                                 norm_cfg=dict(type='BN')))
            in_channels = channels

    def forward(self, x: Tensor) -> List[Tensor]:
        """The map after every stage, (B, C_i, X_i, Y_i), of `x` (B, C, X, Y)."""
        outputs = []
        for stage in self:
            x = stage(x)
            outputs.append(x)
        return outputs
