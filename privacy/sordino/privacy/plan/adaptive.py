"""The clip norm that follows a private quantile: what one step adds to its sum, and what it learns.

What moves the clip norm is the noised count alone; the exact one never leaves `Follower`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sordino.core import canonical, durable
from sordino.privacy.plan.plans import AdaptiveClip, Plan

_MOST_BYTES: Final = 1 << 10


class Follower:
    """The clip norm of a plan's open round, and the count of the step that is open.

    Args:
        plan: Its `adaptive` rules.
        rule: The plan's `adaptive`.
        start: The clip norm to begin with, as an earlier round of the plan left it.
    """

    def __init__(self, plan: Plan, rule: AdaptiveClip, start: float) -> None:
        self.clip_norm = start
        self._plan, self._rule = plan, rule
        self._within = self._beyond = 0

    def note(self, norms: NDArray[np.floating[Any]]) -> None:
        """Count the records that are within the clip norm and beyond it; NaN and ∞ are neither."""
        wide = norms.astype(np.float64)
        finite = np.isfinite(wide) & (wide >= 0)
        within = int((finite & (wide <= self.clip_norm)).sum())
        self._within += within
        self._beyond += int(finite.sum()) - within

    def coordinate(self, step: float) -> float:
        """What the step's count adds to its sum, a multiple of the grid's `step`.

        Each record's part is put on the grid by itself, towards zero: its absolute value is at most
        `clip_norm` times the plan's `count_weight`, and parts add up without error.
        """
        unit, quantile = self._unit(), self._rule.quantile
        within = math.trunc(unit * (1 - quantile) / step)
        beyond = math.trunc(unit * quantile / step)
        return (self._within * within - self._beyond * beyond) * step

    def follow(self, noised: float) -> None:
        """End the step: move the clip norm by the noised coordinate, and forget the count."""
        self._within = self._beyond = 0
        part = noised / self._unit() / self._plan.divisor
        # Too many within: the clip norm falls. Noise alone moves it by e^rate at most.
        moved = self.clip_norm * math.exp(-self._rule.rate * min(max(part, -1.0), 1.0))
        self.clip_norm = min(max(moved, self._rule.smallest), self._plan.clip_norm)

    def _unit(self) -> float:
        """What a record's (within - γ) is multiplied by."""
        largest = max(self._rule.quantile, 1 - self._rule.quantile)
        return self.clip_norm * self._plan.count_weight / largest


class ClipMemory:
    """Where a device keeps the clip norm that a plan came to, from one round to the next.

    It was made from noised counts alone, of charged rounds, so that it may be kept, lost or seen:
    what is gone or damaged begins at the plan's `start` again.

    Args:
        folder: The client's own; it is made if absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, plan: Plan, rule: AdaptiveClip) -> float:
        """The clip norm to go on with, within the plan's bounds."""
        try:
            with self._path(plan).open("rb") as file:
                known = canonical.decode(file.read(_MOST_BYTES))
        except (OSError, ValueError):
            return rule.start
        value = known.get("clip_norm")
        if not isinstance(value, float) or known.get("plan") != plan.sha256:
            return rule.start
        return value if rule.smallest <= value <= plan.clip_norm else rule.start

    def write(self, plan: Plan, clip_norm: float) -> None:
        """Keep the clip norm that a finished round came to."""
        durable.make_folder(self._folder)
        data = canonical.encode({"plan": plan.sha256, "clip_norm": clip_norm})
        durable.write_whole(self._path(plan), data)

    def _path(self, plan: Plan) -> Path:
        return self._folder / f"{plan.sha256[:32]}.json"
