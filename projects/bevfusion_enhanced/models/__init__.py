"""Every part of the network; importing registers them."""
from bevfusion_enhanced.models import camera, heads, lidar
from bevfusion_enhanced.models.bevfusion import BEVFusion
from bevfusion_enhanced.models.decoder_lssfpn import LSSFPN
from bevfusion_enhanced.models.decoder_resnet import GeneralizedResNet
from bevfusion_enhanced.models.fusers import AddFuser, ConvFuser
from bevfusion_enhanced.models.task_balance import GradNorm, PCGrad, UncertaintyWeighting
from bevfusion_enhanced.models.test_time_augmentation import BEVFusionTTAModel

__all__ = ['AddFuser', 'BEVFusion', 'BEVFusionTTAModel', 'ConvFuser', 'GeneralizedResNet',
           'GradNorm', 'LSSFPN', 'PCGrad', 'UncertaintyWeighting', 'camera', 'heads', 'lidar']
