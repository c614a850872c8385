"""Hints at what a checkpoint may hold under another name; they are never applied."""
from collections import defaultdict
from difflib import SequenceMatcher
from typing import Dict, List, NamedTuple, Sequence, Tuple

Shape = Tuple[int, ...]


class Suggestion(NamedTuple):
    """`missing`, a tensor of the model, is most alike to `unexpected`, one of the checkpoint."""

    missing: str
    unexpected: str


def suggest(missing: Sequence[Tuple[str, Shape]],
            unexpected: Sequence[Tuple[str, Shape]]) -> Tuple[Suggestion, ...]:
    """For each missing tensor the unexpected one of equal shape whose name is most alike.

    Args:
        missing: (name, shape) of what the model alone has.
        unexpected: (name, shape) of what the checkpoint alone has.

    Returns:
        In the order of `missing`; none for a shape that no unexpected tensor has. Several missing
        tensors may be given the same one.
    """
    by_shape: Dict[Shape, List[str]] = defaultdict(list)
    for name, shape in unexpected:
        by_shape[tuple(shape)].append(name)
    return tuple(Suggestion(name, _closest(name, by_shape[tuple(shape)]))
                 for name, shape in missing if by_shape.get(tuple(shape)))


def _closest(name: str, candidates: Sequence[str]) -> str:
    """The most alike name; names are compared from cheap to dear, as most can be passed over."""
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name)
    best, best_ratio = candidates[0], -1.0
    for candidate in candidates:
        matcher.set_seq1(candidate)
        if matcher.real_quick_ratio() > best_ratio and matcher.quick_ratio() > best_ratio:
            ratio = matcher.ratio()
            if ratio > best_ratio:
                best, best_ratio = candidate, ratio
    return best
