"""The camera branch: images to a BEV map.

Shapes: B samples, N cameras, H x W pixels, C channels, h x w feature cells, X and Y cells of the
BEV map.
"""
from typing import Dict, Optional, Sequence

from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from bevfusion_enhanced.models.calibration import Calibration
from bevfusion_enhanced.models.camera.backbones import forget_geometry
from bevfusion_enhanced.models.camera.swin import lean_blocks
from bevfusion_enhanced.ops.layout import for_convolution


class CameraEncoder(BaseModule):
    """Backbone and neck on every image, then the view transform over all cameras.

    Args:
        backbone: config of an image backbone that returns several levels.
        neck: config of the neck; its finest level is used.
        vtransform: config of the view transform.
    """

    def __init__(self, *, backbone: Dict, neck: Dict, vtransform: Dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.vtransform = MODELS.build(vtransform)
        forget_geometry(self.backbone)
        lean_blocks(self.backbone)
        # Swin freezes its `frozen_stages` only when told to train; the optimizer and the
        # processes' gradient exchange ask before that.
        self.backbone.train()

    def forward(self, images: Tensor, points: Optional[Sequence[Tensor]],
                calibration: Calibration) -> Tensor:
        """Encode images.

        Args:
            images: (B, N, 3, H, W), normalised.
            points: B clouds (P, 3 or more), for a view transform that looks at them.
            calibration: of the B samples.

        Returns:
            (B, C, X, Y).
        """
        B, N = images.shape[:2]
        levels = [for_convolution(level) for level in self.backbone(images.flatten(0, 1))]
        levels = self.neck(levels)
        img_feats = levels[0].unflatten(0, (B, N))                             # (B, N, C, h, w)
        return self.vtransform(img_feats, points, calibration)
