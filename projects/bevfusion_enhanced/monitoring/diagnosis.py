"""From measurements to findings: which rules fire, on what, why, and what to try."""
import operator
import re
from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..errors import ConfigError
from .rules import RULES, Cause, Condition, Rule

_OPERATORS = {'>': operator.gt, '<': operator.lt}


@dataclass(frozen=True)
class Explanation:
    """A cause of a finding.

    Attributes:
        cause: in words.
        likely: whether the measurements speak for it.
        refuted: whether they speak against it.
        evidence: the measurements that belong to it.
        change: what to try.
    """

    cause: str
    likely: bool
    refuted: bool
    evidence: Mapping[str, float]
    change: str


@dataclass(frozen=True)
class Finding:
    """A rule that fired.

    Attributes:
        rule: its name.
        item: what it fired on; '' where the rule is about the whole run.
        message: in words, with the value.
        explanations: the likeliest first, those that are refuted last.
        question: what to look at next; '' for none.
    """

    rule: str
    item: str
    message: str
    explanations: Tuple[Explanation, ...]
    question: str


def diagnose(measurements: Mapping[str, float], *, rules: Sequence[Rule] = RULES,
             thresholds: Optional[Mapping[str, float]] = None) -> Tuple[Finding, ...]:
    """Every rule that fires, in the order of the rules.

    Args:
        measurements: of one epoch, by name.
        rules: what to look for.
        thresholds: by a rule's name, in place of the value of its first condition.
    """
    thresholds = thresholds or {}
    found: List[Finding] = []
    for rule in rules:
        first = rule.when[0]
        limit = thresholds.get(rule.name, first.value)
        for item, value in _matches(first.quantity, measurements):
            holds = _OPERATORS[first.op](value, limit) and all(
                _holds(condition, measurements, item) for condition in rule.when[1:])
            if holds:
                found.append(_finding(rule, item, value, limit, measurements))
    return tuple(found)


def together(findings: Sequence[Finding]) -> List[Tuple[Finding, List[str]]]:
    """The first of the findings that one rule has with the same causes, and what else it fired on.

    Twelve classes that are not predicted yet are one thing to read, not twelve.
    """
    alike: Dict[Tuple, List[Finding]] = {}
    for finding in findings:
        causes = tuple((e.cause, e.likely, e.refuted) for e in finding.explanations)
        alike.setdefault((finding.rule, causes), []).append(finding)
    return [(group[0], [finding.item for finding in group[1:]]) for group in alike.values()]


def check_thresholds(thresholds: Mapping[str, float], rules: Sequence[Rule] = RULES) -> None:
    """Every threshold is that of a rule.

    Raises:
        ConfigError: One is not.
    """
    unknown = sorted(set(thresholds) - {rule.name for rule in rules})
    if unknown:
        raise ConfigError(f'monitoring.thresholds names {unknown}, which are no rules; known: '
                          f'{", ".join(rule.name for rule in rules)}')


def _matches(quantity: str, measurements: Mapping[str, float]) -> Iterator[Tuple[str, float]]:
    """(what `*` stands for, value) of every measurement that a quantity names."""
    if '*' not in quantity:
        if quantity in measurements:
            yield '', measurements[quantity]
        return
    pattern = re.compile(re.escape(quantity).replace(r'\*', '(.+)') + '$')
    for name, value in measurements.items():
        found = pattern.match(name)
        if found:
            yield found.group(1), value


def _holds(condition: Condition, measurements: Mapping[str, float], item: str) -> bool:
    value = measurements.get(condition.quantity.replace('{item}', item))
    return value is not None and _OPERATORS[condition.op](value, condition.value)


def _finding(rule: Rule, item: str, value: float, limit: float,
             measurements: Mapping[str, float]) -> Finding:
    explained = [_explain(cause, item, measurements) for cause in rule.causes]
    return Finding(rule=rule.name, item=item,
                   message=rule.message.format(item=item, value=value, limit=limit),
                   explanations=tuple(sorted(explained, key=lambda e: e.refuted - e.likely)),
                   question=rule.question.format(item=item))


def _explain(cause: Cause, item: str, measurements: Mapping[str, float]) -> Explanation:
    names = [name.replace('{item}', item) for name in cause.evidence]
    evidence: Dict[str, float] = {name: measurements[name] for name in names
                                  if name in measurements}
    measured = [condition for condition in cause.likely
                if condition.quantity.replace('{item}', item) in measurements]
    holding = [condition for condition in measured if _holds(condition, measurements, item)]
    change = cause.change.replace('{item}', item).replace('{class}', item.rpartition('.')[2])
    return Explanation(
        cause=cause.text, likely=bool(cause.likely) and len(holding) == len(cause.likely),
        refuted=len(holding) < len(measured), evidence=evidence, change=change)
