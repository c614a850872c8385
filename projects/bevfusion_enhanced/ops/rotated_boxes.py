"""Overlap, suppression and containment of boxes that are rotated about the vertical axis.

Convention: right-handed frame, x and y on the ground in metres, z up; yaw in radians turns x to y,
and dx is the extent along the x axis of the box, which is that of the frame at yaw 0. A ground box
is (x, y, dx, dy, yaw) about its centre, a 3D box (x, y, z, dx, dy, dz, yaw) with z at its bottom.
All overlaps are computed in float64 and returned in the dtype of the input. A box with an extent
that is zero, negative or beyond 1e100, or with any number that is not finite, covers nothing: it
overlaps no box and holds no point. So no result is ever NaN.

Shapes: N and M boxes, K pairs, P points, T boxes that points are compared with.
"""
from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor

# Pairs whose overlap is computed at once: about 60 MB of float64 temporaries.
PAIRS_PER_CHUNK = 1 << 16
# Metres; below it the volume of a box is a finite float64.
LARGEST_EXTENT = 1e100
# Comparisons of a point with a box, or of two centres, at once: about 60 MB.
TESTS_PER_CHUNK = 1 << 21


def box_iou_rotated(boxes_a: Tensor, boxes_b: Tensor, *, mode: str = 'iou',
                    aligned: bool = False) -> Tensor:
    """Intersection over union, or over the first box, of rotated boxes on the ground.

    Args:
        boxes_a: (N, 5).
        boxes_b: (M, 5), or (N, 5) when aligned.
        mode: 'iou' divides by the union, 'iof' by the area of the box of `boxes_a`.
        aligned: compare only boxes of equal index.

    Returns:
        (N, M), or (N,) when aligned; between 0 and 1.

    Raises:
        ValueError: on shapes or a mode other than these.
    """
    _check_boxes(boxes_a, boxes_b, 5, aligned)
    overlap = bev_overlap(boxes_a, boxes_b, aligned=aligned).double()
    areas_a, areas_b = _bev_areas(boxes_a), _bev_areas(boxes_b)
    return _ratio(overlap, areas_a, areas_b, mode, aligned).to(boxes_a.dtype)


def box_iou_3d(boxes_a: Tensor, boxes_b: Tensor, *, mode: str = 'iou',
               aligned: bool = False) -> Tensor:
    """Intersection over union, or over the first box, of 3D boxes by volume.

    Args:
        boxes_a: (N, 7); z is the bottom.
        boxes_b: (M, 7), or (N, 7) when aligned.
        mode: 'iou' divides by the union, 'iof' by the volume of the box of `boxes_a`.
        aligned: compare only boxes of equal index.

    Returns:
        (N, M), or (N,) when aligned; between 0 and 1.

    Raises:
        ValueError: on shapes or a mode other than these.
    """
    _check_boxes(boxes_a, boxes_b, 7, aligned)
    ground = [0, 1, 3, 4, 6]
    overlap = bev_overlap(boxes_a[:, ground], boxes_b[:, ground], aligned=aligned).double()
    overlap = overlap * _height_overlap(boxes_a.double(), boxes_b.double(), aligned)
    volume_a = _bev_areas(boxes_a[:, ground]) * _extent(boxes_a[:, 5])
    volume_b = _bev_areas(boxes_b[:, ground]) * _extent(boxes_b[:, 5])
    return _ratio(overlap, volume_a, volume_b, mode, aligned).to(boxes_a.dtype)


def bev_overlap(boxes_a: Tensor, boxes_b: Tensor, *, aligned: bool = False) -> Tensor:
    """Area, in square metres, that two rotated ground boxes share.

    Only pairs whose circumscribed circles touch are computed, so many boxes far apart cost little.

    Args:
        boxes_a: (N, 5).
        boxes_b: (M, 5), or (N, 5) when aligned.
        aligned: compare only boxes of equal index.

    Returns:
        (N, M), or (N,) when aligned, in float64.
    """
    a, b = boxes_a.double(), boxes_b.double()
    if aligned:
        near = _near(a, b).nonzero().flatten()                                         # (K,)
        return a.new_zeros(len(a)).index_put((near,), _overlap_of_pairs(a, b, near, near))
    first, second = _near_pairs(a, b)                                                  # (K,) each
    area = _overlap_of_pairs(a, b, first, second)
    return a.new_zeros(len(a), len(b)).index_put((first, second), area)


def nms_rotated(boxes: Tensor, scores: Tensor, *, iou_threshold: float,
                labels: Optional[Tensor] = None) -> Tensor:
    """Greedy non-maximum suppression of rotated ground boxes.

    Args:
        boxes: (N, 5).
        scores: (N,).
        iou_threshold: a box is dropped when a kept box of a higher score overlaps it by more.
        labels: (N,); when given, only boxes of the same label suppress each other.

    Returns:
        Indices of the kept boxes, highest score first.
    """
    order = scores.argsort(descending=True, stable=True)
    ordered = boxes[order].double()
    first, second = _near_pairs(ordered, ordered)                                      # (K,) each
    first, second = _only(first < second, first, second)
    if labels is not None:
        first, second = _only(labels[order][first] == labels[order][second], first, second)
    overlap = _overlap_of_pairs(ordered, ordered, first, second)
    areas = _bev_areas(ordered)
    iou = _ratio(overlap, areas[first], areas[second], 'iou', aligned=True)
    return order[_greedy_keep(*_only(iou > iou_threshold, first, second), count=len(boxes))]


def nms_distance(centers: Tensor, scores: Tensor, *, min_distance: float) -> Tensor:
    """Greedy suppression by distance between centres (circle NMS; Yin et al., CenterPoint, 2021).

    Args:
        centers: (N, 2).
        scores: (N,).
        min_distance: metres; of two closer centres only the one of the higher score is kept.

    Returns:
        Indices of the kept centres, highest score first.
    """
    order = scores.argsort(descending=True, stable=True)
    ordered = centers[order].double()
    distance = torch.cdist(ordered, ordered, compute_mode='donot_use_mm_for_euclid_dist')
    close = distance <= min_distance                                                   # (N, N)
    first, second = close.triu(diagonal=1).nonzero(as_tuple=True)                      # (K,) each
    return order[_greedy_keep(first, second, count=len(centers))]


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """Which boxes hold each point; the sides are open, bottom and top are closed.

    Args:
        points: (P, 3).
        boxes: (T, 7); z is the bottom.

    Returns:
        (P, T) bool.
    """
    return torch.cat(list(_containment(points, boxes)))


def points_in_boxes_part(points: Tensor, boxes: Tensor) -> Tensor:
    """Index of the first box that holds each point, -1 where none does.

    Args:
        points: (P, 3).
        boxes: (T, 7); z is the bottom.

    Returns:
        (P,) int64.
    """
    if len(boxes) == 0:
        return points.new_full((len(points),), -1, dtype=torch.long)
    first = [torch.where(inside.any(1), inside.int().argmax(1), -1)
             for inside in _containment(points, boxes)]
    return torch.cat(first)


def _containment(points: Tensor, boxes: Tensor) -> Iterator[Tensor]:
    """Yield (chunk of P, T) bool, so that temporaries stay small for any number of points."""
    x, y, z, dx, dy, dz, yaw = boxes[:, :7].unbind(1)                                  # (T,) each
    cos, sin = yaw.cos(), yaw.sin()
    solid = (_bev_areas(boxes[:, [0, 1, 3, 4, 6]]) > 0) & (_extent(dz) > 0)
    for chunk in points.split(max(1, TESTS_PER_CHUNK // max(1, len(boxes)))):
        right, forward, up = (chunk[:, :3, None] - torch.stack([x, y, z + dz / 2])).unbind(1)
        along = (right * cos + forward * sin).abs() < dx / 2
        across = (forward * cos - right * sin).abs() < dy / 2
        yield along & across & (up.abs() <= dz / 2) & solid


def _pair_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Shared area of each pair of boxes (K, 5), exactly and without sorting any polygon.

    In b's own frame, b is |x| <= dx/2, |y| <= dy/2 and a is a convex polygon, so the area is the
    integral over x of clamp(upper(x)) - clamp(lower(x)), with clamp to b's extent in y. Upper and
    lower boundary are a's edges: walking a counter-clockwise, each edge adds
    -integral of clamp(y) dx over its part with |x| <= dx/2. Being an integral of a continuous
    function, the result is continuous: coinciding edges and touching corners are no special cases.
    """
    start = _corners_in_frame(a, b)                                                    # (K, 4, 2)
    end = start.roll(-1, dims=1)
    half_x, half_y = b[:, 2:3] / 2, b[:, 3:4] / 2                                      # (K, 1)
    x0, x1 = start[..., 0].clamp(-half_x, half_x), end[..., 0].clamp(-half_x, half_x)  # (K, 4)
    y0, y1 = _at(start, end, x0), _at(start, end, x1)
    # clamp(y) is linear between the edge's ends and the two places where it meets the border
    rise = y1 - y0
    rise = torch.where(rise == 0, torch.ones_like(rise), rise)
    low, high = ((-half_y - y0) / rise).clamp(0, 1), ((half_y - y0) / rise).clamp(0, 1)
    zero = torch.zeros_like(low)
    steps = torch.stack([zero, torch.minimum(low, high), torch.maximum(low, high), zero + 1])
    heights = torch.lerp(y0, y1, steps).clamp(-half_y, half_y)                         # (4, K, 4)
    mean_height = (steps.diff(dim=0) * (heights[1:] + heights[:-1]) / 2).sum(0)
    return ((x0 - x1) * mean_height).sum(1).clamp(min=0)                               # (K,)


def _at(start: Tensor, end: Tensor, x: Tensor) -> Tensor:
    """Height of the edges from `start` to `end` (K, 4, 2) at `x` (K, 4), which they span."""
    run = end[..., 0] - start[..., 0]
    run = torch.where(run == 0, torch.ones_like(run), run)
    fraction = ((x - start[..., 0]) / run).clamp(0, 1)
    return torch.lerp(start[..., 1], end[..., 1], fraction)


def _corners_in_frame(a: Tensor, b: Tensor) -> Tensor:
    """Corners of boxes `a`, counter-clockwise, seen from the centres and yaws of boxes `b`."""
    offset_x, offset_y = a[:, 0] - b[:, 0], a[:, 1] - b[:, 1]                          # (K,)
    cos_b, sin_b = b[:, 4].cos(), b[:, 4].sin()
    center = torch.stack([offset_x * cos_b + offset_y * sin_b,
                          offset_y * cos_b - offset_x * sin_b], dim=-1)                # (K, 2)
    turn = a[:, 4] - b[:, 4]
    along = torch.stack([turn.cos(), turn.sin()], dim=-1) * a[:, 2:3] / 2
    across = torch.stack([-turn.sin(), turn.cos()], dim=-1) * a[:, 3:4] / 2
    corners = torch.stack([-along - across, along - across, along + across, across - along], dim=1)
    return center[:, None] + corners                                                   # (K, 4, 2)


def _overlap_of_pairs(a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Shared areas (K,) of boxes `a[first]` and `b[second]`, a bounded number at a time."""
    chunks = zip(first.split(PAIRS_PER_CHUNK), second.split(PAIRS_PER_CHUNK))
    return torch.cat([_pair_overlap(a[i], b[j]) for i, j in chunks])


def _near_pairs(a: Tensor, b: Tensor) -> Tuple[Tensor, Tensor]:
    """Indices into (N, 5) and (M, 5) of all pairs that could overlap, (K,) each."""
    rows = max(1, TESTS_PER_CHUNK // max(1, len(b)))
    pairs = [_near(part[:, None], b[None]).nonzero() + part.new_tensor([i * rows, 0]).long()
             for i, part in enumerate(a.split(rows))]
    return torch.cat(pairs).unbind(1)


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Whether neither box is empty and their circumscribed circles touch; (..., 5) -> (...)."""
    reach = (a[..., 2:4].norm(dim=-1) + b[..., 2:4].norm(dim=-1)) / 2
    distance = torch.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1])
    return (distance <= reach) & (_bev_areas(a) > 0) & (_bev_areas(b) > 0)


def _only(mask: Tensor, first: Tensor, second: Tensor) -> Tuple[Tensor, Tensor]:
    return first[mask], second[mask]


def _bev_areas(boxes: Tensor) -> Tensor:
    """Areas (...) of ground boxes (..., 5) in float64; 0 for boxes that cover nothing."""
    area = _extent(boxes[..., 2]) * _extent(boxes[..., 3])
    return torch.where(boxes.isfinite().all(-1), area, torch.zeros_like(area))


def _extent(size: Tensor) -> Tensor:
    size = size.double()
    return torch.where((size > 0) & (size <= LARGEST_EXTENT), size, torch.zeros_like(size))


def _height_overlap(a: Tensor, b: Tensor, aligned: bool) -> Tensor:
    """Metres of height shared by 3D boxes: (N, M), or (N,) when aligned; 0 where not finite."""
    if not aligned:
        a = a[:, None]
    top = torch.minimum(a[..., 2] + _extent(a[..., 5]), b[..., 2] + _extent(b[..., 5]))
    bottom = torch.maximum(a[..., 2], b[..., 2])
    return (top - bottom).clamp(min=0).nan_to_num(nan=0.0, posinf=0.0)


def _ratio(overlap: Tensor, size_a: Tensor, size_b: Tensor, mode: str, aligned: bool) -> Tensor:
    """Divide `overlap` by the union or by the first size; 0 where that is 0."""
    if mode not in ('iou', 'iof'):
        raise ValueError(f"mode must be 'iou' or 'iof', got {mode!r}")
    size_a = size_a if aligned else size_a[:, None]
    whole = size_a.expand_as(overlap) if mode == 'iof' else size_a + size_b - overlap
    ratio = overlap / whole.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(overlap > 0, ratio, torch.zeros_like(ratio)).clamp(max=1)


def _greedy_keep(first: Tensor, second: Tensor, *, count: int) -> Tensor:
    """Indices, of `count` boxes in order of score, that greedy suppression keeps.

    `first[k] < second[k]` are pairs that exclude each other (K,). A box stays unless an earlier box
    that stays excludes it. That rule has exactly one solution, reached by applying it to all boxes
    at once until nothing changes: as many rounds as the longest chain of boxes that suppress one
    another, not one per box.
    """
    keep = torch.ones(count, dtype=torch.bool, device=first.device)
    while True:
        updated = torch.ones_like(keep)
        updated[second[keep[first]]] = False
        if torch.equal(updated, keep):
            return keep.nonzero().flatten()
        keep = updated


def _check_boxes(a: Tensor, b: Tensor, size: int, aligned: bool) -> None:
    for name, boxes in (('boxes_a', a), ('boxes_b', b)):
        if boxes.dim() != 2 or boxes.shape[1] != size:
            raise ValueError(f'{name} must have the shape (N, {size}), got {tuple(boxes.shape)}')
    if aligned and len(a) != len(b):
        raise ValueError(f'aligned boxes must be equally many, got {len(a)} and {len(b)}')
