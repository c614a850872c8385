"""Pipeline transforms; importing registers them."""
from bevfusion_enhanced.datasets.transforms.bev_augmentation import (
    BEVFusionGlobalRotScaleTrans,
    BEVFusionRandomFlip3D,
)
from bevfusion_enhanced.datasets.transforms.corruption import (
    CalibrationNoise,
    DelayImages,
    DelayPoints,
    DropCameras,
)
from bevfusion_enhanced.datasets.transforms.formatting import PackBEVFusionInputs
from bevfusion_enhanced.datasets.transforms.image_augmentation import ImageAug3D
from bevfusion_enhanced.datasets.transforms.loading import LoadMultiViewImages, LoadPointsWithSweeps
from bevfusion_enhanced.datasets.transforms.map_masks import LoadBEVMapMasks
from bevfusion_enhanced.datasets.transforms.object_sample import BEVFusionObjectSample
from bevfusion_enhanced.datasets.transforms.test_time_augmentation import BEVView

__all__ = ['BEVFusionGlobalRotScaleTrans', 'BEVFusionObjectSample', 'BEVFusionRandomFlip3D',
           'BEVView', 'CalibrationNoise', 'DelayImages', 'DelayPoints', 'DropCameras',
           'ImageAug3D', 'LoadBEVMapMasks', 'LoadMultiViewImages', 'LoadPointsWithSweeps',
           'PackBEVFusionInputs']
