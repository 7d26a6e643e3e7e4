"""From scores of canaries to guesses, by a rule that was fixed before anybody looked.

A canary is in by a fair coin of its own. Whoever audits orders the canaries by score and guesses
"in" for the highest, "out" for the lowest, and abstains from the rest. Which part abstains decides
what can be shown, so to pick it by the outcome is to test many times: that has to be paid for, by
a smaller level (`Guessing` rules side by side) or by picking on other canaries (`split_rule`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.core.errors import AuditError, expected
from sordino.privacy.audit.checks import Floats, column, same_length, whole


@dataclass(frozen=True, kw_only=True)
class Guessing:
    """How many of the highest scores are guessed "in", and of the lowest "out"."""

    guessed_in: int
    guessed_out: int

    def __post_init__(self) -> None:
        whole("guessed_in", self.guessed_in, 0)
        whole("guessed_out", self.guessed_out, 0)
        if not self.guesses:
            raise AuditError(expected("guesses", 0, ">= 1: a rule that abstains shows nothing"))

    @property
    def guesses(self) -> int:
        """How many canaries it doesn't abstain from."""
        return self.guessed_in + self.guessed_out


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What an audit comes to: of `canaries`, `guesses` were guessed and `correct` of them right."""

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        whole("canaries", self.canaries, 1)
        whole("guesses", self.guesses, 1, self.canaries)
        whole("correct", self.correct, 0, self.guesses)

    def with_correct(self, correct: int) -> Counts:
        """The same audit with another outcome."""
        return Counts(canaries=self.canaries, guesses=self.guesses, correct=correct)


def coins_of(values: ArrayLike) -> NDArray[np.bool_]:
    """Coins as booleans.

    Raises:
        AuditError: They aren't: a score taken for a coin would decide everything.
    """
    coins = np.asarray(values)
    if coins.dtype != np.bool_ or coins.ndim != 1:
        raise AuditError(expected("coins", f"{coins.dtype} {coins.shape}", "booleans, shape (n,)"))
    return coins


def count(scores: ArrayLike, coins: ArrayLike, rule: Guessing) -> Counts:
    """Guess by the rule, and count what was right.

    Args:
        scores: One a canary, higher the more it seems to be in.
        coins: Whether it was in, shape as `scores`.
        rule: Fixed beforehand. Ties go by the canaries' order, which knows nothing of the coins.

    Raises:
        AuditError: Shapes differ, a score isn't finite, or there are fewer canaries than guesses.

    >>> rule = Guessing(guessed_in=1, guessed_out=1)
    >>> count([0.9, 0.5, 0.1], [True, False, True], rule)
    Counts(canaries=3, guesses=2, correct=1)
    """
    values, truth = column("scores", scores), coins_of(coins)
    same_length(scores=values, coins=truth)
    if rule.guesses > values.size:
        raise AuditError(expected("guesses", rule.guesses, f"at most the {values.size} canaries"))
    order = np.argsort(-values, kind="stable")
    highest, lowest = order[: rule.guessed_in], order[values.size - rule.guessed_out :]
    correct = int(truth[highest].sum()) + int((~truth[lowest]).sum())
    return Counts(canaries=values.size, guesses=rule.guesses, correct=correct)


def split_rule(
    scores: ArrayLike,
    coins: ArrayLike,
    rules: Sequence[Guessing],
    worth: Callable[[Counts], float],
) -> tuple[Guessing, Floats, NDArray[np.bool_]]:
    """Pick the rule that does best on the first half of the canaries; test it on the second.

    The second half's coins are independent of the first's, so the test is as if the rule had been
    given; what it costs is half of the canaries.

    Args:
        scores: As `count`.
        coins: As `count`.
        rules: To pick from; each must suit half of the canaries.
        worth: What a count is worth, such as the lower bound that it shows.

    Returns:
        The rule, and the scores and coins to test it on.

    Raises:
        AuditError: As `count`, or there is no rule.
    """
    values, truth = column("scores", scores, least=2), coins_of(coins)
    same_length(scores=values, coins=truth)
    if not rules:
        raise AuditError(expected("rules", (), "at least one"))
    half = values.size // 2
    best = max(rules, key=lambda rule: worth(count(values[:half], truth[:half], rule)))
    return best, values[half:], truth[half:]
