"""A GPU that is not there: tensors that say `cuda:0`, computed on the CPU.

What mixes them with tensors of the CPU is refused as a GPU refuses it, and code that asks a tensor
for its device takes the way of a GPU. Kernels of a GPU's own (Triton's, spconv's) cannot run. To
PyTorch's C++ these are tensors on its device `meta`, which has no values and needs no driver.
"""
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device('cuda:0')
COPIES = {aten._to_copy, aten.copy_}
INDEXING = {aten.index, aten.index_put_, aten._index_put_impl_}  # a GPU's by indices of either
IN_PLACE = {aten.copy_, aten.index_put_, aten._index_put_impl_}


class OnGPU(Tensor):
    """A tensor whose values are in `inner`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> 'OnGPU':
        with _disable_current_modes():
            made = dict(dtype=inner.dtype, device='meta')
            shell = (torch.empty_strided(inner.size(), inner.stride(), **made)
                     if inner.layout == torch.strided else torch.empty(inner.size(), **made))
            return Tensor._make_subclass(cls, shell, inner.requires_grad)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner.detach()

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_with_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_with_tensors(index), value)

    def new_tensor(self, data: Any) -> Tensor:
        return OnGPU(self.inner.new_tensor(data))

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __repr__(self) -> str:
        return f'OnGPU({self.inner!r})'

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (),
                           kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _with_tensors(index: Any) -> Any:
    """Lists in an index as tensors; PyTorch would make them where there are no values."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


class _Factories(TorchDispatchMode):
    """Lets `device='cuda'` make such tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (),
                           kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    """Call an operator on what the tensors hold, and put the results where a GPU has them."""
    _refuse_mixed(func, args, kwargs)
    wrapped = {id(x.inner): x for x in tree_leaves((args, kwargs)) if isinstance(x, OnGPU)}
    goes = _is_on_gpu_after(func, args, kwargs, any_on_gpu=bool(wrapped))
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, OnGPU) else x, (args, kwargs))
    if goes and kwargs.get('device') is not None:
        kwargs['device'] = torch.device('cpu')
    result = func(*args, **kwargs)
    if not goes:
        return result

    def there(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return wrapped[id(x)] if id(x) in wrapped else OnGPU(x)

    return tree_map(there, result)


def _refuse_mixed(func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
    packet = func.overloadpacket
    if packet in INDEXING and isinstance(args[0], OnGPU):
        args = (args[0], *args[2:])
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    plain = [x for x in given if not isinstance(x, OnGPU) and x.dim() > 0]
    assert not any(x.is_meta for x in plain), f'{func}: made behind the pretence, without values'
    if plain and any(isinstance(x, OnGPU) for x in given) and packet not in COPIES:
        raise RuntimeError(f'{func}: expected all tensors to be on the same device, found '
                           f'{[tuple(x.shape) for x in plain]} on the CPU')


def _is_on_gpu_after(func: Any, args: Sequence[Any], kwargs: Dict[str, Any], *,
                     any_on_gpu: bool) -> bool:
    """Whether an operator's results are there."""
    if func.overloadpacket in IN_PLACE:
        return isinstance(args[0], OnGPU)
    device = kwargs.get('device')
    return any_on_gpu if device is None else torch.device(device).type in ('cuda', 'meta')


def to_gpu(x: Any) -> Any:
    """Tensors, and lists and dictionaries of them, on the pretended GPU."""
    return tree_map(lambda t: OnGPU(t) if isinstance(t, Tensor) else t, x)


def module_to_gpu(module: nn.Module) -> None:
    """Move all parameters and buffers."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(OnGPU(value.data),
                                                      requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = OnGPU(value)


def _by_data(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A factory that takes data, for both devices."""
    def made(data: Any, *, dtype: Optional[torch.dtype] = None, device: Any = None) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(dtype=dtype, device=device)
        result = make(data, dtype=dtype)
        return result if device is None else result.to(device)
    return made


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it, `device='cuda'` works."""
    monkeypatch.setattr(torch.cuda, '_lazy_init', lambda: None)
    for name in ('tensor', 'as_tensor'):  # their C++ asks for a driver
        monkeypatch.setattr(torch, name, _by_data(getattr(torch, name)))
    with _Factories():
        yield
