"""The camera branch: backbones, the neck and the view transforms."""
from .backbones import TimmBackbone
from .encoder import CameraEncoder
from .neck import GeneralizedLSSFPN
from .view_transform import DepthLSSTransform, LSSTransform

__all__ = ['CameraEncoder', 'DepthLSSTransform', 'GeneralizedLSSFPN', 'LSSTransform',
           'TimmBackbone']
