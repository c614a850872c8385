"""Looking through tensors that are mapped from a file without keeping what was looked at.

The pages of a mapped file that were read stay with the process until something else needs the
memory, so a look at every value of a checkpoint would count as much as reading it whole. Here they
are given back as soon as they were seen. That needs Linux; elsewhere the system is left to do it.
"""
import ctypes
import mmap
import os
from pathlib import Path
from typing import Iterator, List, Tuple, Union

from torch import Tensor

_CHUNK = 1 << 22  # values looked at together
_MAPS = Path('/proc/self/maps')


class MappedFile:
    """Where a file is mapped into this process: nowhere, where that cannot be told.

    Args:
        path: A file that was read with `read_checkpoint(path, mmap=True)` before this was made.
    """

    def __init__(self, path: Union[str, 'os.PathLike[str]']) -> None:
        self._ranges = _ranges_of(Path(path).expanduser().resolve())

    def release(self, tensor: Tensor) -> None:
        """Give back the pages of a tensor that lies in the file; others are left alone.

        They are read again from the file when needed. The tensor must never have been written to.
        """
        whole = tensor if tensor.is_contiguous() else tensor.untyped_storage()
        start = whole.data_ptr()
        self._release(start, start + whole.nbytes if whole is tensor else start + whole.nbytes())

    def _release(self, start: int, end: int) -> None:
        for low, high in self._ranges:
            if low <= start and end <= high and start < end:
                first = start - start % mmap.PAGESIZE
                _madvise(first, min(end + -end % mmap.PAGESIZE, high) - first)


def scan(*tensors: Tensor, mapped: Tuple[MappedFile, ...] = ()) -> Iterator[Tuple[Tensor, ...]]:
    """Walk through tensors of one shape together, in pieces of about 4 million values.

    Args:
        tensors: All of one shape.
        mapped: The files that they lie in; their pages are given back piece by piece.
    """
    first = tensors[0]
    if first.dim() == 0 or first.numel() <= _CHUNK:
        pieces: Iterator[Tuple[Tensor, ...]] = iter([tensors])
    elif all(tensor.is_contiguous() for tensor in tensors):
        pieces = zip(*(tensor.view(-1).split(_CHUNK) for tensor in tensors), strict=True)
    else:
        rows = max(1, _CHUNK * first.shape[0] // first.numel())
        pieces = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    for piece in pieces:
        yield piece
        for file in mapped:
            for tensor in piece:
                file.release(tensor)


def _ranges_of(path: Path) -> List[Tuple[int, int]]:
    """The parts of this process's address space that are backed by a file."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            low, _, high = fields[0].partition('-')
            ranges.append((int(low, 16), int(high, 16)))
    return ranges


def _madvise(start: int, length: int) -> None:
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
