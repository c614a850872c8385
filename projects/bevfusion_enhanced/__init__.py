"""Joint 3D detection and BEV map segmentation; importing it registers every module.

That takes seconds. A command line that only looks at files sets the environment variable
`BEVFUSION_ENHANCED_LAZY` to 1 before it imports anything from here, and calls `register` where it
needs a model after all.
"""
import os
from importlib import import_module

__version__ = '0.1.0'

_REGISTERED = ('datasets', 'evaluation', 'models', 'visualization', 'engine.registered')


def register() -> None:
    """Adapt MMEngine and mmcv, then register every module; again, it does nothing."""
    from . import compat
    compat.apply()  # before anything that imports mmcv or MMDetection3D
    for part in _REGISTERED:
        import_module(f'.{part}', __name__)


if os.environ.get('BEVFUSION_ENHANCED_LAZY') != '1':
    register()
