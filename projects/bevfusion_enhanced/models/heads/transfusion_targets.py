"""What a TransFusion head should have said: the dense heatmap, and a target for each proposal.

Shapes: B samples, N annotated boxes of all samples, K classes, X and Y cells of the BEV map along
LiDAR x and y, P proposals, S elements of a box code, D cells across the largest Gaussian.
"""
from typing import List, NamedTuple, Sequence, Tuple

import torch
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.models.heads.transfusion_assigner import Assignment
from bevfusion_enhanced.models.heads.transfusion_coder import TransFusionBBoxCoder


class Truth(NamedTuple):
    """Annotated boxes of one sample: `boxes` (n, 7 or 9) with z at the bottom, `labels` (n,)."""

    boxes: Tensor
    labels: Tensor


class ProposalTargets(NamedTuple):
    """Targets of the P proposals of each of B samples.

    Attributes:
        classes: (B, P, K) 1 for the class of the matched box, else 0.
        codes: (B, P, S) of the matched box, else 0.
        matched: (B, P) bool, whether an annotated box is matched.
        known: (B, P, S) bool, whether the element of the code is annotated.
    """

    classes: Tensor
    codes: Tensor
    matched: Tensor
    known: Tensor


def read_truths(samples: Sequence[Det3DDataSample], device: torch.device, *, num_classes: int,
                box_size: int) -> List[Truth]:
    """Annotated boxes of B samples; boxes of no class (label -1) are left out.

    Args:
        samples: with `gt_instances_3d`.
        device: where the truths are wanted.
        num_classes: K.
        box_size: 9 where velocities are needed, else 7.

    Raises:
        DataError: when a label is none of the K classes, or velocities are missing.
    """
    truths = []
    for sample in samples:
        labels = sample.gt_instances_3d.labels_3d.to(device).long()
        boxes = sample.gt_instances_3d.bboxes_3d.tensor.to(device)
        if len(labels) and (int(labels.max()) >= num_classes or boxes.shape[1] < box_size):
            raise DataError(
                f'sample {sample.metainfo.get("token", "?")} has labels up to {int(labels.max())} '
                f'and boxes of {boxes.shape[1]} numbers, but the head has {num_classes} classes '
                f'and needs {box_size} numbers a box: check num_classes and code_size')
        truths.append(Truth(boxes=boxes[labels >= 0], labels=labels[labels >= 0]))
    return truths


def proposal_targets(truths: Sequence[Truth], assignments: Sequence[Assignment],
                     coder: TransFusionBBoxCoder, *, num_proposals: int,
                     num_classes: int) -> ProposalTargets:
    """Spread the annotated boxes over the proposals they are assigned to.

    An element of a code that is not finite (nuScenes leaves some velocities unknown) is left out.

    Args:
        truths: of the B samples.
        assignments: of the B samples.
        coder: encodes the boxes.
        num_proposals: P.
        num_classes: K.
    """
    device = truths[0].boxes.device
    size = (len(truths), num_proposals)
    sample = torch.cat([torch.full_like(a.proposal, b) for b, a in enumerate(assignments)])
    at = (sample, torch.cat([a.proposal for a in assignments]))                        # (M,) twice
    labels = torch.cat([t.labels[a.truth] for t, a in zip(truths, assignments)])       # (M,)
    codes = coder.encode(
        torch.cat([t.boxes[a.truth] for t, a in zip(truths, assignments)]).float())    # (M, S)
    known = codes.isfinite()
    targets = ProposalTargets(
        classes=torch.zeros(*size, num_classes, device=device),
        codes=torch.zeros(*size, coder.code_size, device=device),
        matched=torch.zeros(size, dtype=torch.bool, device=device),
        known=torch.zeros(*size, coder.code_size, dtype=torch.bool, device=device))
    targets.classes[(*at, labels)] = 1
    targets.codes[at] = torch.where(known, codes, torch.zeros_like(codes))
    targets.matched[at] = True
    targets.known[at] = known
    return targets


def heatmap_targets(truths: Sequence[Truth], coder: TransFusionBBoxCoder, *, num_classes: int,
                    map_size: Tuple[int, int], min_overlap: float, min_radius: int) -> Tensor:
    """Draw a Gaussian around the centre of every annotated box (Zhou et al., 2019).

    Boxes without extent, and boxes whose centre is not on the map, are not drawn.

    Args:
        truths: of the B samples.
        coder: knows the grid.
        num_classes: K.
        map_size: X and Y.
        min_overlap: IoU that a box keeps whose corners are off by the radius.
        min_radius: smallest radius, in cells.

    Returns:
        (B, K, X, Y), 1 exactly at the cells of the centres.
    """
    boxes = torch.cat([t.boxes for t in truths])[:, :7].float()                        # (N, 7)
    labels = torch.cat([t.labels for t in truths])                                     # (N,)
    sample = torch.cat([torch.full_like(t.labels, b) for b, t in enumerate(truths)])   # (N,)
    cells = coder.cells(boxes[:, :2]).floor()                                          # (N, 2)
    size = coder.extents(boxes[:, 3:5])                                                # (N, 2)
    drawn = ((cells >= 0) & (cells < cells.new_tensor(map_size)) & (size > 0)).all(dim=1)
    radius = gaussian_radius(size, min_overlap).floor().clamp(min=min_radius)          # (N,)
    return draw_gaussians(
        plane=(sample * num_classes + labels)[drawn], center=cells[drawn].long(),
        radius=radius[drawn].long(), planes=len(truths) * num_classes, map_size=map_size,
    ).reshape(len(truths), num_classes, *map_size)


def gaussian_radius(size: Tensor, min_overlap: float) -> Tensor:
    """How far two opposite corners may move, in cells, for the box to keep an IoU of `min_overlap`.

    The least of the radii for three cases: both corners inward or outward, one each (Law and Deng,
    'CornerNet', ECCV 2018). Every published CenterPoint and TransFusion model was trained with the
    roots in the form (b + sqrt(b^2 - 4ac)) / 2 of CornerNet's first code, and so is this one.

    Args:
        size: (N, 2) in cells.
        min_overlap: IoU between 0 and 1.

    Returns:
        (N,) in cells.
    """
    total, area = size.sum(dim=1), size.prod(dim=1)

    def root(a: float, b: Tensor, c: Tensor) -> Tensor:
        return (b + (b.square() - 4 * a * c).clamp(min=0).sqrt()) / 2

    radii: List[Tensor] = [
        root(1, total, area * (1 - min_overlap) / (1 + min_overlap)),
        root(4, 2 * total, (1 - min_overlap) * area),
        root(4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * area)]
    return torch.stack(radii).amin(dim=0)


def draw_gaussians(*, plane: Tensor, center: Tensor, radius: Tensor, planes: int,
                   map_size: Tuple[int, int]) -> Tensor:
    """Draw N Gaussians, each cut to a square, and keep the largest value of each cell.

    Args:
        plane: (N,) which of the planes a Gaussian is drawn on.
        center: (N, 2) cell along x and y.
        radius: (N,) half width of the square, in cells; six standard deviations span the square.
        planes: how many planes there are.
        map_size: X and Y.

    Returns:
        (planes, X, Y) float32.
    """
    canvas = torch.zeros(planes * map_size[0] * map_size[1], device=center.device)
    if len(center) == 0:
        return canvas.reshape(planes, *map_size)
    reach = min(int(radius.max()), max(map_size))
    offset = torch.arange(-reach, reach + 1, device=center.device)                     # (D,)
    sigma = (2 * radius + 1).double()[:, None] / 6
    falloff = torch.exp(-offset.square() / (2 * sigma.square()))                       # (N, D)
    falloff = falloff * (offset.abs() <= radius[:, None])
    x, y = (center[:, :, None] + offset).unbind(1)                                     # (N, D) each
    on_map = ((x >= 0) & (x < map_size[0]))[:, :, None] & ((y >= 0) & (y < map_size[1]))[:, None]
    index = ((plane[:, None] * map_size[0] + x) * map_size[1])[:, :, None] + y[:, None]
    value = (falloff[:, :, None] * falloff[:, None]).float()                           # (N, D, D)
    canvas.scatter_reduce_(0, index[on_map], value[on_map], reduce='amax')
    return canvas.reshape(planes, *map_size)
