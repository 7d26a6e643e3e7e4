"""Membership inference as a measure: one attack's scores of members and of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from sordino.privacy.audit.checks import column, inside, same_length, whole
from sordino.privacy.audit.confounds import LEVEL, judge
from sordino.privacy.audit.intervals import CONFIDENCE, plain
from sordino.privacy.audit.ranking import AtRate, auc, true_positives

RATES: Final = (0.01, 0.001)


@dataclass(frozen=True, kw_only=True)
class Membership:
    """One attack against one model.

    Attributes:
        attack: Its name: "loss", "min-k", ...
        adversary: Who could run it.
        members: Scores of texts that were trained on, higher the more they seem to be.
        others: Scores of texts that weren't.
        members_length: The same texts' lengths in characters.
        others_length: The same of the others.
        doubles: How many members have a double among the others: see `count_doubles`.
        members_time: When each member is from; empty: not known.
        others_time: The same of the others.
        level: Of the intervals.
    """

    kind: ClassVar[str] = "membership"

    attack: str
    adversary: str
    members: tuple[float, ...]
    others: tuple[float, ...]
    members_length: tuple[int, ...]
    others_length: tuple[int, ...]
    doubles: int
    members_time: tuple[float, ...] = ()
    others_time: tuple[float, ...] = ()
    level: float = CONFIDENCE

    def __post_init__(self) -> None:
        column("members", self.members, least=2)
        column("others", self.others, least=2)
        same_length(members=self.members, members_length=self.members_length)
        same_length(others=self.others, others_length=self.others_length)
        if self.members_time or self.others_time:
            same_length(members=self.members, members_time=self.members_time)
            same_length(others=self.others, others_time=self.others_time)
        whole("doubles", self.doubles, 0, len(self.members))
        inside("level", self.level, 0.0, 1.0)

    def figures(self) -> dict[str, Any]:
        """AUC, true positives at low rates of false ones, and whether any of it is a claim.

        The checks for confounds come first: what they find stands in the verdict.
        """
        timed = bool(self.members_time)
        checks = judge(
            length=auc(self.members_length, self.others_length, LEVEL),
            time=auc(self.members_time, self.others_time, LEVEL) if timed else None,
            doubles=self.doubles,
            members=len(self.members),
        )
        found = auc(self.members, self.others, self.level)
        rates = [true_positives(self.members, self.others, at, self.level) for at in RATES]
        return {
            "members": len(self.members),
            "others": len(self.others),
            "confounds": {
                "found": list(checks.found),
                "length": plain(checks.length),
                "time": None if checks.time is None else plain(checks.time),
                "doubles": checks.doubles,
            },
            "auc": plain(found),
            "at": [_rate(rate) for rate in rates],
            "verdict": _verdict(found.low, found.high, checks.found),
        }


def _rate(rate: AtRate) -> dict[str, Any]:
    return {
        "wanted": rate.wanted,
        "realised": None if rate.realised is None else plain(rate.realised),
        "true_positives": None if rate.true_positives is None else plain(rate.true_positives),
        "refused": rate.refused,
    }


def _verdict(low: float, high: float, confounds: tuple[str, ...]) -> str:
    if confounds:
        return f"no claim: {'; '.join(confounds)}"
    if low > 0.5:
        return "members are told from others"
    if high < 0.5:
        return "the attack points the wrong way: members score lower than others"
    return f"not told apart: an AUC above {high:.3f} is ruled out for this attack, and for no other"
