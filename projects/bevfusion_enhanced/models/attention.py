"""Attention that rescales a BEV map: per channel, or per cell.

Shapes: B samples, C channels, R = C / reduction hidden channels, X and Y cells of the BEV map.
Every module returns a map of the shape of its input.
"""
import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError


def _hidden_channels(in_channels: int, reduction: int) -> int:
    if reduction < 1 or in_channels < reduction:
        raise ConfigError(f'reduction must be between 1 and in_channels ({in_channels}), '
                          f'got {reduction}')
    return in_channels // reduction


class GlobalContextAttention(BaseModule):
    """Rescale each channel by a gate that looks at the whole map.

    The map is averaged over its cells, squeezed to R channels, expanded back and put through a
    sigmoid: the squeeze-and-excitation gate (Hu et al., 'Squeeze-and-Excitation Networks', CVPR
    2018), without biases. One per task lets each task choose its own channels of the shared map.

    Args:
        in_channels: channels of the map.
        reduction: how many times fewer channels the hidden layer has.
    """

    def __init__(self, *, in_channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.reduction = reduction
        hidden = _hidden_channels(in_channels, reduction)
        self.fc = nn.Sequential(
            nn.Linear(in_channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, in_channels, bias=False),
            nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Rescale the channels of `x` (B, C, X, Y)."""
        gate = self.fc(x.mean(dim=(2, 3)))                                        # (B, C)
        return x * gate[:, :, None, None]                                         # (B, C, X, Y)


class ChannelAttention(BaseModule):
    """Rescale each channel by a gate from its mean and its maximum.

    Both summaries pass the same two layers, and their sum goes through a sigmoid (Woo et al.,
    'CBAM: Convolutional Block Attention Module', ECCV 2018).

    Args:
        in_channels: channels of the map.
        reduction: how many times fewer channels the hidden layer has.
    """

    def __init__(self, *, in_channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = _hidden_channels(in_channels, reduction)
        self.fc = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, in_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Rescale the channels of `x` (B, C, X, Y)."""
        mean = x.mean(dim=(2, 3), keepdim=True)                                   # (B, C, 1, 1)
        peak = x.amax(dim=(2, 3), keepdim=True)                                   # (B, C, 1, 1)
        return x * torch.sigmoid(self.fc(mean) + self.fc(peak))                   # (B, C, X, Y)


class SpatialAttention(BaseModule):
    """Rescale each cell by a gate from the mean and the maximum over its channels (CBAM).

    Args:
        kernel_size: odd width, in cells, of the neighbourhood that a gate looks at.
    """

    def __init__(self, *, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f'kernel_size must be odd and positive, got {kernel_size}')
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rescale the cells of `x` (B, C, X, Y)."""
        mean = x.mean(dim=1, keepdim=True)                                        # (B, 1, X, Y)
        peak = x.amax(dim=1, keepdim=True)                                        # (B, 1, X, Y)
        return x * torch.sigmoid(self.conv(torch.cat([mean, peak], dim=1)))       # (B, C, X, Y)
