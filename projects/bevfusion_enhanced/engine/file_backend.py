"""A file backend of MMEngine that writes whole files or none."""
from pathlib import Path
from typing import Union

from mmengine.fileio import LocalBackend, register_backend

from ..checkpoints.storage import write_bytes

NAME = 'bevfusion_enhanced_atomic'


class AtomicLocalBackend(LocalBackend):
    """The local disk; `put` writes beside the target, flushes to disk, then renames."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write `obj` to `filepath`; a kill at any moment leaves the old file or the new one."""
        write_bytes(obj, filepath)


register_backend(NAME, AtomicLocalBackend, force=True)
