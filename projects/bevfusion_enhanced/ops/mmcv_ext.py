"""What `mmcv._ext` offers when mmcv was installed without compiled operators.

Loaded under the name `mmcv._ext` by `bevfusion_enhanced_mmcv_finder`. Every name that is not
defined here answers with a function that says which operator was called and what to install.
"""
from typing import Callable


def __getattr__(name: str) -> Callable:
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f'mmcv operator {name!r} was called, but mmcv-lite has no compiled operators; '
            'install the compiled mmcv 2.1.0 in place of mmcv-lite to use it')

    return missing
