"""What map heads share: resampling to the map's grid, reading the truth, packing the prediction.

Frames: dimension 2 of a BEV tensor runs along LiDAR x (right), dimension 3 along LiDAR y (forward),
in metres. Cells are half-open intervals, a value belongs to its cell's centre.
Shapes: B samples, C channels, K map classes, X and Y cells of the shared BEV map, U and V cells of
the map that is predicted, along x and y.
"""
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import PixelData
from torch import Tensor, nn
from torch.nn import functional as F

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.heads.base import TaskHead
from bevfusion_enhanced.ops.layout import for_convolution
from bevfusion_enhanced.ops.resample import SamplingPlan, plan_sampling, sample_bilinearly
from bevfusion_enhanced.ops.row_sums import runs_eagerly_on_cpu

# (first edge, last edge, step) in metres, along x and along y
Scope = Sequence[Tuple[float, float, float]]


class BEVGridTransform(nn.Module):
    """Resample a BEV map bilinearly at the cell centres of another grid; outside is 0.

    Args:
        input_scope: edges of the map that comes in; its own step follows from its size.
        output_scope: edges and step of the map that goes out.
        prescale_factor: the map is first scaled by this factor, against aliasing.

    Raises:
        ConfigError: when a scope does not hold a whole, positive number of steps.
    """

    def __init__(self, *, input_scope: Scope, output_scope: Scope,
                 prescale_factor: float = 1) -> None:
        super().__init__()
        self.prescale_factor = prescale_factor
        along_x, along_y = (_relative_centers(*axes) for axes in zip(input_scope, output_scope))
        x, y = torch.meshgrid(along_x, along_y, indexing='ij')                         # (U, V)
        # grid_sample wants the position along the last dimension first
        self.register_buffer('grid', torch.stack([y, x], dim=-1), persistent=False)    # (U, V, 2)
        self._plan: Optional[SamplingPlan] = None

    @property
    def output_size(self) -> Tuple[int, int]:
        """U and V."""
        return tuple(self.grid.shape[:2])

    def forward(self, bev: Tensor) -> Tensor:
        """Resample `bev` (B, C, X, Y) to (B, C, U, V)."""
        if self.prescale_factor != 1:
            bev = F.interpolate(bev, scale_factor=self.prescale_factor, mode='bilinear',
                                align_corners=False)
        # sampled in float32, then in the precision that all convolutions would cast it to
        precise = bev.to(torch.promote_types(bev.dtype, torch.float32))
        return for_convolution(self._sample(precise).to(bev.dtype))

    def _sample(self, bev: Tensor) -> Tensor:
        if not runs_eagerly_on_cpu(bev):
            grid = self.grid.to(bev.dtype).expand(len(bev), -1, -1, -1)                # (B,U,V,2)
            return F.grid_sample(bev, grid, mode='bilinear', align_corners=False)
        if self._plan is None or self._plan.input_shape != (len(bev), *bev.shape[2:]):
            self._plan = plan_sampling(self.grid, batch=len(bev), size=bev.shape[2:])
        return sample_bilinearly(bev, self._plan)


def _relative_centers(source: Tuple[float, float, float],
                      target: Tuple[float, float, float]) -> Tensor:
    """Centres of the cells of `target`, where `source` runs from -1 to 1.

    In float32 throughout, as the published models compute them, to agree with them to the last bit.
    """
    low, high, _ = source
    first, last, step = target
    count = round((last - first) / step) if step > 0 else 0
    if high <= low or count < 1 or abs(first + count * step - last) > 1e-3 * step:
        raise ConfigError('grid_transform: every scope must be (first edge, last edge, step) with '
                          f'a whole number of steps, got input {source} and output {target}')
    centers = (first + step / 2) + step * torch.arange(count, dtype=torch.float32)
    return (centers - low) / (high - low) * 2 - 1


class BEVMapHead(TaskHead):
    """Base of the map heads: K independent binary maps, logits from `forward(bev)`.

    Args:
        classes: names of the map classes; channel k is `classes[k]`.
        grid_transform: arguments of BEVGridTransform.
        loss: 'focal' or 'xent'.

    Raises:
        ConfigError: for another loss, or classes that are missing or repeated.
    """

    def __init__(self, *, classes: Sequence[str], grid_transform: Dict, loss: str) -> None:
        super().__init__()
        if not classes or len(set(classes)) != len(classes):
            raise ConfigError(f'classes of a map head must be given and distinct, got {classes}')
        if loss not in ('focal', 'xent'):
            raise ConfigError(f"loss of a map head must be 'focal' or 'xent', got {loss!r}")
        self.classes = tuple(classes)
        self.loss_name = loss
        self.transform = BEVGridTransform(**grid_transform)

    def predict(self, bev: Tensor,
                samples: Sequence[Det3DDataSample]) -> List[Dict[str, PixelData]]:
        """Predict from `bev` (B, C, X, Y) the field `pred_bev_map` with `probs` (K, U, V)."""
        probs = self(bev).float().sigmoid()
        return [dict(pred_bev_map=PixelData(probs=p)) for p in probs]

    def count_cells(self, logits: Tensor, target: Tensor) -> None:
        """Count true cells, and those with a probability above one half, of maps (B, K, U, V)."""
        self.count_classes(truths=target.detach().sum(dim=(0, 2, 3)),
                           predicted=(logits.detach() > 0).sum(dim=(0, 2, 3)))

    def masks(self, samples: Sequence[Det3DDataSample], device: torch.device) -> Tensor:
        """Stack the true maps of B samples: (B, K, U, V), 0 or 1.

        Raises:
            DataError: when a sample has no map, or one of another grid or other classes.
        """
        expected = (len(self.classes), *self.transform.output_size)
        return torch.stack([_sample_masks(s, expected) for s in samples]).to(device)


def _sample_masks(sample: Det3DDataSample, expected: Tuple[int, int, int]) -> Tensor:
    name = sample.metainfo.get('token', sample.metainfo.get('sample_idx', '?'))
    if 'gt_bev_map' not in sample:
        raise DataError(f'sample {name} has no gt_bev_map: the map head needs LoadBEVMapMasks in '
                        'the training pipeline')
    masks = torch.as_tensor(sample.gt_bev_map.masks)
    if tuple(masks.shape) != expected:
        raise DataError(f'gt_bev_map of sample {name} is {tuple(masks.shape)} but the map head '
                        f'predicts {expected} (classes, x cells, y cells): make the classes and '
                        'bounds of LoadBEVMapMasks agree with classes and output_scope of the head')
    return masks
