"""Ratios of paired times, with an interval that assumes nothing of how times are distributed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal, Protocol

from sordino.sim.bench.catalogue import Target

LEVEL = 0.95
METHOD = "median of the rounds' ratios; order statistics (binomial), at least 95 %"
Verdict = Literal["met", "missed", "can't tell", ""]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long one variant's step takes as another's.

    Attributes:
        of: The variant above the line.
        to: The variant below it.
        median: Of the rounds' own ratios, by the clock.
        low: Lower end of the interval.
        high: Upper end.
        coverage: At least how often such an interval holds the true median.
        limit: The most it should be.
        cpu_median: The same of the seconds that the processes were computing: close to `median`
            where they had the machine to themselves, and steadier where they had not.
        verdict: Whether the whole interval is within the limit, or beyond it; ``can't tell`` where
            it holds the limit, or too few rounds were run for an interval.
    """

    of: str
    to: str
    median: float
    low: float
    high: float
    coverage: float
    cpu_median: float
    limit: float | None
    verdict: Verdict


class Times(Protocol):
    """A variant's steps, one a round, in the same order for all variants."""

    @property
    def seconds(self) -> Sequence[float]: ...  # noqa: D102

    @property
    def cpu_seconds(self) -> Sequence[float]: ...  # noqa: D102


def ratios(times: Mapping[str, Times], targets: Iterable[Target]) -> list[Ratio]:
    """The targets' ratios of those variants that were measured, by name."""
    return [
        paired_ratio(target, times[target.of], times[target.to])
        for target in targets
        if target.of in times and target.to in times
    ]


def paired_ratio(target: Target, above: Times, below: Times) -> Ratio:
    """One ratio: what slows a whole round down is in both of its times, and cancels."""
    pairs = _pairs(above.seconds, below.seconds)
    low, high, coverage = median_interval(pairs)
    return Ratio(
        of=target.of,
        to=target.to,
        median=statistics.median(pairs),
        low=low,
        high=high,
        coverage=coverage,
        cpu_median=statistics.median(_pairs(above.cpu_seconds, below.cpu_seconds)),
        limit=target.limit,
        verdict=verdict(low, high, coverage, target.limit),
    )


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Between which of the sorted values the median lies, and how surely.

    The k-th smallest and k-th largest of n independent values hold the median but with probability
    2·P[Bin(n, ½) < k], whatever the distribution. Below six values no pair reaches 95 %: the
    smallest and the largest are given with what they reach.

    Returns:
        Lower end, upper end, coverage.

    >>> median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    (2, 9, 0.978515625)
    """
    count = len(values)
    misses = [2 * sum(comb(count, i) for i in range(k)) / 2**count for k in range(1, count + 1)]
    k = max(1, sum(miss <= 1 - level for miss in misses[: (count + 1) // 2]))
    ordered = sorted(values)
    return ordered[k - 1], ordered[count - k], max(0.0, 1 - misses[k - 1])


def verdict(low: float, high: float, coverage: float, limit: float | None) -> Verdict:
    """What the interval says of a limit."""
    if limit is None:
        return ""
    if coverage < LEVEL or low <= limit < high:
        return "can't tell"
    return "met" if high <= limit else "missed"


def _pairs(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
