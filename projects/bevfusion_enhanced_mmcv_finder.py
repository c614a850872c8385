"""Answers `import mmcv._ext` where mmcv has no compiled operators (mmcv-lite).

MMDetection3D imports mmcv's operators by name long before any config, and so before any
`custom_imports`, is read. A one-line `.pth` file in site-packages imports this module when the
interpreter starts: it costs microseconds, imports nothing heavy, and is appended to the finders
last, so a compiled `mmcv._ext` is always found first.
"""
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Optional, Sequence

_SUBSTITUTE = Path(__file__).with_name('bevfusion_enhanced') / 'ops' / 'mmcv_ext.py'


class MmcvExtFinder:
    """Finds the PyTorch substitute for `mmcv._ext`, and nothing else."""

    @classmethod
    def find_spec(cls, fullname: str, path: Optional[Sequence[str]] = None,
                  target: Optional[object] = None) -> Optional[ModuleSpec]:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        if fullname != 'mmcv._ext':
            return None
        return spec_from_file_location(fullname, _SUBSTITUTE)


def install() -> None:
    """Append the finder once; further calls do nothing."""
    if MmcvExtFinder not in sys.meta_path:
        sys.meta_path.append(MmcvExtFinder)


install()
