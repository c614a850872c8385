"""Task heads over the shared BEV map; importing registers them and what they are built from."""
from bevfusion_enhanced.models.heads.base import TaskHead, TaskLosses
from bevfusion_enhanced.models.heads.enhanced_segmentation import EnhancedBEVSegmentationHead
from bevfusion_enhanced.models.heads.segmentation import BEVSegmentationHead
from bevfusion_enhanced.models.heads.transfusion import TransFusionHead
from bevfusion_enhanced.models.heads.transfusion_assigner import (
                                                                  BBoxBEVL1Cost,
                                                                  HungarianAssigner3D,
                                                                  IoU3DCost,
)
from bevfusion_enhanced.models.heads.transfusion_coder import TransFusionBBoxCoder
from bevfusion_enhanced.models.heads.transfusion_decoder import TransformerDecoderLayer

__all__ = [
    'BBoxBEVL1Cost', 'BEVSegmentationHead', 'EnhancedBEVSegmentationHead', 'HungarianAssigner3D',
    'IoU3DCost', 'TaskHead', 'TaskLosses', 'TransFusionBBoxCoder', 'TransFusionHead',
    'TransformerDecoderLayer',
]
