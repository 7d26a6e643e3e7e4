"""The fastest of the engine's settings that keeps within a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sordino.client.bench.workload import Variant
from sordino.sim.bench.catalogue import PRIVATE, Target
from sordino.sim.bench.ratios import Ratio, Times, paired_ratio


@dataclass(frozen=True)
class Budget:
    """A bound on torch's peak, and the most that keeping it may cost in time."""

    torch_peak_mb: float
    limit: float


BUDGETS = (Budget(320.0, 1.05), Budget(180.0, 1.35))


@dataclass(frozen=True, kw_only=True)
class WithinBudget:
    """What a budget costs.

    Attributes:
        aggregation: Settings are compared with those that train the same.
        torch_peak_mb: The budget.
        ratio: Of the fastest setting within it to the fastest of all; None where none is within.
    """

    aggregation: str
    torch_peak_mb: float
    ratio: Ratio | None


class Weighed(Times, Protocol):
    """A variant's times and peak."""

    @property
    def variant(self) -> Variant: ...  # noqa: D102

    @property
    def median_s(self) -> float: ...  # noqa: D102

    @property
    def torch_peak_mb(self) -> float: ...  # noqa: D102


def within_budgets(measured: Sequence[Weighed]) -> list[WithinBudget]:
    """What each budget costs, for each aggregation of which several settings were measured."""
    found = []
    for aggregation in ("fedit", "ffa"):
        settings = [
            m
            for m in measured
            if m.variant.make == PRIVATE and m.variant.aggregation == aggregation
        ]
        if len(settings) > 1:
            found += [_within(budget, aggregation, settings) for budget in BUDGETS]
    return found


def _within(budget: Budget, aggregation: str, settings: Sequence[Weighed]) -> WithinBudget:
    fastest = min(settings, key=lambda m: m.median_s)
    small = [m for m in settings if m.torch_peak_mb <= budget.torch_peak_mb]
    best = min(small, key=lambda m: m.median_s, default=None)
    ratio = None
    if best is not None:
        target = Target(best.variant.name, fastest.variant.name, budget.limit)
        ratio = paired_ratio(target, best, fastest)
    return WithinBudget(aggregation=aggregation, torch_peak_mb=budget.torch_peak_mb, ratio=ratio)
