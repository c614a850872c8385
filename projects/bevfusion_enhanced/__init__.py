"""Joint 3D detection and BEV map segmentation for MMDetection3D; importing registers every module."""
__version__ = '0.1.0'
