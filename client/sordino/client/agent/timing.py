"""Time as an agent needs it: the coordinator's clock, and how long to wait before trying again.

What comes from outside (clocks, sleep, chance) is in `Surroundings`, so that a test can be it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sordino.core.contract import Failure

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 300.0
MOST_WAIT_S: Final = 86_400.0
_MOST_MS: Final = 1 << 53


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What an agent takes from the machine.

    Attributes:
        stop: Set when the agent is to end; it ends every wait.
        wall_ms: The device's own clock, which may be wrong.
        elapsed_s: A clock that only goes on.
        sleep: Wait so many seconds, or until `stop`; whether to stop. None: wait for `stop`.
        chance: A number in [0, 1), for the random part of a wait. Nothing private depends on it.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    wall_ms: Callable[[], int] = _wall_ms
    elapsed_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], bool] | None = None
    chance: Callable[[], float] = random.random

    def pause(self, seconds: float) -> bool:
        """Wait so long, a day at most whoever asks for more; whether to stop."""
        return (self.sleep or self.stop.wait)(min(seconds, MOST_WAIT_S))


class FleetClock:
    """The coordinator's clock, as far as it was told; until then the device's own.

    Args:
        wall_ms: The device's own.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._ahead_ms = 0

    def now_ms(self) -> int:
        """The coordinator's time."""
        return self._wall_ms() + self._ahead_ms

    def told(self, now_unix_ms: int) -> None:
        """Take the coordinator's word for the time; 0: it said nothing. Absurd times are none."""
        if 0 < now_unix_ms < _MOST_MS:
            self._ahead_ms = now_unix_ms - self._wall_ms()


class Backoff:
    """How long to wait before the next attempt: 1 s, doubled up to 5 min, less a random part.

    Args:
        chance: A number in [0, 1).
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._wait_s = FIRST_WAIT_S

    def reset(self) -> None:
        """Something went well: begin with the shortest wait again."""
        self._wait_s = FIRST_WAIT_S

    def next_s(self, failure: Failure | None = None) -> float:
        """Seconds to wait now.

        Args:
            failure: What the coordinator said, if it did: its `retry_after_ms` is the least.
        """
        wait = self._wait_s * (1.0 - self._chance() / 2)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        least = failure.retry_after_ms / 1000 if failure else 0.0
        # A coordinator that names a time names it to many: each comes a little after it.
        return max(wait, least * (1.0 + self._chance() / 10))
