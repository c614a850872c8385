"""Pictures of samples (cameras with boxes, LiDAR from above, maps) and the hook that draws them."""
from bevfusion_enhanced.visualization.hook import BEVFusionVisualizationHook

__all__ = ['BEVFusionVisualizationHook']
