"""What else could tell members from others: length, doubles, time. Looked at before any claim.

A membership figure is about training only if the two samples are alike in all else. Members drawn
by coin from one source are, and these checks then find nothing but chance; samples that were put
together by hand mostly aren't (Duan et al. 2024, https://arxiv.org/abs/2402.07841).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sordino.core.errors import AuditError, expected
from sordino.core.stats import Interval
from sordino.privacy.audit.ranking import auc

LEVEL: Final = 0.99
"""Of the intervals: each of a few checks may find a difference by chance once in a hundred."""

_WORDS = 8


@dataclass(frozen=True, kw_only=True)
class Confounds:
    """What was looked at, and what stands in a claim's way.

    Attributes:
        length: AUC of the texts' length alone, in characters.
        time: AUC of the texts' time alone; None where no times are known.
        doubles: How many members' texts, or long parts of them, stand among the others too.
        members: How many members there are.
        found: Each confound in words; empty if nothing stands in the way.
    """

    length: Interval
    time: Interval | None
    doubles: int
    members: int
    found: tuple[str, ...]


def confounds(
    members: Sequence[str],
    others: Sequence[str],
    *,
    times: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Confounds:
    """Look for what else could tell members from others.

    Args:
        members: Texts that were trained on.
        others: Texts that weren't.
        times: When the members' and the others' texts are from, if that is known.

    Raises:
        AuditError: Fewer than two texts of a kind, or times of another number.
    """
    if times is not None and (len(times[0]), len(times[1])) != (len(members), len(others)):
        raise AuditError(expected("times", tuple(map(len, times)), "one for each text"))
    sizes = [[float(len(text)) for text in texts] for texts in (members, others)]
    return judge(
        length=auc(sizes[0], sizes[1], LEVEL),
        time=None if times is None else auc(times[0], times[1], LEVEL),
        doubles=count_doubles(members, others),
        members=len(members),
    )


def judge(*, length: Interval, time: Interval | None, doubles: int, members: int) -> Confounds:
    """Say which of these differences stand in a claim's way."""
    found = []
    for name, interval in (("length", length), ("time", time)):
        if interval is not None and not interval.low <= 0.5 <= interval.high:
            found.append(f"{name} alone tells them apart, AUC {interval.estimate:.3f}")
    if doubles:
        found.append(f"{doubles} of {members} members have a double among the others")
    return Confounds(length=length, time=time, doubles=doubles, members=members, found=tuple(found))


def count_doubles(members: Sequence[str], others: Sequence[str]) -> int:
    """Members that are among the others, or share half of their runs of eight words with them."""
    whole = {_plain(text) for text in others}
    seen = {run for text in whole for run in _runs(text)}
    count = 0
    for member in map(_plain, members):
        runs = _runs(member)
        shared = sum(run in seen for run in runs)
        count += member in whole or bool(runs and 2 * shared >= len(runs))
    return count


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + _WORDS]) for i in range(len(words) - _WORDS + 1)}
