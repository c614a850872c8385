"""Bilinear sampling of a map at fixed places on a CPU, forward and backward as sums of cells.

It is what `torch.nn.functional.grid_sample` computes with zeros around the map and
`align_corners=False`: positions run from -1 to 1 over the map's edges, its last dimension first.
That function spreads a gradient cell by cell on one thread per sample and channel; here every cell
collects its own.

Shapes: B samples, C channels, X and Y cells of the map, U and V places.
"""
from typing import NamedTuple, Tuple

import torch
from torch import Tensor

from bevfusion_enhanced.ops.row_sums import RowSums, row_sums, sum_rows


class SamplingPlan(NamedTuple):
    """Which cells meet which places.

    Attributes:
        input_shape: B, X and Y.
        output_shape: B, U and V.
        there: of every place, the cells around it.
        back: of every cell, the places around it.
    """

    input_shape: Tuple[int, int, int]
    output_shape: Tuple[int, int, int]
    there: RowSums
    back: RowSums


def plan_sampling(grid: Tensor, *, batch: int, size: Tuple[int, int]) -> SamplingPlan:
    """Prepare `sample_bilinearly` for maps of one shape.

    Args:
        grid: (U, V, 2) positions along Y, then along X.
        batch: B.
        size: X and Y.
    """
    X, Y = size
    U, V = grid.shape[:2]
    y, x = (((position + 1) * cells - 1) / 2
            for position, cells in zip(grid.detach().flatten(0, 1).unbind(1), (Y, X)))  # (U * V)
    corner = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    near_x = x.floor().unsqueeze(1) + corner[:, 0]                                      # (U * V, 4)
    near_y = y.floor().unsqueeze(1) + corner[:, 1]
    factors = (1 - (x.unsqueeze(1) - near_x).abs()) * (1 - (y.unsqueeze(1) - near_y).abs())
    used = (0 <= near_x) & (near_x < X) & (0 <= near_y) & (near_y < Y)
    sample = torch.arange(batch).unsqueeze(1)
    place = torch.arange(U * V).unsqueeze(1).expand(-1, 4)[used]
    cell = (near_x * Y + near_y)[used].long()
    there = row_sums(sums=(sample * U * V + place).flatten(), num_sums=batch * U * V,
                     rows=(sample * X * Y + cell).flatten(),
                     factors=factors[used].repeat(batch))
    return SamplingPlan(input_shape=(batch, X, Y), output_shape=(batch, U, V), there=there,
                        back=there.transposed(num_rows=batch * X * Y))


def sample_bilinearly(x: Tensor, plan: SamplingPlan) -> Tensor:
    """Samples (B, C, U, V), channels last in memory, of maps `x` (B, C, X, Y)."""
    cells = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    sampled = sum_rows(cells, plan.there, plan.back)
    return sampled.view(*plan.output_shape, x.shape[1]).permute(0, 3, 1, 2)
