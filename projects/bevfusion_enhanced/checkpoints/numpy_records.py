"""NumPy's and MMEngine's values out of a pickle, rebuilt by us from checked parts.

NumPy restores an array or a dtype from whatever state a pickle holds, without checking it: a
damaged file can crash the interpreter, a crafted one can do worse. Here a pickle only fills
records; `resolve` makes the values once their parts have been checked, by ordinary constructors.
"""
import math
import pickle
import re
from typing import Any, Dict, Sequence, Tuple

import numpy as np

NDARRAY = 'numpy.ndarray'  # stands for the class, which a pickle names but may not call
_PLAIN_DTYPE = re.compile(r'^(?:[?]|b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32)|[SU]\d{1,6}|O8?)$')


def _refuse(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f'unsupported NumPy value: {what}')


class DTypeRecord:
    """What a pickle says about a dtype: a plain one of numbers, text or objects."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        code = code.decode('ascii', 'replace') if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _PLAIN_DTYPE.match(code):
            raise _refuse(f'dtype {code!r}')
        self.value = np.dtype(code)

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        """Take the byte order; anything structured is refused."""
        if not isinstance(state, tuple) or len(state) < 8 or state[2:5] != (None, None, None):
            raise _refuse('structured dtype')
        order = state[1].decode('ascii', 'replace') if isinstance(state[1], bytes) else state[1]
        if order not in ('<', '>', '|', '='):
            raise _refuse(f'byte order {order!r}')
        self.value = self.value.newbyteorder(order)

    def resolve(self) -> np.dtype:
        """The dtype."""
        return self.value


class ArrayRecord:
    """What a pickle says about an array: shape, dtype, order and data, which have to agree."""

    def __init__(self, subtype: Any, shape: Any = (0,), typecode: Any = b'b') -> None:
        if subtype is not NDARRAY:
            raise _refuse('a subclass of ndarray')
        self.value = np.zeros(0, dtype=np.int8)

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        """Build the array, once its parts agree."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise _refuse('array state')
        _, shape, dtype, fortran, data = state
        count = _count(shape)
        order = 'F' if fortran else 'C'
        if not isinstance(dtype, DTypeRecord):
            raise _refuse('an array without a dtype')
        if dtype.value.hasobject:
            if not isinstance(data, list) or len(data) != count:
                raise _refuse('array of objects of another length')
            value = np.empty(count, dtype=object)
            for index, item in enumerate(data):
                value[index] = item
        else:
            value = _from_bytes(data, dtype.value, count)
        self.value = value.reshape(shape, order=order)

    def resolve(self) -> np.ndarray:
        """The array; one of objects still holds records."""
        return self.value


def scalar(dtype: Any, data: Any = b'') -> np.generic:
    """A NumPy scalar from its dtype and bytes."""
    if not isinstance(dtype, DTypeRecord) or dtype.value.hasobject:
        raise _refuse('scalar of objects')
    return _from_bytes(data, dtype.value, 1)[0]


class HistoryRecord:
    """What a pickle says about MMEngine's HistoryBuffer. Its methods are the class's own."""

    def __init__(self) -> None:
        self.state: Dict[str, Any] = {}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Keep the state until it is resolved."""
        if not isinstance(state, dict):
            raise pickle.UnpicklingError('unsupported state of a HistoryBuffer')
        self.state = state

    def resolve(self) -> Any:
        """The HistoryBuffer."""
        from mmengine.logging.history_buffer import HistoryBuffer
        log, counts = (resolve(self.state.get(name, ())) for name in (
            '_log_history', '_count_history'))
        buffer = HistoryBuffer(max_length=int(self.state.get('max_length', 1000000)))
        buffer._log_history, buffer._count_history = np.asarray(log), np.asarray(counts)
        return buffer


def statistic(owner: Any, name: Any) -> str:
    """What `getattr` may be used for: naming a statistic of HistoryBuffer, then ignored."""
    if owner is not HistoryRecord or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(
            f'unsupported GLOBAL getattr({getattr(owner, "__name__", owner)},{name}) whose module '
            'is blocked')
    return str(name)


RECORDS = (DTypeRecord, ArrayRecord, HistoryRecord)


def resolve(node: Any) -> Any:
    """`node` with every record in it replaced by its value; dictionaries and lists in place."""
    return _resolve(node, {})


def _resolve(node: Any, done: Dict[int, Any]) -> Any:
    if id(node) in done:
        return done[id(node)][1]
    if isinstance(node, RECORDS):
        value = node.resolve()
        done[id(node)] = node, value  # keeps the record alive, so that its id stays its own
        return _resolve(value, done)
    if isinstance(node, (dict, list)):
        done[id(node)] = node, node
        for key, item in list(node.items() if isinstance(node, dict) else enumerate(node)):
            node[key] = _resolve(item, done)
    elif isinstance(node, tuple) and type(node) is tuple:
        return tuple(_resolve(item, done) for item in node)
    elif isinstance(node, np.ndarray) and node.dtype.hasobject:
        done[id(node)] = node, node
        for index, item in enumerate(node.flat):
            node.flat[index] = _resolve(item, done)
    return node


def _count(shape: Sequence[int]) -> int:
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(
            isinstance(size, int) and 0 <= size < 2**40 for size in shape):
        raise _refuse(f'shape {shape!r}')
    return math.prod(shape)


def _from_bytes(data: Any, dtype: np.dtype, count: int) -> np.ndarray:
    """(count,) values out of exactly as many bytes as they need."""
    data = data.encode('latin1') if isinstance(data, str) else data
    if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
        raise _refuse(f'{dtype} data of another length')
    return np.frombuffer(data, dtype=dtype, count=count).copy() if data else np.zeros(count, dtype)
