"""What so many right guesses say of ε: two published tests, each from its formula.

*Guesses under (ε, δ).* Steinke, Nasr, Jagielski 2023, https://arxiv.org/abs/2305.08846, theorem
5.2: of r guesses about m canaries, v are right with probability at most β + 2mδα.

*Guesses under a trade-off curve.* Mahloujifar, Melis, Chaudhuri 2024,
https://arxiv.org/abs/2410.22235, theorem 9 and algorithm 3: a recursion that says whether a curve
leaves room for v right guesses with a given probability.

Both are about a fixed number of guesses, by whatever adversary, from whatever came out. Both reject
when v is large and for no other reason, so that of two bounds at one level the larger holds at that
level too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom

from sordino.privacy.accounting import gaussian_delta
from sordino.privacy.audit.checks import LEVEL, Floats, inside
from sordino.privacy.audit.curves import Inverse, approximate, gaussian
from sordino.privacy.audit.guessing import Counts

Truths = NDArray[np.bool_]
LARGEST_EPSILON: Final = 50.0
"""No audit here looks for more: to show it would take more guesses than there are particles."""

_LARGEST_MU: Final = 30.0
_GRID: Final = 65
_LEAST_P: Final = 1e-9
_SLACK: Final = 1e-12  # what a recursion of thousands of steps in float64 can't lose


class Curve(Protocol):
    """A bound on every distinguisher of a canary's two worlds."""

    def inverse(self, reached: Floats) -> Floats:
        """The least mass of "wrong" that a mass `reached` of "right" needs, elementwise."""
        ...


def steinke_p_value(counts: Counts, epsilon: float, delta: float) -> float:
    """The most probability that an (ε, δ)-private mechanism leaves for so many right guesses.

    Raises:
        AuditError: ε < 0, or δ isn't in [0, 1).

    >>> all_right = Counts(canaries=100, guesses=100, correct=100)
    >>> round(steinke_p_value(all_right, 3.493, 0.0), 3)
    0.05
    """
    inside("epsilon", epsilon, 0.0, LARGEST_EPSILON, closed=True)
    inside("delta", delta, 0.0, 1.0, closed=True)
    r, v = counts.guesses, counts.correct
    right = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(v - 1, r, right))
    if v == 0 or delta <= 0:
        return beta
    below = np.cumsum(binom.pmf(np.arange(v - 1, -1, -1), r, right))  # P[v > Bin >= v - i]
    alpha = float((below / np.arange(1, v + 1)).max())
    return min(1.0, beta + 2 * counts.canaries * delta * alpha)


@lru_cache(maxsize=4096)
def steinke_bound(counts: Counts, delta: float, level: float = LEVEL) -> float:
    """The ε below which every ε is rejected at `level`, given δ; 0 if none is.

    >>> counts = Counts(canaries=1000, guesses=100, correct=95)
    >>> round(steinke_bound(counts, 1e-5), 4)
    2.1652
    """
    inside("level", level, 0.0, 1.0)
    low, high = 0.0, LARGEST_EPSILON
    if steinke_p_value(counts, low, delta) > level:
        return 0.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        if steinke_p_value(counts, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def room(counts: Counts, inverse: Inverse, levels: Floats) -> Truths:
    """Whether a curve leaves probability `levels` for at least so many right guesses.

    For T = {at least j right}, averaged over the canaries, Σ t·p_t/m over T is at most the curve at
    Σ (r - t + 1)·p_(t-1)/m: flip one canary's coin, and a right guess of it becomes a wrong one.
    Least probability is spent if all that is right more than v times is right v times, and each
    further count gets the least that the curve asks for; to push a surplus to lower counts never
    breaks what was kept. So there is room exactly if that least is no more than all there is.

    Args:
        counts: The outcome.
        inverse: The curve's inverse; it may stand for one curve an element.
        levels: Probabilities in (0, 1], or one for all.
    """
    r, v, m = counts.guesses, counts.correct, counts.canaries
    right, wrong = levels * (v / m), levels * ((r - v) / m)
    for j in range(v, 0, -1):
        least = np.maximum(wrong, inverse(np.clip(right - _SLACK, 0.0, 1.0)))
        right = right + (j - 1) / (r - j + 1) * (least - wrong)
        wrong = least
    return np.asarray(right + wrong <= r / m)


def f_dp_p_value(counts: Counts, curve: Curve) -> float:
    """The most probability that a curve leaves for so many right guesses, rounded up.

    At least 1e-9: below, it isn't looked for.
    """
    low, high = math.log(_LEAST_P), 0.0
    for _ in range(3):
        levels = np.linspace(low, high, _GRID)
        has_room = room(counts, curve.inverse, np.exp(levels))
        if has_room[-1]:
            return math.exp(high)
        last = int(np.flatnonzero(has_room)[-1]) if has_room.any() else -1
        if last < 0:
            return math.exp(low)
        low, high = float(levels[last]), float(levels[last + 1])
    return math.exp(high)


def f_dp_rejects(counts: Counts, curve: Curve, level: float) -> bool:
    """Whether a curve leaves so many right guesses less probability than `level`."""
    return not bool(room(counts, curve.inverse, np.array([level]))[0])


@lru_cache(maxsize=4096)
def f_dp_bound(counts: Counts, delta: float, level: float = LEVEL) -> float:
    """The ε below which no (ε, δ) leaves room for the outcome: `steinke_bound` by the other test.

    Assumes nothing of the mechanism but (ε, δ).
    """
    inside("level", level, 0.0, 1.0)
    inside("delta", delta, 0.0, 1.0, closed=True)

    def rejected(epsilons: Floats) -> Truths:
        return ~room(counts, approximate(epsilons, delta), np.full(epsilons.shape, level))

    return _last_rejected(rejected, LARGEST_EPSILON)


@lru_cache(maxsize=4096)
def gaussian_estimate(counts: Counts, delta: float, level: float = LEVEL) -> float:
    """The ε at δ of the largest Gaussian mechanism that leaves no room for the outcome.

    A lower bound if the mechanism is a Gaussian one as far as this canary is concerned, and an
    *estimate* otherwise: what is printed must say so.

    >>> counts = Counts(canaries=100, guesses=100, correct=100)
    >>> round(gaussian_estimate(counts, 1e-5), 4)
    8.2162
    """
    inside("level", level, 0.0, 1.0)
    inside("delta", delta, 0.0, 1.0)

    def rejected(mus: Floats) -> Truths:
        return ~room(counts, gaussian(np.maximum(mus, 1e-12)), np.full(mus.shape, level))

    mu = _last_rejected(rejected, _LARGEST_MU)
    return gaussian_epsilon(mu, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε at δ of μ-GDP, from below; 0 without a Gaussian."""
    if mu <= 0:
        return 0.0

    def above(epsilons: Floats) -> Truths:
        return np.asarray(gaussian_delta(mu, epsilons) > delta)

    return _last_rejected(above, mu * mu / 2 + 40 * mu)


def rigorous_bound(counts: Counts, delta: float, level: float = LEVEL) -> float:
    """The larger of the two bounds that assume nothing but (ε, δ)."""
    return max(steinke_bound(counts, delta, level), f_dp_bound(counts, delta, level))


def shows_anything(counts: Counts, delta: float, level: float = LEVEL) -> bool:
    """Whether `rigorous_bound` is above 0, without looking for how far."""
    if steinke_p_value(counts, 0.0, delta) <= level:
        return True
    return not bool(room(counts, approximate(np.zeros(1), delta), np.array([level]))[0])


def least_correct(counts: Counts, shows: Callable[[Counts], bool]) -> int | None:
    """The fewest right guesses that show something; None if all of them wouldn't.

    Args:
        counts: For its number of canaries and guesses.
        shows: Once true, true for more right guesses too.
    """
    low, high = -1, counts.guesses
    if not shows(counts.with_correct(high)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if shows(counts.with_correct(middle)):
            high = middle
        else:
            low = middle
    return high


def accuracy_for(least: int, guesses: int, power: float) -> float:
    """How often each guess must be right for `least` of `guesses` to be, with probability `power`.

    >>> round(accuracy_for(59, 100, 0.8), 3)
    0.626
    """
    if least == 0:
        return 0.0
    return float(betaincinv(least, guesses - least + 1, power))


def _last_rejected(rejected: Callable[[Floats], Truths], largest: float) -> float:
    """Where a run of rejections that begins at 0 ends, from below: a grid, refined.

    What lies beyond the first parameter that isn't rejected is never looked at.
    """
    low, high = 0.0, largest
    for _ in range(5):
        grid = np.linspace(low, high, _GRID)
        kept = np.flatnonzero(~rejected(grid))
        if not kept.size:
            return high
        if not kept[0]:
            return low
        low, high = float(grid[kept[0] - 1]), float(grid[kept[0]])
    return low
