"""A copy of a checkpoint in memory, which training can go on beside."""
import copy
from collections import OrderedDict
from typing import Any, Dict, Iterable, Iterator, List, Tuple

import torch

_SAME = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)


class Snapshot:
    """Copies checkpoints into memory of its own, the same for every one.

    Memory that is new to the process is some ten times slower to fill than memory that it has,
    and a training step waits for the copy. Hence the copies of tensors live until the next
    `begin`, and the memory as long as the snapshot.
    """

    def __init__(self) -> None:
        self._pool: Dict[int, List[torch.UntypedStorage]] = {}
        self._used: Dict[int, int] = {}
        self._own: Dict[int, Any] = {}
        self._copies: Dict[Tuple[Any, ...], Tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, *, own: Iterable[Any] = ()) -> None:
        """Start anew; the copies before become invalid.

        Args:
            own: Objects that are copies already and need no further one.
        """
        self._used, self._own = {}, {id(item): item for item in own}

    def copy(self, checkpoint: Dict[str, Any]) -> Dict[str, Any]:
        """A copy on the CPU of everything in `checkpoint`, but for what is a copy of ours."""
        try:
            return self._copy(checkpoint)
        finally:
            self._copies = {}  # addresses identify tensors no longer than those live

    def reserve(self, sizes: Iterable[int]) -> None:
        """Get memory for tensors of these sizes (bytes) ahead of the first `take`."""
        wanted: Dict[int, int] = {}
        for size in sizes:
            wanted[size] = wanted.get(size, 0) + 1
        for size, count in wanted.items():
            pool = self._pool.setdefault(size, [])
            while len(pool) < count:
                storage = torch.UntypedStorage(size)
                storage.fill_(0)  # the system hands memory out when it is touched
                pool.append(storage)

    def _copy(self, node: Any) -> Any:
        if isinstance(node, _SAME) or id(node) in self._own:
            return node
        if isinstance(node, torch.Tensor):
            return self._keep(self._copy_tensor(node))
        if type(node) in (dict, OrderedDict):
            result = type(node)((key, self._copy(value)) for key, value in node.items())
            if type(node) is OrderedDict:
                vars(result).update(copy.deepcopy(vars(node)))  # a state dict's _metadata
            return result
        if type(node) in (list, tuple):
            return type(node)(self._copy(value) for value in node)
        return self._keep(copy.deepcopy(node))

    def _keep(self, item: Any) -> Any:
        """Note a copy as ours, which also keeps its id from being used again."""
        self._own[id(item)] = item
        return item

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.numel() == 0:
            return tensor.detach().cpu().clone()
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if key not in self._copies:  # tied weights stay one tensor in the file
            self._copies[key] = tensor, self._fill(tensor)
        return self._copies[key][1]

    def _fill(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        pool, index = self._pool.setdefault(size, []), self._used.get(size, 0)
        if index == len(pool):
            pool.append(torch.UntypedStorage(size))
        self._used[size] = index + 1
        flat = torch.empty(0, dtype=tensor.dtype).set_(pool[index])
        return flat.view(tensor.shape).copy_(tensor.detach())


def tensor_sizes(node: Any) -> Iterator[int]:
    """Bytes of each tensor in a nest of dictionaries and lists."""
    if isinstance(node, torch.Tensor):
        yield node.numel() * node.element_size()
    elif isinstance(node, dict):
        for value in node.values():
            yield from tensor_sizes(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from tensor_sizes(value)
