"""NaN and Inf among weights: counted in one pass, refused where they would be used."""
from collections import Counter
from typing import Dict

import torch

from ..errors import CheckpointError
from .matching import LoadReport, module_of
from .state_dict import StateDict


def refuse_not_finite(weights: StateDict, report: LoadReport) -> None:
    """Refuse weights that hold NaN or Inf where they would be used.

    One pass: a tensor is looked at twice only where its sum is not finite.

    Raises:
        CheckpointError: Names the modules, with the number of such values in each.
    """
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
    if not (value.is_floating_point() or value.is_complex()):
        return 0
    if value.element_size() == 1:  # 8-bit floats have no sum
        value = value.float()
    half = value.element_size() == 2  # whose sum would overflow
    if torch.isfinite(value.sum(dtype=torch.float32 if half else None)):
        return 0
    return value.numel() - int(torch.isfinite(value).sum())  # 0 where only the sum is too large
