"""NaN and Inf among weights: counted in one pass, refused where they would be used."""
from collections import Counter
from typing import Dict

import torch

from ..errors import CheckpointError
from .matching import LoadReport, module_of
from .state_dict import StateDict


def refuse_not_finite(weights: StateDict, report: LoadReport) -> None:
    """Refuse weights that hold NaN or Inf where they would be used.

    One pass: tensors are looked at a second time only where a sum is not finite.

    Raises:
        CheckpointError: Names the modules, with the number of such values in each.
    """
    sums = [_sum(weights[record.key]) for record in report.reused]
    if torch.isfinite(torch.tensor([float(value) for value in sums])).all():
        return
    counts: Dict[str, int] = Counter()
    for record in report.reused:
        broken = count_not_finite(weights[record.key])
        if broken:
            counts[module_of(record.key)] += broken
    if not counts:
        return
    named = ', '.join(f'{count:,} in {module}' for module, count in list(counts.items())[:6])
    more = f' and {len(counts) - 6} more modules' if len(counts) > 6 else ''
    files = list(dict.fromkeys(report.module_sources.get(module, '') for module in counts))
    raise CheckpointError(
        f'{" + ".join(filter(None, files)) or "the checkpoint"} holds values that are NaN or Inf '
        f'({named}{more}): the training that wrote it had diverged; use an earlier checkpoint')


def count_not_finite(value: torch.Tensor) -> int:
    """Number of NaN and Inf in a tensor; of any type."""
    if torch.isfinite(_sum(value)):
        return 0
    if value.element_size() == 1:
        value = value.float()
    return value.numel() - int(torch.isfinite(value).sum())  # 0 where only the sum is too large


def _sum(value: torch.Tensor) -> torch.Tensor:
    """A scalar that is finite only if all values are; 0 where they cannot but be."""
    if not (value.is_floating_point() or value.is_complex()):
        return torch.zeros(())
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if value.element_size() == 1:  # 8-bit floats have no sum
        value = value.float()
    half = value.element_size() == 2  # whose sum would overflow
    return value.sum(dtype=torch.float32 if half else None)
