"""How well a score tells two samples apart: AUC, and true positives where false ones are rare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import rankdata

from sordino.core.stats import Interval
from sordino.privacy.audit.checks import Floats, column, inside
from sordino.privacy.audit.intervals import CONFIDENCE, clopper_pearson

LEAST_FALSE_POSITIVES: Final = 10
"""With fewer, the realised rate is not even known to a factor of two."""


@dataclass(frozen=True, kw_only=True)
class AtRate:
    """True positives at a rate of false ones, or why there is no such figure.

    Attributes:
        wanted: The rate of false positives that was asked for.
        realised: The rate at the threshold: at most the one that was wanted. None: refused.
        true_positives: None: refused.
        refused: Why, with what it would take; empty if it isn't.
    """

    wanted: float
    realised: Interval | None
    true_positives: Interval | None
    refused: str = ""


def auc(members: ArrayLike, others: ArrayLike, level: float = CONFIDENCE) -> Interval:
    """The chance that a member's score is above another's, ties counting half.

    The interval reaches as far as the wider of two on either side: DeLong, DeLong and
    Clarke-Pearson 1988, which assumes nothing of the scores' shape but vanishes where the samples
    are wholly apart, and Newcombe's 2006 score interval (his method 5), which doesn't.

    Raises:
        AuditError: Fewer than two scores of a kind, or one that isn't finite.

    >>> found = auc([3.0, 4.0, 5.0], [1.0, 2.0, 4.0])
    >>> round(found.estimate, 4)
    0.8333
    """
    inside("level", level, 0.0, 1.0)
    ins, outs = column("members", members, least=2), column("others", others, least=2)
    z = float(ndtri(0.5 + level / 2))
    m, n = ins.size, outs.size
    pooled = rankdata(np.concatenate([ins, outs]))
    # A member's placement: the share of others below it; and the other way round.
    above = (pooled[:m] - rankdata(ins)) / n
    below = 1 - (pooled[m:] - rankdata(outs)) / m
    estimate = float(above.mean())
    spread = z * math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    low, high = _newcombe(estimate, m, n, z)
    return Interval(
        estimate=estimate,
        low=max(0.0, min(low, estimate - spread)),
        high=min(1.0, max(high, estimate + spread)),
        method="the wider of DeLong and Newcombe's method 5",
        level=level,
        resamples=0,
    )


def true_positives(
    members: ArrayLike, others: ArrayLike, at: float, level: float = CONFIDENCE
) -> AtRate:
    """Members found by the lowest threshold that at most a part `at` of the others passes.

    Refused where fewer than 10 others may pass: the rate would be a matter of a few texts. Both
    intervals are Clopper and Pearson's; the threshold is set on the others' sample, which the
    realised rate's interval is to remind of.

    Raises:
        AuditError: A rate that isn't in (0, 1), or as `auc`.
    """
    inside("at", at, 0.0, 1.0)
    ins, outs = column("members", members), column("others", others)
    allowed = math.floor(at * outs.size + 1e-9)
    if allowed < LEAST_FALSE_POSITIVES:
        needed = math.ceil(LEAST_FALSE_POSITIVES / at)
        why = f"{outs.size} texts that weren't trained on can't support it: {needed} are needed"
        return AtRate(wanted=at, realised=None, true_positives=None, refused=why)
    threshold = np.sort(outs)[outs.size - allowed - 1]  # ties at it don't pass
    false, true = int((outs > threshold).sum()), int((ins > threshold).sum())
    return AtRate(
        wanted=at,
        realised=clopper_pearson(false, outs.size, level),
        true_positives=clopper_pearson(true, ins.size, level),
    )


def roc(members: ArrayLike, others: ArrayLike) -> tuple[Floats, Floats]:
    """Rates of false and of true positives at every threshold, from (0, 0) to (1, 1)."""
    ins, outs = column("members", members), column("others", others)
    thresholds = -np.unique(np.concatenate([ins, outs]))[::-1]
    false = np.searchsorted(np.sort(-outs), thresholds, side="right") / outs.size
    true = np.searchsorted(np.sort(-ins), thresholds, side="right") / ins.size
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def _newcombe(estimate: float, m: int, n: int, z: float) -> tuple[float, float]:
    """The θ at which the estimate is just z of Hanley and McNeil's deviations away."""
    mean = (m + n) / 2 - 1

    def deviation(theta: float) -> float:
        shape = 1 + mean * (1 - theta) / (2 - theta) + mean * theta / (1 + theta)
        return math.sqrt(theta * (1 - theta) * shape / (m * n))

    low, high, edge = 0.0, 1.0, 1e-12  # at 0 and 1 themselves the deviation vanishes
    if estimate > 0:
        inner = min(estimate, 1 - edge)
        low = float(brentq(lambda t: estimate - t - z * deviation(t), 0.0, inner))
    if estimate < 1:
        inner = max(estimate, edge)
        high = float(brentq(lambda t: t - estimate - z * deviation(t), inner, 1.0))
    return low, high
