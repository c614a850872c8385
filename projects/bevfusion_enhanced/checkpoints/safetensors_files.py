"""Weights as `.safetensors`: tensors and text, nothing that could be executed.

The file: eight bytes with the length of the header (little endian), the header as JSON, the bytes
of the tensors. Of a checkpoint it holds the weights and the metadata, the latter as JSON in the
header's text entry `META`.
"""
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np
import torch
from safetensors import safe_open

from ..errors import CheckpointError
from .durable import FileBeside

SUFFIX = '.safetensors'
META = 'checkpoint_meta'
_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000
_DTYPES = {
    torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16',
    torch.int64: 'I64', torch.int32: 'I32', torch.int16: 'I16', torch.int8: 'I8',
    torch.uint8: 'U8', torch.bool: 'BOOL',
}


def is_safetensors(head: bytes) -> bool:
    """Whether a file that starts with `head` is one of these, whole or not."""
    length = int.from_bytes(head[:_LENGTH_BYTES], 'little')
    return head[_LENGTH_BYTES:_LENGTH_BYTES + 1] == b'{' and 2 <= length <= _MAX_HEADER


def read(path: Path, *, map_location: Any, mmap: bool) -> Dict[str, Any]:
    """`{'state_dict': ..., 'meta': ...}` of a file; raises what the safetensors package raises.

    Args:
        path: The file.
        map_location: A device, as a string or `torch.device`; a function, which torch would call
            with each of its storages, means the CPU.
        mmap: Leave the tensors in the file, mapped; a write to one stays in memory.
    """
    with safe_open(path, framework='pt', device='cpu') as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}
        text = dict(file.metadata() or {})
    if not callable(map_location) and str(map_location) != 'cpu':
        weights = {name: tensor.to(map_location) for name, tensor in weights.items()}
    elif not mmap:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    text.pop('format', None)
    meta = json.loads(text.pop(META, '{}'))
    return {'state_dict': weights, 'meta': {**text, **meta}}


def write(checkpoint: Mapping[str, Any], file: FileBeside, *, target: Path) -> None:
    """Write weights and metadata of a checkpoint.

    Raises:
        CheckpointError: It holds more than that, or something that the format has no place for.
    """
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    extra = sorted(set(checkpoint) - {'state_dict', 'meta'})
    if extra:
        raise CheckpointError(f'{target} cannot hold {", ".join(extra)}: a .safetensors file has '
                              'room for weights and metadata alone; write a .pth file')
    tensors = _in_order(checkpoint['state_dict'], target)
    header: Dict[str, Any] = {'__metadata__': {
        'format': 'pt', META: json.dumps(checkpoint.get('meta') or {}, default=_as_json)}}
    start = 0
    for name, tensor in tensors:
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {'dtype': _DTYPES[tensor.dtype], 'shape': list(tensor.shape),
                        'data_offsets': [start, end]}
        start = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % _LENGTH_BYTES)
    file.write(len(text).to_bytes(_LENGTH_BYTES, 'little') + text)
    for _, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            file.write(flat.view(torch.uint8).numpy())


def check_structure(path: Path) -> None:
    """Compare the sizes that the header promises with the file's.

    Raises:
        CheckpointError: The file is damaged or cut short.
    """
    size = os.path.getsize(path)
    try:
        with open(path, 'rb') as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), 'little')
            header = json.loads(file.read(min(length, size)))
        header.pop('__metadata__', None)
        spans = sorted((*entry['data_offsets'], math.prod(entry['shape']))
                       for entry in header.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'checkpoint {path} is damaged or cut short (its header cannot be '
                              'read); copy or download it again') from error
    end = 0
    for first, last, count in spans:
        if first != end or last < first or (last - first) % max(count, 1):
            raise CheckpointError(f'checkpoint {path} is damaged (its header contradicts itself); '
                                  'copy or download it again')
        end = last
    if _LENGTH_BYTES + length + end != size:
        raise CheckpointError(
            f'checkpoint {path} is damaged or cut short ({size:,} bytes, its header speaks of '
            f'{_LENGTH_BYTES + length + end:,}); copy or download it again')


def _in_order(weights: Mapping[str, Any], target: Path) -> List[Tuple[str, torch.Tensor]]:
    """Wide types first, so that every tensor starts at a multiple of its element's size."""
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise CheckpointError(f'{target} cannot hold {name} ({kind}): a .safetensors file has '
                                  'room for plain tensors alone; write a .pth file')
    return sorted(weights.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _as_json(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
