"""How often a caller may call: a bucket of tokens for each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MOST_CALLERS: Final = 10_000
"""Buckets that are remembered; the one that was used longest ago goes first."""


class Rates:
    """A bucket for each caller, filled evenly, which holds a minute's calls.

    Args:
        per_minute: Calls of one caller.
        now_s: A clock that never goes back.
    """

    def __init__(self, per_minute: int, now_s: Callable[[], float]) -> None:
        self._most = float(per_minute)
        self._now_s = now_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_ms(self, caller: str) -> int:
        """Take a token. 0: it may call; else how long until it might, and nothing is taken."""
        now = self._now_s()
        left, at = self._buckets.pop(caller, (self._most, now))
        left = min(self._most, left + (now - at) * self._most / 60)
        taken = 1.0 if left >= 1 else 0.0
        self._buckets[caller] = (left - taken, now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        return 0 if taken else 1 + int((1 - left) * 60_000 / self._most)
