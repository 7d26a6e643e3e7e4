"""An audit in words, for the page, the card and the terminal; from the report's figures alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sordino.server.report import formats
from sordino.server.report.leakage import Leakage


@dataclass(frozen=True)
class Audited:
    """What can be said of the report's leakage."""

    found: Leakage

    @property
    def short(self) -> str:
        """One line: the largest lower bound, with what it could have been; or that there is none.

        >>> Audited(Leakage()).short
        'not audited'
        """
        if self.found.status == "not audited":
            return self.found.status
        alarm = "; ALARM: it contradicts the claim" if self.found.alarm else ""
        return f"{self._bound()}; {self._membership()}{alarm}"

    @property
    def lead(self) -> str:
        """What was seen, in a sentence or two."""
        text = f"{self._bound()}; {self._membership()}."
        learnt = [g for g in self.found.exposure if g.repetitions and g.above_null]
        if self.found.exposure:
            names = ", ".join(f"{g.label} {g.repetitions}\N{MULTIPLICATION SIGN}" for g in learnt)
            text += f" Planted codes known above chance: {names or 'none'}."
        return text[0].upper() + text[1:]

    @property
    def note(self) -> str:
        """How to read it."""
        bounds = self.found.whole
        text = (
            "A lower bound is what these attacks could show, not how much leaks: another attack "
            "may show more. It holds at the level of 5 % over all adversaries and rounds of a run "
            "together; the ceiling is what the same guesses would show if all were right."
        )
        if bounds:
            text += (
                f" {formats.count(bounds[0].canaries)} canaries of the unit {bounds[0].unit}, "
                f"δ = {formats.power(bounds[0].delta)}, relation add or remove one; the guesses' "
                "number was fixed before training."
            )
        if self.found.none_planted:
            text += f" Canaries: {self.found.none_planted}."
        return f"{text} All raw scores are in audit.json."

    def _bound(self) -> str:
        bounds = self.found.whole
        if not bounds:
            return "no lower bound on ε: the run carried no canaries"
        main = [b for b in bounds if b.label == bounds[0].label]
        best = max(main, key=lambda bound: bound.epsilon_lower)
        lower = math.floor(best.epsilon_lower * 100 + 1e-9) / 100
        ceiling = math.floor(best.ceiling * 100 + 1e-9) / 100
        return (
            f"audited ε\u00a0≥\u00a0{lower:.2f} ({best.adversary}; at most {ceiling:.2f} could "
            "have been shown)"
        )

    def _membership(self) -> str:
        main = [a for a in self.found.attacks if a.label == self.found.attacks[0].label]
        if not main:
            return "membership inference not run"
        best = max(main, key=lambda attack: attack.auc.estimate)
        low, high = formats.plain(best.auc.low), formats.plain(best.auc.high)
        return (
            f"best of {len(main)} membership attacks: AUC {formats.plain(best.auc.estimate)} "
            f"({low} to {high})"
        )
