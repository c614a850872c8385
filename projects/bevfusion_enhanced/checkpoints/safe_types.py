"""The types that a checkpoint may hold. Reading a file never calls anything that is not named here.

Names are those that a pickle carries (`module.name`); one object may be known by several, because
NumPy moved its internals and Python 2 named `builtins` differently. Nothing here can reach another
object: `getattr`, which MMEngine's HistoryBuffer pickles through, is replaced by `_statistic`.
"""
import argparse
import datetime
import importlib
import pathlib
import pickle
from typing import Any, Callable, Dict, List, Tuple

import numpy as np

_STATISTICS = ('min', 'max', 'current', 'mean')
_NUMPY_KINDS = '?bhilqBHILQefdgFDGSUVOmM'


def _statistic(owner: type, name: str) -> Callable:
    """What `getattr` may be used for in a checkpoint: HistoryBuffer's four statistics."""
    from mmengine.logging.history_buffer import HistoryBuffer
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(
            f'unsupported GLOBAL getattr({getattr(owner, "__name__", owner)},{name}) whose module '
            'is blocked')
    return getattr(HistoryBuffer, name)


def _numpy_types() -> Dict[str, Any]:
    """Arrays, scalars and dtypes, under their NumPy 1 and NumPy 2 names."""
    try:
        multiarray = importlib.import_module('numpy._core.multiarray')
    except ImportError:
        multiarray = importlib.import_module('numpy.core.multiarray')
    allowed: Dict[str, Any] = {'numpy.ndarray': np.ndarray, 'numpy.dtype': np.dtype}
    for package in ('numpy.core', 'numpy._core'):
        allowed[f'{package}.multiarray._reconstruct'] = multiarray._reconstruct
        allowed[f'{package}.multiarray.scalar'] = multiarray.scalar
    for kind in _NUMPY_KINDS:
        dtype_class = type(np.dtype(kind))
        allowed[f'{dtype_class.__module__}.{dtype_class.__name__}'] = dtype_class
    return allowed


def _plain_types() -> Dict[str, Any]:
    """Containers and values of the standard library that hold data and run nothing."""
    allowed: Dict[str, Any] = {
        'argparse.Namespace': argparse.Namespace,
        'datetime.datetime': datetime.datetime,
        'datetime.date': datetime.date,
        'datetime.timedelta': datetime.timedelta,
    }
    for name in ('PosixPath', 'PurePosixPath'):
        allowed[f'pathlib.{name}'] = pathlib.PurePosixPath
    for name in ('WindowsPath', 'PureWindowsPath'):
        allowed[f'pathlib.{name}'] = pathlib.PureWindowsPath
    for value_type in (set, frozenset, complex, slice, range, bytearray):
        for module in ('builtins', '__builtin__'):
            allowed[f'{module}.{value_type.__name__}'] = value_type
    return allowed


def _mmengine_types() -> Dict[str, Any]:
    """What MMEngine's runner puts into a checkpoint; empty where MMEngine is not installed."""
    try:
        from mmengine.config import ConfigDict
        from mmengine.logging.history_buffer import HistoryBuffer
    except ImportError:
        return {}
    return {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'mmengine.config.config.ConfigDict': ConfigDict,
        'builtins.getattr': _statistic,
        '__builtin__.getattr': _statistic,
    }


def safe_types() -> List[Tuple[Any, str]]:
    """(object, name in the pickle) of everything allowed beside torch's own tensor types."""
    allowed = {**_numpy_types(), **_plain_types(), **_mmengine_types()}
    return [(value, name) for name, value in allowed.items()]
