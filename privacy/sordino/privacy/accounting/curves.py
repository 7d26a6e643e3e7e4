"""More than one point of the guarantee: δ as a function of ε, and a Gaussian that dominates it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from sordino.core.errors import PlanError
from sordino.core.stats import round_up
from sordino.privacy.accounting.events import Event
from sordino.privacy.accounting.losses import (
    float_slack,
    loss_distribution,
    merge,
    merged_epsilon,
)

SMALLEST_DELTA = 1e-10
"""Below it a PLD is mostly what its construction cut off, and no Gaussian dominates that."""

_FARTHEST = 350.0  # twice that is where e^ε leaves float's range
_POINTS = 4000
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Dominating:
    """The smallest μ-GDP that dominates a PLD wherever its δ is at least `smallest_delta`."""

    mu: float
    smallest_delta: float


def delta_at(events: Iterable[Event], epsilons: Sequence[float]) -> tuple[float, ...]:
    """Upper bounds on δ at each ε >= 0, by pessimistic PLD, rounded up; 1 where none is known.

    Raises:
        PlanError: A negative ε, or events of both units.
    """
    if any(not epsilon >= 0 for epsilon in epsilons):
        raise PlanError("expected every epsilon >= 0: the curve is about the loss's upper tail")
    merged = merge(events, 0.5)
    if not merged:
        return (0.0,) * len(epsilons)
    distribution = loss_distribution(merged)
    if distribution is None:
        return (1.0,) * len(epsilons)
    given = np.asarray(epsilons, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # e^ε out of float's range
        found = np.asarray(distribution.get_delta_for_epsilon(given))
    deltas = np.nan_to_num(found, nan=1.0) + float_slack(merged)
    return tuple(float(min(value, 1.0)) for value in np.nextafter(deltas, np.inf))


def delta_curve(
    events: Iterable[Event], delta: float, points: int = 41
) -> tuple[tuple[float, float], ...]:
    """(ε, δ) from ε = 0 to twice the ε at `delta`: upper bounds, for a report's figure.

    Raises:
        PlanError: δ is not in (0, 1), or the events are of both units.
    """
    own = list(events)
    reach = merged_epsilon(merge(own, delta), delta)
    if not 0 < reach < _FARTHEST:
        return ()
    epsilons = [float(value) for value in np.linspace(0.0, 2 * reach, points)]
    return tuple(zip(epsilons, delta_at(own, epsilons), strict=True))


def dominating_gaussian(
    events: Iterable[Event], smallest_delta: float = SMALLEST_DELTA
) -> Dominating:
    """The smallest μ, rounded up, such that μ-GDP's δ(ε) is never below the PLD's.

    Between two points of a fine grid of ε the PLD's δ is at most that of the lower point, and the
    Gaussian's at least that of the upper one: μ is solved for with that pair, so it holds between
    the points too. It is found from the whole curve, not from a central limit, which is too low.
    Infinite if the PLD reaches `smallest_delta` nowhere in float's range.

    Raises:
        PlanError: `smallest_delta` is not in (0, 1), or the events are of both units.
    """
    own = list(events)
    merged = merge(own, smallest_delta)
    if not merged:
        return Dominating(mu=0.0, smallest_delta=smallest_delta)
    reach = merged_epsilon(merged, smallest_delta)
    if reach >= _FARTHEST:
        return Dominating(mu=math.inf, smallest_delta=smallest_delta)
    epsilons = np.linspace(0.0, reach, _POINTS + 1)
    deltas = np.asarray(delta_at(own, [float(value) for value in epsilons]))
    mu = _solve(epsilons[1:], deltas[:-1])
    return Dominating(mu=round_up(float(mu.max()), 4), smallest_delta=smallest_delta)


def gaussian_delta(
    mu: float | NDArray[np.float64], epsilon: NDArray[np.float64]
) -> NDArray[np.float64]:
    """δ(ε) of μ-GDP (Dong, Roth, Su 2022, corollary 2.13), for μ > 0."""
    first = np.exp(log_ndtr(-epsilon / mu + mu / 2))
    second = np.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
    return np.asarray(first - second)


def _solve(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> NDArray[np.float64]:
    """The μ of each pair at which a Gaussian has that δ at that ε, from above."""
    target = np.minimum(deltas * (1 + _ROUNDING), 1 - 1e-15)
    low, high = np.full_like(target, 1e-9), np.full_like(target, 1.0)
    while (short := gaussian_delta(high, epsilons) < target).any() and high.max() < 1e6:
        high = np.where(short, 2 * high, high)
    for _ in range(60):
        middle = (low + high) / 2
        enough = gaussian_delta(middle, epsilons) >= target
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high
