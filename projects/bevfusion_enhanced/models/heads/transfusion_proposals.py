"""Where a TransFusion head looks: the peaks of its heatmap.

Shapes: B samples, K classes, X and Y cells of the BEV map along LiDAR x and y, L = X * Y cells in a
row with y fastest, P proposals.
"""
import functools
from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bevfusion_enhanced.errors import ConfigError


def cell_centers(map_size: Tuple[int, int]) -> Tensor:
    """Centres (1, L, 2) of the cells of a map of X and Y cells, in cells along x and y."""
    x, y = torch.meshgrid(*(torch.arange(n) + 0.5 for n in map_size), indexing='ij')
    return torch.stack([x, y], dim=-1).reshape(1, -1, 2)


def local_maxima(heatmap: Tensor, *, size: int, spared: Sequence[int]) -> Tensor:
    """Set to 0 what is not the largest in the window around it.

    Cells whose window leaves the map are no maxima, as in the published models.

    Args:
        heatmap: (B, K, X, Y) probabilities.
        size: odd width of the window in cells.
        spared: classes all of whose cells are kept.

    Returns:
        (B, K, L).
    """
    largest = _largest_in_window(heatmap, size)
    largest = F.pad(largest, (size // 2,) * 4, value=2.0)  # above every probability
    is_peak = heatmap == largest
    is_peak[:, list(spared)] = True
    return (heatmap * is_peak).flatten(2)


def propose(scores: Tensor, *, count: int) -> Tuple[Tensor, Tensor]:
    """Find the highest scores over all classes, highest first; of equal ones the first.

    Args:
        scores: (B, K, L), none negative.
        count: P.

    Returns:
        Classes and cells of the proposals, (B, P) each.

    Raises:
        ConfigError: when there are fewer scores than proposals.
    """
    flat = scores.flatten(1)                                                     # (B, K * L)
    if flat.shape[1] < count:
        raise ConfigError(f'num_proposals is {count}, but the heatmap has only {flat.shape[1]} '
                          'cells: lower num_proposals')
    # the bits of floats that are not negative order like the floats; the cell breaks ties, of which
    # a saturated heatmap is full, so that proposals never depend on the machine
    rank = torch.arange(flat.shape[1] - 1, -1, -1, device=flat.device)
    key = (flat.float().contiguous().view(torch.int32).long() << 32) + rank      # (B, K * L)
    top = key.topk(count, dim=1).indices                                         # (B, P)
    return top // scores.shape[2], top % scores.shape[2]


def _largest_in_window(maps: Tensor, size: int) -> Tensor:
    """Maximum of each whole window: (..., X, Y) to (..., X - size + 1, Y - size + 1).

    The same as a max-pooling of stride 1, but PyTorch's is many times slower on a CPU.
    """
    for dim in (-2, -1):
        width = maps.shape[dim] - size + 1
        maps = functools.reduce(torch.maximum, (maps.narrow(dim, i, width) for i in range(size)))
    return maps
