"""The types that a checkpoint may hold. Reading a file never calls anything that is not named here.

Names are those that a pickle carries (`module.name`); one object may be known by several, because
NumPy moved its internals and Python 2 named `builtins` differently. What could do more than hold
data is stood in for by a record of ours (`numpy_records`): arrays, dtypes, HistoryBuffer, and
`getattr`, through which MMEngine pickles the names of its statistics.
"""
import argparse
import codecs
import datetime
import pathlib
from typing import Any, Callable, Dict, List, Tuple, Union

from . import numpy_records


def default_dict(factory: Union[Callable[[], Any], str, None] = None) -> Dict[Any, Any]:
    """Stands in for `collections.defaultdict`: a plain dictionary, whose factory is dropped."""
    return {}



def _numpy_types() -> Dict[str, Any]:
    """Arrays, scalars and dtypes, under their NumPy 1 and NumPy 2 names."""
    allowed: Dict[str, Any] = {'numpy.ndarray': numpy_records.NDARRAY,
                               'numpy.dtype': numpy_records.DTypeRecord}
    for package in ('numpy.core', 'numpy._core'):
        allowed[f'{package}.multiarray._reconstruct'] = numpy_records.ArrayRecord
        allowed[f'{package}.multiarray.scalar'] = numpy_records.scalar
    return allowed


def _plain_types() -> Dict[str, Any]:
    """Containers and values of the standard library that hold data and run nothing."""
    allowed: Dict[str, Any] = {
        '_codecs.encode': codecs.encode,  # how pickle protocol 2 writes bytes
        'collections.defaultdict': default_dict,
        'torch.torch_version.TorchVersion': str,
        'argparse.Namespace': argparse.Namespace,
        'datetime.datetime': datetime.datetime,
        'datetime.date': datetime.date,
        'datetime.timedelta': datetime.timedelta,
    }
    for name in ('PosixPath', 'PurePosixPath'):
        allowed[f'pathlib.{name}'] = pathlib.PurePosixPath
    for name in ('WindowsPath', 'PureWindowsPath'):
        allowed[f'pathlib.{name}'] = pathlib.PureWindowsPath
    for value_type in (set, frozenset, complex, slice, range, bytes, bytearray):
        for module in ('builtins', '__builtin__'):
            allowed[f'{module}.{value_type.__name__}'] = value_type
    for name in ('list', 'dict', 'tuple', 'int', 'float', 'str', 'bool'):
        for module in ('builtins', '__builtin__'):
            allowed.setdefault(f'{module}.{name}', f'{module}.{name}')  # may be named, not called
    return allowed


def _mmengine_types() -> Dict[str, Any]:
    """What the runners of MMEngine and others put into a checkpoint."""
    allowed: Dict[str, Any] = {
        'mmengine.logging.history_buffer.HistoryBuffer': numpy_records.HistoryRecord,
        'builtins.getattr': numpy_records.statistic,
        '__builtin__.getattr': numpy_records.statistic,
    }
    for name in ('mmengine.config.config.ConfigDict', 'mmcv.utils.config.ConfigDict',
                 'addict.addict.Dict', 'easydict.EasyDict',
                 'pytorch_lightning.utilities.parsing.AttributeDict',
                 'lightning_fabric.utilities.data.AttributeDict',
                 'lightning.fabric.utilities.data.AttributeDict'):
        allowed[name] = dict  # the plain dictionary that it is
    return allowed


def safe_types() -> List[Tuple[Any, str]]:
    """(object, name in the pickle) of everything allowed beside torch's own tensor types."""
    allowed = {**_numpy_types(), **_plain_types(), **_mmengine_types()}
    return [(value, name) for name, value in allowed.items()]
