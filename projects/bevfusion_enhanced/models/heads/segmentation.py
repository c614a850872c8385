"""The original map head of BEVFusion.

Shapes: B samples, C channels, K map classes, X and Y cells of the shared BEV map, U and V cells of
the predicted map, along LiDAR x (right) and y (forward).
"""
from typing import Dict, Sequence

from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from bevfusion_enhanced.models.heads.base import TaskLosses
from bevfusion_enhanced.models.heads.bev_map import BEVMapHead
from bevfusion_enhanced.models.losses import sigmoid_cross_entropy, sigmoid_focal_loss


@MODELS.register_module()
class BEVSegmentationHead(BEVMapHead):
    """Resample, two 3x3 convolutions, one classifier for all classes.

    Liu et al., 'BEVFusion: Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View
    Representation', ICRA 2023. Its focal loss has gamma 2 and does not weigh positives.

    Args:
        in_channels: C.
        grid_transform: arguments of BEVGridTransform.
        classes: names of the K map classes.
        loss: 'focal' or 'xent'; logged as `<class>/focal` or `<class>/xent`.
    """

    def __init__(self, *, in_channels: int, grid_transform: Dict, classes: Sequence[str],
                 loss: str = 'focal') -> None:
        super().__init__(classes=classes, grid_transform=grid_transform, loss=loss)
        self.classifier = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, len(self.classes), 1))

    def forward(self, bev: Tensor) -> Tensor:
        """Turn `bev` (B, C, X, Y) into logits (B, K, U, V)."""
        return self.classifier(self.transform(bev))

    def loss(self, bev: Tensor, samples: Sequence[Det3DDataSample]) -> TaskLosses:
        """Compare the prediction from `bev` (B, C, X, Y) with `gt_bev_map.masks` (K, U, V)."""
        logits, target = self(bev), self.masks(samples, bev.device)
        self.count_cells(logits, target)
        losses = {f'{name}/{self.loss_name}': self._class_loss(logits[:, k], target[:, k])
                  for k, name in enumerate(self.classes)}
        return TaskLosses(losses=losses, stats={})

    def _class_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss_name == 'xent':
            return sigmoid_cross_entropy(logits, target)
        return sigmoid_focal_loss(logits, target, alpha=-1, gamma=2.0)
