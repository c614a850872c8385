"""Pictures of samples (cameras with boxes, LiDAR from above, maps) and the hook that draws them."""
from bevfusion_enhanced.visualization.hook import BEVFusionVisualizationHook
from bevfusion_enhanced.visualization.show_dir_hook import ShowDirHook
from bevfusion_enhanced.visualization.visualizer import BEVFusionVisualizer

__all__ = ['BEVFusionVisualizationHook', 'BEVFusionVisualizer', 'ShowDirHook']
