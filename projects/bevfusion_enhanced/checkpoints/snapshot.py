"""A copy of a checkpoint in memory, which training can go on beside."""
import copy
import threading
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any, Container, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch

from ..errors import CheckpointError

_SAME = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)


class ChangedMeanwhileError(CheckpointError):
    """Tensors that were said not to change did, before they were copied."""


class _Later(NamedTuple):
    """A tensor that is still to be copied, and how often it had been written to by then."""

    source: torch.Tensor
    target: torch.Tensor
    version: int


class Snapshot:
    """Copies checkpoints into memory of its own, the same for every one.

    Memory that is new to the process is some ten times slower to fill than memory that it has.
    Hence the copies of tensors live until the next `begin`, and the memory as long as the
    snapshot. What nobody writes to for a while can be copied by another thread: `complete`. Whoever
    has to wait for that takes part in it instead: `help`.
    """

    def __init__(self) -> None:
        self._pool: Dict[int, List[torch.UntypedStorage]] = {}
        self._used: Dict[int, int] = {}
        self._own: Dict[int, Any] = {}
        self._copies: Dict[Tuple[Any, ...], Tuple[torch.Tensor, torch.Tensor]] = {}
        self._unchanging: Container[int] = ()
        self._later: List[_Later] = []
        self._taken = self._done = 0  # of those
        self._problem: Optional[BaseException] = None
        self._progress = threading.Condition()
        self._streams: Dict[torch.device, torch.cuda.Stream] = {}

    def begin(self, *, own: Iterable[Any] = ()) -> None:
        """Start anew; the copies before become invalid.

        Args:
            own: Objects that are copies already and need no further one.
        """
        self._used, self._own = {}, {id(item): item for item in own}
        self._later, self._streams = [], {}
        self._taken, self._done, self._problem = 0, 0, None

    def copy(self, checkpoint: Dict[str, Any], *, unchanging: Container[int] = (),
             ) -> Dict[str, Any]:
        """A copy on the CPU of everything in `checkpoint`, but for what is a copy of ours.

        Args:
            checkpoint: Nested dictionaries, lists and tuples.
            unchanging: Addresses (`data_ptr`) of tensors that nobody writes to before `complete`
                has returned; their copies hold nothing until then.
        """
        self._unchanging = unchanging
        try:
            return self._copy(checkpoint)
        finally:
            self._copies = {}  # addresses identify tensors no longer than those live

    def complete(self) -> None:
        """Copy what was left for later; another thread may call it.

        Raises:
            ChangedMeanwhileError: One of those tensors was written to after all. Not everything
                that writes can be noticed: `tensor.data` counts its changes apart.
        """
        self.help()
        if self._problem is not None:
            raise self._problem

    def help(self) -> None:
        """Return once nothing is left to copy, and copy what no other thread has begun with.

        A thread of low rank may be long in coming to it, or not come at all. What goes wrong is the
        error of `complete`.
        """
        while True:
            with self._progress:
                if self._taken == len(self._later):
                    break
                item = self._later[self._taken]
                self._taken += 1
            try:
                self._copy_now(item)
            except Exception as error:
                self._problem = error
            except BaseException as error:  # a signal ends this thread, and not the others
                self._problem = error
                raise
            finally:
                self._count_one_more()
        with self._progress:
            self._progress.wait_for(lambda: self._done == len(self._later))

    def _copy_now(self, item: _Later) -> None:
        stream = self._streams.get(item.source.device)
        with torch.cuda.stream(stream) if stream else nullcontext():
            _copy_on_one_thread(item.source, item.target)

    def _count_one_more(self) -> None:
        """After the last one, and before anybody may write again: did anybody write too early?"""
        with self._progress:
            self._done += 1
            if self._done < len(self._later):
                return
            if self._problem is None and any(item.source._version != item.version
                                             for item in self._later):
                self._problem = ChangedMeanwhileError(
                    'weights or optimizer state were changed outside the optimizer while they were '
                    'being copied')
            self._later, self._taken, self._done = [], 0, 0
            self._progress.notify_all()

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
        target = torch.empty(0, dtype=tensor.dtype).set_(pool[index]).view(tensor.shape)
        if tensor.data_ptr() in self._unchanging:
            self._leave_for_later(tensor.detach(), target)
            return target
        return target.copy_(tensor.detach())

    def _leave_for_later(self, source: torch.Tensor, target: torch.Tensor) -> None:
        device = source.device
        if device.type == 'cuda' and device not in self._streams:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))  # for the step that is computed
            self._streams[device] = stream
        self._later.append(_Later(source, target, source._version))


def _copy_on_one_thread(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy into a contiguous tensor; on the CPU without torch's threads, which training is using.

    PyTorch would start as many again for this thread, and each would wait in a loop for work.
    """
    if source.device.type == 'cpu' and source.is_contiguous():
        flat = target.view(-1).view(torch.uint8).numpy()
        np.copyto(flat, source.view(-1).view(torch.uint8).numpy())
    else:
        target.copy_(source)


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
