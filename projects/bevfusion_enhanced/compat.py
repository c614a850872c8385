"""The one place that knows about versions of torch, mmcv and MMEngine.

`apply()` makes two things true, once, for the whole process:

- `mmcv._ext` can be imported: where mmcv has no compiled operators (mmcv-lite), the finder beside
  this package answers for it. A compiled mmcv is found first and left alone.
- MMEngine reads checkpoints through `checkpoints.read_checkpoint`. Its own `torch.load` cannot read
  what it writes on torch 2.6 and later, and would run whatever a file asks for on earlier ones.
  Runner, `init_cfg=dict(type='Pretrained')` and MMDetection3D's own scripts all go through it.
"""
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, Optional

from .checkpoints.storage import read_checkpoint

_LOCAL_PATHS = ''  # the prefix under which MMEngine registers its reader of files


def apply() -> None:
    """Adapt MMEngine and mmcv to what is installed. Calling it again does nothing."""
    # spconv 2.3 still uses torch.cuda.amp's old names, which torch warns of at every start.
    warnings.filterwarnings('ignore', category=FutureWarning, module=r'spconv\.')
    import bevfusion_enhanced_mmcv_finder
    bevfusion_enhanced_mmcv_finder.install()

    from mmengine.runner import checkpoint
    if checkpoint.CheckpointLoader._schemes.get(_LOCAL_PATHS) is not load_from_local:
        checkpoint.CheckpointLoader.register_scheme(_LOCAL_PATHS, load_from_local, force=True)
        checkpoint.load_from_local = load_from_local
        checkpoint.load_url = load_url


def load_from_local(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """Stands in for the function of this name in `mmengine.runner.checkpoint`."""
    return read_checkpoint(filename, map_location='cpu' if map_location is None else map_location)


def load_url(url: str, model_dir: Optional[str] = None, map_location: Any = None,
             progress: bool = True) -> Dict[str, Any]:
    """Stands in for the function of this name in `mmengine.runner.checkpoint`.

    Args:
        url: Where the file is downloaded from, unless it was before.
        model_dir: The folder that keeps it; torch hub's own when left out.
        map_location: As for `torch.load`.
        progress: Show a progress bar on a terminal.
    """
    from torch import hub
    folder = Path(model_dir) if model_dir else Path(hub.get_dir()) / 'checkpoints'
    path = folder / os.path.basename(url.split('?', 1)[0])
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        digest = hub.HASH_REGEX.search(path.name)
        hub.download_url_to_file(url, str(path), digest.group(1) if digest else None,
                                 progress=progress and sys.stderr.isatty())
    return load_from_local(str(path), map_location)
