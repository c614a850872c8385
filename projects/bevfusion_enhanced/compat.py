"""The one place that knows about versions of torch, mmcv and MMEngine.

`torch_load` reads a file against an allow-list on every torch. `apply()` makes two things true,
once, for the whole process:

- `mmcv._ext` can be imported: where mmcv has no compiled operators (mmcv-lite), the finder beside
  this package answers for it. A compiled mmcv is found first and left alone.
- MMEngine reads checkpoints through `checkpoints.read_checkpoint`. Its own `torch.load` cannot read
  what it writes on torch 2.6 and later, and would run whatever a file asks for on earlier ones.
  Runner, `init_cfg=dict(type='Pretrained')` and MMDetection3D's own scripts all go through it.
"""
import os
import pickle
import sys
import threading
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Optional, Tuple, Type

import torch

# torch 2.6 and later take (object, name) pairs into the allow-list of `weights_only`.
TAKES_ALLOW_LIST = hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')
_one_reader = threading.Lock()
_LOCAL_PATHS = ''  # the prefix under which MMEngine registers its reader of files


def apply() -> None:
    """Adapt MMEngine and mmcv to what is installed. Calling it again does nothing."""
    # spconv 2.3 uses torch.cuda.amp's old names and indexes with lists: torch warns at every step.
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings('ignore', category=category, module=r'spconv\.')
    skip_gpu_kernels_of_spconv()
    import bevfusion_enhanced_mmcv_finder
    bevfusion_enhanced_mmcv_finder.install()

    from mmengine.runner import checkpoint
    if checkpoint.CheckpointLoader._schemes.get(_LOCAL_PATHS) is not load_from_local:
        checkpoint.CheckpointLoader.register_scheme(_LOCAL_PATHS, load_from_local, force=True)
        checkpoint.load_from_local = load_from_local
        checkpoint.load_url = load_url


def skip_gpu_kernels_of_spconv() -> None:
    """Without a GPU, spare spconv's import the five seconds of describing its 1,456 CUDA kernels.

    Its CPU path multiplies matrices with torch and never looks a kernel up.
    """
    if torch.cuda.is_available() or 'spconv.algo' in sys.modules:
        return
    import spconv.core
    spconv.core.ALL_IMPGEMM_PARAMS = []
    spconv.core.ALL_NATIVE_PARAMS = []


def load_from_local(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """Stands in for the function of this name in `mmengine.runner.checkpoint`."""
    from .checkpoints.storage import read_checkpoint
    return read_checkpoint(filename, map_location='cpu' if map_location is None else map_location,
                           verify=True)


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


def torch_load(path: Path, allowed: List[Tuple[Any, str]], *, map_location: Any, mmap: bool) -> Any:
    """`torch.load` that rebuilds torch's own tensor types and what is `allowed`, nothing else.

    Args:
        path: The file.
        allowed: (object, name that the pickle knows it by).
        map_location: As for `torch.load`.
        mmap: As for `torch.load`.

    Raises:
        pickle.UnpicklingError: The file asks for something else; that is not looked up.
    """
    if TAKES_ALLOW_LIST:
        # torch keeps one allow-list, and Python one list of filters, for all threads
        with _one_reader, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Detected pickle protocol')  # refused with a reason
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise RuntimeError('TorchScript archives are not read')
    return torch.load(path, map_location=map_location, weights_only=False, mmap=mmap,
                      pickle_module=_restricted_pickle({name: value for value, name in allowed}))


def torch_names() -> Collection[str]:
    """Names of what torch itself allows in a file that is read safely."""
    return torch._weights_only_unpickler._get_allowed_globals().keys()


def _restricted_pickle(allowed: Mapping[str, Any]) -> types.ModuleType:
    """A stand-in for the pickle module, for torch before 2.6, which finds allowed names alone."""
    known = {**torch._weights_only_unpickler._get_allowed_globals(), **allowed}

    class Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
        """Looks names up in a dictionary; never imports, and changes no class or function."""

        dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

        def find_class(self, module: str, name: str) -> Any:
            full_name = f'{module}.{name}'
            if full_name not in known:
                raise pickle.UnpicklingError(f'GLOBAL {full_name} was not an allowed global')
            return known[full_name]

        def load_build(self) -> None:
            if isinstance(self.stack[-2], (type, types.FunctionType, types.ModuleType)):
                raise pickle.UnpicklingError(
                    f'Can only build instances, but got {type(self.stack[-2])}')
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

    return _as_module(Unpickler)


def _as_module(unpickler: Type[pickle.Unpickler]) -> types.ModuleType:
    module = types.ModuleType('restricted_pickle')
    module.Unpickler = unpickler  # type: ignore[attr-defined]
    module.load = lambda file, **options: unpickler(file, **options).load()  # type: ignore
    return module
