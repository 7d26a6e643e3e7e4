"""The one-run audit as a measure: scores and coins of canaries in, a lower bound on ε out.

It comes with what it could have shown: the ceiling (all guesses right), and how good the guesses
would have to be. A bound of 0 under a ceiling below the claim says nothing in the claim's favour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from sordino.core.errors import AuditError
from sordino.core.stats import round_down
from sordino.privacy.audit.bounds import (
    accuracy_for,
    f_dp_p_value,
    f_dp_rejects,
    gaussian_estimate,
    least_correct,
    rigorous_bound,
    shows_anything,
)
from sordino.privacy.audit.checks import (
    LEVEL,
    column,
    inside,
    one_of,
    same_length,
    whole,
)
from sordino.privacy.audit.curves import PointsCurve
from sordino.privacy.audit.guessing import Counts, Guessing, coins_of, count, split_rule

ADVERSARIES: Final = ("coordinator", "peer", "user")
POWER: Final = 0.8
DECIMALS: Final = 4


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """One adversary's scores of one run's canaries, and what they are held against.

    Attributes:
        adversary: Who has seen what the scores are made from.
        scope: What came out, in words: "round 3", "the whole run".
        unit: What one canary is, as the claim's unit.
        delta: The claim's δ.
        scores: One a canary, higher the more it seems to be in.
        coins: Whether each was in.
        canaries: Which of the committed canaries they are.
        rules: How to guess, fixed before the scores were looked at.
        payment: For several rules: `bonferroni` tests each at its part of the level, `split` picks
            one on the first half of the canaries and tests it on the second.
        level: The chance of a false alarm of the whole family.
        family: How many looks at the run's canaries the family has: rounds × adversaries. Each gets
            its part of the level, whether or not it is then taken.
        neighbouring: The claim's relation.
        claimed_epsilon: The claim's upper bound at `delta`; None if nothing is claimed.
        curve: The claim's points (ε, δ), see `claimed_curve`; empty if nothing is claimed.
    """

    kind: ClassVar[str] = "one-run"

    adversary: str
    scope: str
    unit: str
    delta: float
    scores: tuple[float, ...]
    coins: tuple[bool, ...]
    canaries: tuple[int, ...]
    rules: tuple[Guessing, ...]
    payment: Literal["bonferroni", "split"] = "bonferroni"
    level: float = LEVEL
    family: int = 1
    neighbouring: str = "add-or-remove-one"
    claimed_epsilon: float | None = None
    curve: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        same_length(scores=self.scores, coins=self.coins, canaries=self.canaries)
        column("scores", self.scores)
        if len(set(self.canaries)) < len(self.canaries):
            raise AuditError("expected every canary once: a canary has one coin")
        if not self.rules:
            raise AuditError(
                "expected rules, at least one: say beforehand how many guesses to make"
            )
        one_of("adversary", self.adversary, ADVERSARIES)
        one_of("unit", self.unit, ("record", "user"))
        one_of("payment", self.payment, ("bonferroni", "split"))
        inside("delta", self.delta, 0.0, 1.0)
        inside("level", self.level, 0.0, 1.0)
        whole("family", self.family, 1)
        if self.claimed_epsilon is not None:
            inside("claimed_epsilon", self.claimed_epsilon, -1.0, math.inf)

    @property
    def looks(self) -> int:
        """Into how many parts the level goes."""
        return self.family * (len(self.rules) if self.payment == "bonferroni" else 1)

    def outcomes(self) -> tuple[tuple[Guessing, Counts], ...]:
        """What each rule that is tested comes to."""
        values, truth = column("scores", self.scores), coins_of(list(self.coins))
        if self.payment == "bonferroni":
            return tuple((rule, count(values, truth, rule)) for rule in self.rules)
        each = self.level / self.looks
        rule, kept, rest = split_rule(
            values, truth, self.rules, lambda found: rigorous_bound(found, self.delta, each)
        )
        return ((rule, count(kept, rest, rule)),)

    def figures(self) -> dict[str, Any]:
        """Every figure, from the scores alone.

        `epsilon_lower` holds with probability 1 - level over all of the family together, whatever
        the mechanism. `epsilon_gaussian` is an estimate. `p_value` is corrected for every look; an
        alarm is a p-value of at most the level, or a lower bound above the claim.
        """
        outcomes = self.outcomes()
        each = self.level / self.looks
        found = [counts for _, counts in outcomes]
        best = [counts.with_correct(counts.guesses) for counts in found]
        lower = self._largest(found, each)
        p_value = self._p_value(found)
        above = self.claimed_epsilon is not None and lower > self.claimed_epsilon
        alarm = above or (p_value is not None and p_value <= self.level)
        ceiling = self._largest(best, each)
        least = self._least(best, each)
        return {
            "canaries": found[0].canaries,
            "level_each": each,
            "rules": [
                {"in": rule.guessed_in, "out": rule.guessed_out, "correct": counts.correct}
                for rule, counts in outcomes
            ],
            "epsilon_lower": lower,
            "epsilon_gaussian": self._estimate(found, each),
            "ceiling": ceiling,
            "ceiling_gaussian": self._estimate(best, each),
            "p_value": p_value,
            "alarm": alarm,
            "power": least,
            "verdict": self._verdict(lower, ceiling, alarm, least["accuracy_for_alarm"]),
        }

    def _largest(self, found: list[Counts], each: float) -> float:
        return round_down(max(rigorous_bound(c, self.delta, each) for c in found), DECIMALS)

    def _estimate(self, found: list[Counts], each: float) -> float:
        return round_down(max(gaussian_estimate(c, self.delta, each) for c in found), DECIMALS)

    def _p_value(self, found: list[Counts]) -> float | None:
        if not self.curve:
            return None
        curve = PointsCurve(points=self.curve)
        return min(1.0, self.looks * min(f_dp_p_value(counts, curve) for counts in found))

    def _least(self, best: list[Counts], each: float) -> dict[str, float | int | None]:
        """How right the guesses of the likeliest rule must be to show anything, and to alarm."""
        counts = max(best, key=lambda c: rigorous_bound(c, self.delta, each))
        shows = least_correct(counts, lambda c: shows_anything(c, self.delta, each))
        alarms = None
        if self.curve:
            curve = PointsCurve(points=self.curve)
            alarms = least_correct(counts, lambda c: f_dp_rejects(c, curve, each))
        accuracy = [
            None if least is None else accuracy_for(least, counts.guesses, POWER)
            for least in (shows, alarms)
        ]
        return {
            "guesses": counts.guesses,
            "least_correct": shows,
            "accuracy": accuracy[0],
            "least_for_alarm": alarms,
            "accuracy_for_alarm": accuracy[1],
        }

    def _verdict(
        self, lower: float, ceiling: float, alarm: bool, accuracy: float | int | None
    ) -> str:
        if alarm:
            return "ALARM: the scores contradict the claim"
        if ceiling == 0:
            return "no power: all guesses right would show nothing"
        found = f"epsilon > {lower}" if lower else "no lower bound above 0"
        shown = f"{found}; at most {ceiling} could have been shown"
        if self.claimed_epsilon is None and not self.curve:
            return f"{shown}; nothing is claimed"
        if accuracy is None and (self.claimed_epsilon is None or ceiling <= self.claimed_epsilon):
            return f"{shown}; no power to contradict the claim: more guesses are needed"
        return f"{shown}; nothing contradicts the claim"
