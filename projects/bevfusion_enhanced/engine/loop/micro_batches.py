"""One update from a batch that is too large for one forward pass, as if it had been one.

A batch is cut into parts of equal size whose gradients add up. Losses that are means over samples
need nothing more. A loss that is divided by a number of annotated objects is, in each part, divided
by that number's mean over the parts (`TaskHead.counts`): the sum is that of the whole batch. Norms
that look at their batch see the parts.
"""
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Sequence

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.heads.base import TaskHead


def train_in_parts(model: nn.Module, batch: Mapping[str, Any], optim_wrapper: OptimWrapper, *,
                   part_size: int) -> Dict[str, Tensor]:
    """`model.train_step` of a batch, at most `part_size` samples at a time, with one update.

    Args:
        model: Of MMEngine, perhaps in a wrapper for several processes.
        batch: Lists, tuples and tensors over the samples, in nested mappings.
        optim_wrapper: Of any kind.
        part_size: Samples of one forward pass at most.

    Returns:
        What `train_step` returns: the mean over the parts of each logged value.
    """
    parts = split_batch(batch, part_size=part_size)
    with _updating_after(optim_wrapper, len(parts)), _counting_over(model, parts):
        logs = [model.train_step(part, optim_wrapper=optim_wrapper) for part in parts]
    return {name: torch.stack([torch.as_tensor(log[name]) for log in logs]).mean()
            for name in logs[0]}


def split_batch(batch: Mapping[str, Any], *, part_size: int) -> List[Dict[str, Any]]:
    """Cut a collated batch into parts of equal size, in order: as few as the size allows.

    Raises:
        ConfigError: Its entries are not all over the same samples.
    """
    sizes = set(_sizes(batch))
    if len(sizes) != 1:
        raise ConfigError(f'accumulate: the collated batch has entries of {sorted(sizes)} samples, '
                          'so it cannot be cut; use collate_fn=pseudo_collate')
    size = sizes.pop()
    count = next(n for n in range(-(-size // part_size), size + 1) if size % n == 0)
    length = size // count
    return [_cut(batch, slice(start, start + length)) for start in range(0, size, length)]


def _sizes(node: Any) -> Iterator[int]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _sizes(value)
    elif isinstance(node, (list, tuple, Tensor)):
        yield len(node)


def _cut(node: Any, part: slice) -> Any:
    if isinstance(node, Mapping):
        return {key: _cut(value, part) for key, value in node.items()}
    return node[part] if isinstance(node, (list, tuple, Tensor)) else node


@contextmanager
def _updating_after(optim_wrapper: OptimWrapper, parts: int) -> Iterator[None]:
    """Let MMEngine's wrapper, which counts forward passes over the run, count those of a batch."""
    names = ('_accumulative_counts', '_inner_count', '_max_counts')
    before = {name: getattr(optim_wrapper, name) for name in names}
    for name, value in zip(names, (parts, 0, -1), strict=True):
        setattr(optim_wrapper, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(optim_wrapper, name, value)


@contextmanager
def _counting_over(model: nn.Module, parts: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Let every head divide by its counts over all parts."""
    inner = model.module if is_model_wrapper(model) else model
    heads = [module for module in inner.modules() if isinstance(module, TaskHead)]
    samples = [sample for part in parts for sample in part.get('data_samples', ())]
    for head in heads:
        head.parts = len(parts)
        head.mean_counts = {name: count / len(parts)
                            for name, count in head.counts(samples).items()}
    try:
        yield
    finally:
        for head in heads:
            head.parts, head.mean_counts = 1, {}
