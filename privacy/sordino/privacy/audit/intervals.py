"""Intervals of a share: Wilson's for what is printed, Clopper and Pearson's where it must hold."""

from __future__ import annotations

import math

from scipy.special import betaincinv, ndtri

from sordino.core.stats import Interval
from sordino.privacy.audit.checks import inside, whole

CONFIDENCE = 0.95


def wilson(hits: int, trials: int, level: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share of independent trials (Wilson 1927).

    Raises:
        AuditError: Not 0 <= hits <= trials, or no trial.

    >>> found = wilson(0, 20)
    >>> round(found.low, 3), round(found.high, 3)
    (0.0, 0.161)
    """
    _check(hits, trials, level)
    z = float(ndtri(0.5 + level / 2))
    share, spread = hits / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == trials else min(1.0, middle + half)
    return _interval(share, low, high, "Wilson", level)


def clopper_pearson(hits: int, trials: int, level: float = CONFIDENCE) -> Interval:
    """The exact interval of a share: it holds at least as often as it says, whatever the share.

    Raises:
        AuditError: As `wilson`.

    >>> found = clopper_pearson(0, 20)
    >>> round(found.low, 3), round(found.high, 3)
    (0.0, 0.168)
    """
    _check(hits, trials, level)
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, trials - hits + 1, tail))
    high = 1.0 if hits == trials else float(betaincinv(hits + 1, trials - hits, 1 - tail))
    return _interval(hits / trials, low, high, "Clopper-Pearson", level)


def plain(interval: Interval) -> dict[str, float | str]:
    """An interval as a figure of `audit.json`."""
    return {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "method": interval.method,
        "level": interval.level,
    }


def _check(hits: int, trials: int, level: float) -> None:
    whole("trials", trials, 1)
    whole("hits", hits, 0, trials)
    inside("level", level, 0.0, 1.0)


def _interval(estimate: float, low: float, high: float, method: str, level: float) -> Interval:
    return Interval(estimate=estimate, low=low, high=high, method=method, level=level, resamples=0)
