"""What 'the best checkpoint' is measured by: a metric, or a weighted sum of several."""
import re
from typing import Any, Dict, Mapping, NamedTuple, Tuple

from ...errors import ConfigError

SHORT_NAMES: Dict[str, str] = {
    'mAP': 'object/mAP', 'NDS': 'object/NDS', 'mIoU': 'map/mean/iou@max'}
_TERM = re.compile(r'^\s*(?:(?P<weight>[+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*\*\s*)?(?P<name>[^\s*]+)'
                   r'\s*$')


class Term(NamedTuple):
    """A metric's name, in full or short, and its weight in the sum."""

    weight: float
    name: str


def parse(text: str) -> Tuple[Term, ...]:
    """Read 'mIoU', 'object/mAP' or a sum such as '0.5*NDS + 0.5*mIoU'.

    Raises:
        ConfigError: It is neither.
    """
    found = [_TERM.match(part) for part in text.split('+')]
    if not all(found):
        raise ConfigError(f'save_best={text!r} is not a metric or a weighted sum of metrics; write '
                          "mIoU, object/mAP or '0.5*NDS + 0.5*mIoU'")
    return tuple(Term(float(match['weight'] or 1), match['name']) for match in found if match)


def score(text: str, metrics: Mapping[str, Any]) -> float:
    """Value of a metric or weighted sum.

    Args:
        text: See `parse`; the full name of a metric comes before a short one.
        metrics: Results of a validation.

    Raises:
        ConfigError: A metric is not among them.
    """
    if text in metrics:
        return metrics[text]
    total = 0.
    for weight, name in parse(text):
        full_name = name if name in metrics else SHORT_NAMES.get(name, name)
        if full_name not in metrics:
            raise ConfigError(f'save_best={text!r}: the validation reports no {full_name}; it '
                              f'reports {", ".join(sorted(metrics))}')
        total += weight * metrics[full_name]
    return total


def file_part(text: str) -> str:
    """The metric as part of a file's name, on any system."""
    return re.sub(r'[^\w.@+-]', '_', text.replace(' ', ''))
