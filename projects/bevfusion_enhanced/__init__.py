"""Joint 3D detection and BEV map segmentation; importing it registers every module."""
from bevfusion_enhanced import compat

compat.apply()  # before anything that imports mmcv or MMDetection3D

from bevfusion_enhanced import datasets, engine, evaluation, models, visualization  # noqa: E402

__all__ = ['compat', 'datasets', 'engine', 'evaluation', 'models', 'visualization']
__version__ = '0.1.0'
