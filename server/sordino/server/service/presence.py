"""Which devices are there: those that wait for work, and those whose heart was heard in time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from sordino.core.errors import ContractError

BEATS: Final = 2.5
"""A device is gone when so many intervals passed without a heartbeat."""

_ENDS: Final = {
    "superseded": "a newer stream of this device waits",
    "stopping": "the coordinator stops",
}


class Waiting:
    """One open `PullTask`. Belongs to the service's event loop."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._ended = ""

    def wake(self) -> None:
        """Let the stream look at the store."""
        self._woken.set()

    def end(self, word: str) -> None:
        """Let the stream end, with a word."""
        self._ended = self._ended or word
        self._woken.set()

    async def pause(self, timeout_s: float) -> None:
        """Wait until it is woken, or so long.

        Raises:
            ContractError: ``superseded`` or ``stopping``.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
        if self._ended:
            raise ContractError(self._ended, _ENDS[self._ended])


class Presence:
    """Who waits and who was heard of. Streams come and go on one event loop; any thread may ask.

    Args:
        heartbeat_ms: The interval of heartbeats.
        now_s: A clock that never goes back.
    """

    def __init__(self, heartbeat_ms: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._lasts_s = BEATS * heartbeat_ms / 1000
        self._now_s = now_s
        self._lock = threading.Lock()
        self._waiting: dict[str, Waiting] = {}
        self._until: dict[str, float] = {}

    @contextmanager
    def waiting(self, device_id: str) -> Iterator[Waiting]:
        """A device's stream, for as long as it is open; an older one is ended."""
        made = Waiting()
        with self._lock:
            older = self._waiting.pop(device_id, None)
            self._waiting[device_id] = made
        if older is not None:
            older.end("superseded")
        try:
            yield made
        finally:
            with self._lock:
                if self._waiting.get(device_id) is made:
                    del self._waiting[device_id]

    def heard(self, device_id: str, *, at_hand: bool) -> None:
        """A heartbeat came, of a device that takes tasks now or doesn't."""
        with self._lock:
            self._until.pop(device_id, None)
            if at_hand:
                self._until[device_id] = self._now_s() + self._lasts_s

    def gone(self, device_id: str) -> None:
        """A device left."""
        with self._lock:
            self._until.pop(device_id, None)

    def online(self) -> frozenset[str]:
        """The devices that could be asked now."""
        now = self._now_s()
        with self._lock:
            self._until = {name: until for name, until in self._until.items() if until > now}
            return frozenset(self._waiting).union(self._until)

    def pulling(self) -> int:
        """How many devices wait."""
        with self._lock:
            return len(self._waiting)

    def wake(self, devices: Iterable[str]) -> None:
        """Wake the streams of these devices; on the event loop."""
        for device_id in devices:
            if (found := self._waiting.get(device_id)) is not None:
                found.wake()

    def end_all(self, word: str) -> None:
        """End every stream; on the event loop."""
        for found in list(self._waiting.values()):
            found.end(word)
