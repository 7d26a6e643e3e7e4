"""A mechanism held against what it was accounted as, where it can be run again or looked into.

Three questions that need no model of the mechanism: how far one unit moves the sum (`Neighbours`),
whether the noise is at least as large as it should be (`Noise`), and how well many runs with and
without one canary are told apart (`TwoWorlds`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammainc

from sordino.core.stats import round_down
from sordino.privacy.audit.checks import LEVEL, column, inside, whole
from sordino.privacy.audit.intervals import clopper_pearson

_ROUNDING = 1e-9


def noise_p_value(values: ArrayLike, deviation: float) -> float:
    """How likely values this small are, if they hold Gaussian noise of at least `deviation` each.

    The sum of squares of s + N(0, σ²I) is smallest in distribution at s = 0, so what else the
    values hold only makes them larger, and a small p-value says that the noise is too small
    whatever was released. For a stream that may have been used twice give the difference of the
    two releases, and √2 times the deviation.

    Args:
        values: What came out, or a part of it that was chosen without looking.
        deviation: The noise's standard deviation as accounted.

    Raises:
        AuditError: A value isn't finite, or the deviation isn't above 0.

    >>> round(noise_p_value([0.1, -0.1, 0.05, 0.0], 1.0), 4)
    0.0001
    """
    found = column("values", values)
    inside("deviation", deviation, 0.0, math.inf)
    return float(gammainc(found.size / 2, float(np.sum((found / deviation) ** 2)) / 2))


def two_worlds_bound(
    with_canary: ArrayLike,
    without: ArrayLike,
    *,
    threshold: float,
    delta: float,
    level: float = LEVEL,
) -> float:
    """The ε that runs with and without one canary show at δ, with probability 1 - level.

    Each run is independent, and the threshold was chosen without them. Of the two shares that go
    past it the one is bounded from below and the other from above, at half the level each
    (Jagielski, Ullman, Oprea 2020, https://arxiv.org/abs/2006.07709, section 4); both bounds serve
    in both directions.

    Raises:
        AuditError: There is no run, a score isn't finite, or δ or the level can't be.
    """
    inside("delta", delta, 0.0, 1.0, closed=True)
    inside("level", level, 0.0, 1.0)
    ins, outs = column("with_canary", with_canary), column("without", without)
    # An interval at 1 - level has half the level on each side.
    hit = clopper_pearson(int((ins > threshold).sum()), ins.size, 1 - level).low
    false = clopper_pearson(int((outs > threshold).sum()), outs.size, 1 - level).high
    ratios = ((hit - delta, false), (1 - false - delta, 1 - hit))
    return max(0.0, *(math.log(right / wrong) for right, wrong in ratios if right > 0 < wrong))


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """How far one unit moves the sum that is released, before noise, against what is accounted.

    Attributes:
        what: Which units, and what made them hard, in words.
        moved: L2 norm of the sum's change, one a unit that was added or removed.
        sensitivity: The most that is accounted.
    """

    kind: ClassVar[str] = "neighbours"

    what: str
    moved: tuple[float, ...]
    sensitivity: float

    def __post_init__(self) -> None:
        column("moved", self.moved)
        inside("sensitivity", self.sensitivity, 0.0, math.inf)

    def figures(self) -> dict[str, Any]:
        """The largest move, and whether it is beyond what is accounted: no chance plays a part."""
        largest = max(self.moved)
        alarm = largest > self.sensitivity * (1 + _ROUNDING)
        ratio = largest / self.sensitivity
        verdict = f"one unit moves the sum by {ratio:.3f} of what is accounted"
        return {
            "units": len(self.moved),
            "largest": largest,
            "ratio": ratio,
            "alarm": alarm,
            "verdict": f"ALARM: {verdict}" if alarm else verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Whether what came out holds the noise that it should.

    Attributes:
        what: Which release, or which difference of two, in words.
        squares: Sum of the squares of its coordinates.
        coordinates: How many there are.
        deviation: Standard deviation that is accounted, for one coordinate; √2 times that for a
            difference of two releases.
        level: The chance of a false alarm of all looks together.
        family: How many looks there are.
    """

    kind: ClassVar[str] = "noise"

    what: str
    squares: float
    coordinates: int
    deviation: float
    level: float = LEVEL
    family: int = 1

    def __post_init__(self) -> None:
        inside("squares", self.squares, -_ROUNDING, math.inf)
        inside("deviation", self.deviation, 0.0, math.inf)
        inside("level", self.level, 0.0, 1.0)
        whole("coordinates", self.coordinates, 1)
        whole("family", self.family, 1)

    def figures(self) -> dict[str, Any]:
        """See `noise_p_value`; `deviation_seen` is the noise's, if there is nothing but noise."""
        scaled = self.squares / self.deviation**2
        p_value = min(1.0, self.family * float(gammainc(self.coordinates / 2, scaled / 2)))
        alarm = p_value <= self.level
        seen = math.sqrt(self.squares / self.coordinates)
        return {
            "deviation_seen": seen,
            "p_value": p_value,
            "alarm": alarm,
            "verdict": "ALARM: less noise than is accounted"
            if alarm
            else "at least as much as noise of the accounted size",
        }


@dataclass(frozen=True, kw_only=True)
class TwoWorlds:
    """Scores of many independent runs with and without one canary.

    Attributes:
        what: The canary, in words.
        with_canary: A score for each run that had it.
        without: A score for each run that hadn't.
        threshold: Chosen without these scores.
        delta: The claim's.
        claimed_epsilon: The claim's upper bound at `delta`; None if nothing is claimed.
        level: The chance of a false alarm of all looks together.
        family: How many looks there are.
    """

    kind: ClassVar[str] = "two-worlds"

    what: str
    with_canary: tuple[float, ...]
    without: tuple[float, ...]
    threshold: float
    delta: float
    claimed_epsilon: float | None = None
    level: float = LEVEL
    family: int = 1

    def __post_init__(self) -> None:
        column("with_canary", self.with_canary)
        column("without", self.without)
        inside("threshold", self.threshold, -math.inf, math.inf)
        inside("delta", self.delta, 0.0, 1.0)
        inside("level", self.level, 0.0, 1.0)
        whole("family", self.family, 1)

    def figures(self) -> dict[str, Any]:
        """The bound, and what as many runs could have shown."""
        each = self.level / self.family
        lower = round_down(self._bound(self.with_canary, self.without, each), 4)
        high, low = self.threshold + 1, self.threshold - 1
        all_in, all_out = [high] * len(self.with_canary), [low] * len(self.without)
        ceiling = round_down(self._bound(all_in, all_out, each), 4)
        alarm = self.claimed_epsilon is not None and lower > self.claimed_epsilon
        text = f"epsilon > {lower}; at most {ceiling} could have been shown"
        return {
            "epsilon_lower": lower,
            "ceiling": ceiling,
            "alarm": alarm,
            "verdict": f"ALARM: {text}" if alarm else text,
        }

    def _bound(self, ins: ArrayLike, outs: ArrayLike, each: float) -> float:
        return two_worlds_bound(ins, outs, threshold=self.threshold, delta=self.delta, level=each)
