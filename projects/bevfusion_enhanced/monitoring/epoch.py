"""All meters of an epoch together: filled step by step, measured at the end, kept across a stop."""
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch

from .predictions import add_counts, named
from .statistics import (
    CosineMeter,
    GradientMeter,
    LossMeter,
    Measurements,
    RateMeter,
    RatioMeter,
    measure_cosines,
    measure_losses,
    merge_into,
)
from .step_watch import StepReading


class EpochMeters:
    """What is added up over an epoch.

    Args:
        modules: in the order of a reading's norms.
        ratio_names: in the order of a reading's ratios.
    """

    def __init__(self, *, modules: Sequence[str], ratio_names: Sequence[str]) -> None:
        self.losses, self.cosines = LossMeter(), CosineMeter()
        self.gradients, self.ratios = GradientMeter(modules), RatioMeter(ratio_names)
        self.rates = RateMeter()
        self.counts: Dict[str, Any] = {}  # {task: {what: numbers by class}}

    def add_step(self, step: int, reading: StepReading) -> None:
        """Take an update that took place."""
        self.gradients.add(step, reading.total, reading.by_module, reading.factor)
        if reading.ratios is not None:
            self.ratios.add(reading.ratios)

    def add_logged(self, step: int, logged: Mapping[str, torch.Tensor]) -> None:
        """Take the losses and stats of an iteration."""
        self.losses.add(step, logged)
        self.cosines.add(logged)

    def add_class_counts(self, heads: Mapping[str, Any]) -> None:
        """Take what the heads counted by class; waits for the device."""
        for task, head in heads.items():
            if hasattr(head, 'take_class_counts'):
                taken = {name: c.tolist() for name, c in head.take_class_counts().items()}
                add_counts(self.counts, {task: taken})

    def reset(self) -> None:
        """Forget everything."""
        for meter in (self.losses, self.cosines, self.gradients, self.ratios, self.rates):
            meter.reset()
        self.counts = {}

    def part(self) -> Dict[str, Any]:
        """What differs between processes, for `measure`; gradients and rates are the same."""
        return dict(losses=self.losses.partial(), cosines=self.cosines.values(),
                    counts=self.counts)

    def measure(self, parts: Sequence[Mapping[str, Any]], *, warn_norm: float,
                classes: Mapping[str, Sequence[str]]) -> Measurements:
        """Measurements of the epoch.

        Args:
            parts: `part` of every process; the first and last losses are those of the first.
            warn_norm: norm of the gradient above which a step is counted.
            classes: names of each task's classes.
        """
        losses: Dict[str, List[float]] = {}
        cosines: Dict[str, List[float]] = {}
        counts: Dict[str, Any] = {}
        for part in parts:
            merge_into(losses, part['losses'])
            add_counts(counts, part['counts'])
            for pair, values in part['cosines'].items():
                cosines.setdefault(pair, []).extend(values)
        return {**measure_losses(losses), **self.gradients.measure(warn_norm=warn_norm),
                **measure_cosines(cosines), **self.rates.measure(), **self.ratios.measure(),
                **_measure_counts(counts, classes)}

    def state(self) -> Dict[str, Any]:
        """Plain data and tensors."""
        return dict(losses=self.losses.state(), cosines=self.cosines.values(), counts=self.counts,
                    gradients=self.gradients.state(), ratios=self.ratios.state(),
                    rates=self.rates.rates)

    def load(self, state: Mapping[str, Any], device: torch.device, *, first: bool) -> None:
        """Go on from `state`, that of the first process.

        Args:
            state: see `state`.
            device: where losses and ratios are added up.
            first: whether this is the first process; others begin their own sums at nothing.
        """
        self.gradients.load(state['gradients'])
        self.ratios.load(state['ratios'], device)
        self.rates.rates = {name: list(row) for name, row in state['rates'].items()}
        if first:
            self.losses.load(state['losses'], device)
            self.cosines.load(state['cosines'])
            self.counts = dict(state['counts'])


def _measure_counts(counts: Mapping[str, Any],
                    classes: Mapping[str, Sequence[str]]) -> Measurements:
    return {f'classes.{task}.{label}.{kind}': float(number)
            for task, kinds in counts.items() for kind, numbers in kinds.items()
            for label, number in zip(named(classes.get(task), len(numbers)), numbers)}


def rates_by_label(labels: Sequence[str], groups: Sequence[Mapping[str, Any]],
                   ) -> Dict[str, float]:
    """The highest learning rate among the groups of each label."""
    rates: Dict[str, float] = {}
    for label, group in zip(labels, groups):
        rates[label] = max(rates.get(label, 0.0), float(group['lr']))
    return rates


def default_warn_norm(clipping: Optional[Mapping[str, Any]]) -> float:
    """Twice `max_norm` of an optimizer wrapper's clipping; 100 where it does not clip by norm."""
    return 2.0 * clipping['max_norm'] if clipping and 'max_norm' in clipping else 100.0
