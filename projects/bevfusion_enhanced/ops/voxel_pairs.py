"""Which voxels meet under which tap of a sparse convolution.

Voxels are rows (sample, x, y, z) of whole numbers, in the order of sample, x, y, z. Under tap t of
a kernel, output o sees the input at o * stride - padding + t along every axis, as in a dense
convolution. A voxel's place is a number that counts cells in that order, so neighbours along z are
one apart, and a neighbour is looked up among the sorted places. What is computed is the 'rulebook'
of Graham et al., '3D Semantic Segmentation with Submanifold Sparse Convolutional Networks', CVPR
2018, for CPUs, where spconv fills a hash table on one thread.

Shapes: N input voxels, M output voxels, K taps, which count z fastest and x slowest, P_k pairs of a
tap.
"""
from typing import List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

NO_PLACE = -2  # of no voxel, nor beside one


class TapPairs(NamedTuple):
    """The pairs of one tap, both columns in rising order.

    Attributes:
        inputs: (P_k) int32 rows of the input.
        outputs: (P_k) int32 rows of the output.
    """

    inputs: Tensor
    outputs: Tensor


def submanifold_pairs(voxels: Tensor, *, shape: Sequence[int]) -> List[TapPairs]:
    """Of a 3 x 3 x 3 convolution whose outputs are its inputs' voxels.

    A voxel that sees another under a tap is seen by it under the opposite one, so half of the taps
    are looked up.

    Args:
        voxels: (N, 4) int32, each once, sorted.
        shape: cells along x, y, z.

    Returns:
        27 taps.

    Raises:
        ValueError: The voxels are not sorted.
    """
    sizes = [cells + 1 for cells in shape]  # a free cell after the last: neighbours never wrap
    places = places_of(voxels, shape=sizes)                                    # (N)
    _check_sorted(places)
    columns = torch.tensor([[-1 - sizes[1]], [-sizes[1]], [1 - sizes[1]], [-1]]) * sizes[2]
    wanted = places + (columns - 1)                                            # (4, N)
    found = torch.searchsorted(places, wanted)                                 # itself or the next
    known = torch.cat([places, places.new_full((1,), NO_PLACE)])
    before = [_met(found, wanted, known)]
    for _ in range(2):
        found += known[found] == wanted
        wanted += 1
        before.append(_met(found, wanted, known))
    below = (places[1:] - places[:-1] == 1).nonzero()[:, 0].int()
    taps = [taps_of_z[column] for column in range(4) for taps_of_z in before]
    taps.append(TapPairs(below, below + 1))
    everyone = torch.arange(len(voxels), dtype=torch.int32)
    mirrored = [TapPairs(outputs, inputs) for inputs, outputs in reversed(taps)]
    return [*taps, TapPairs(everyone, everyone), *mirrored]


def _met(found: Tensor, wanted: Tensor, known: Tensor) -> List[TapPairs]:
    """Of each column of cells: the voxels (N) that do find what they want."""
    rows = [row.nonzero()[:, 0] for row in known[found] == wanted]
    return [TapPairs(at[outputs].int(), outputs.int()) for at, outputs in zip(found, rows)]


def strided_pairs(voxels: Tensor, *, shape: Sequence[int], kernel: Sequence[int],
                  stride: Sequence[int],
                  padding: Sequence[int]) -> Tuple[Tensor, List[TapPairs]]:
    """Of a convolution whose outputs are all cells that any voxel reaches.

    Args:
        voxels: (N, 4) int32, each once, sorted.
        shape: cells along x, y, z of the input.
        kernel: taps along x, y, z.
        stride: along x, y, z.
        padding: along x, y, z.

    Returns:
        The outputs' voxels (M, 4) int32, sorted, and the taps.

    Raises:
        ValueError: The voxels are not sorted.
    """
    _check_sorted(places_of(voxels, shape=shape))
    sizes = output_shape(shape, kernel=kernel, stride=stride, padding=padding)
    rows, places = _met_outputs(voxels, sizes=sizes, kernel=kernel, stride=stride, padding=padding)
    everywhere, outputs = _numbered(torch.cat(places))                         # (M), (P)
    taps = [TapPairs(*tap) for tap in zip(
        rows, outputs.split([len(inputs) for inputs in rows]), strict=True)]
    return _voxels(everywhere, sizes), taps


def _numbered(places: Tensor) -> Tuple[Tensor, Tensor]:
    """The different ones (M) in rising order, and which one each (P) is, int32."""
    rising, order = places.sort()
    different, number = rising.unique_consecutive(return_inverse=True)
    return different, torch.empty_like(number).index_copy_(0, order, number).int()


def _met_outputs(voxels: Tensor, *, sizes: Sequence[int], kernel: Sequence[int],
                 stride: Sequence[int],
                 padding: Sequence[int]) -> Tuple[List[Tensor], List[Tensor]]:
    """For every tap the inputs that an output sees (P_k) int32, and the places of the outputs."""
    sample, *cells = voxels.unbind(1)
    along_x, along_y, along_z = (
        _reached(*axis) for axis in zip(cells, sizes, kernel, stride, padding, strict=True))
    first_of_sample = sample.long() * sizes[0]
    inputs, places = [], []
    for x, in_x in zip(*along_x):
        for y, in_y in zip(*along_y):
            column = (in_x & in_y).nonzero()[:, 0]
            place = (first_of_sample + x).mul_(sizes[1]).add_(y).mul_(sizes[2])
            place = place.index_select(0, column)
            for z, in_z in zip(*along_z):
                met = in_z.index_select(0, column).nonzero()[:, 0]
                rows = column.index_select(0, met)
                inputs.append(rows.int())
                places.append(place.index_select(0, met).add_(z.index_select(0, rows)))
    return inputs, places


def output_shape(shape: Sequence[int], *, kernel: Sequence[int], stride: Sequence[int],
                 padding: Sequence[int]) -> Tuple[int, ...]:
    """Cells of a convolution's output along each axis."""
    return tuple((cells + 2 * margin - taps) // step + 1 for cells, taps, step, margin in
                 zip(shape, kernel, stride, padding, strict=True))


def _reached(cells: Tensor, size: int, taps: int, stride: int,
             padding: int) -> Tuple[Tensor, Tensor]:
    """Along one axis: the output (taps, N) that sees a cell under a tap, and whether it exists."""
    steps = cells + padding - torch.arange(taps, dtype=cells.dtype).unsqueeze(1)
    outputs = torch.div(steps, stride, rounding_mode='floor')
    return outputs, (outputs * stride == steps) & (outputs >= 0) & (outputs < size)


def places_of(voxels: Tensor, *, shape: Sequence[int]) -> Tensor:
    """Numbers (N) int64 that count the cells of a grid, along z first.

    Args:
        voxels: (N, 4) sample, x, y, z.
        shape: cells along x, y, z.
    """
    places = voxels[:, 0].long()
    for axis, cells in enumerate(shape, start=1):
        places = places * cells + voxels[:, axis]
    return places


def _check_sorted(places: Tensor) -> None:
    if not bool((places[1:] > places[:-1]).all()):
        raise ValueError('voxels are not in the order of sample, x, y, z, each once; sort them '
                         'with their features, as BEVFusionSparseEncoder does')


def _voxels(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """The voxels (M, 4) at places."""
    columns = []
    for size in reversed(sizes):
        columns.append(places % size)
        places = torch.div(places, size, rounding_mode='floor')
    return torch.stack([places, *reversed(columns)], 1).int()
