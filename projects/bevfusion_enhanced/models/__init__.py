"""Every part of the network; importing registers them."""
from bevfusion_enhanced.models import camera, heads, lidar
from bevfusion_enhanced.models.bevfusion import BEVFusion
from bevfusion_enhanced.models.fusers import AddFuser, ConvFuser

__all__ = ['AddFuser', 'BEVFusion', 'ConvFuser', 'camera', 'heads', 'lidar']
