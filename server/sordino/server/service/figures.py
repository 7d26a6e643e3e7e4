"""What the service counts, and a snapshot of it for the status page and for `/metrics`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ServiceState = Literal["starting", "serving", "stopping", "stopped"]


@dataclass(frozen=True, kw_only=True)
class ServiceFigures:
    """The service since it was started. Whatever counts, counts upwards.

    Attributes:
        state: Whether calls are taken.
        started_unix_ms: Since when.
        connections: Connections with a call under way: each waiting device has one.
        calls_open: Calls under way.
        pulling: Devices with an open `PullTask`.
        online: Devices that could be asked now.
        uploads_open: `PushUpdate` streams under way.
        calls: Calls that ended, by method.
        failures: Those that failed, by method and word. `cancelled`: their caller went away.
        bytes_up: Messages that came.
        bytes_down: Messages that went.
        accepted: Updates that were acknowledged.
        rejected: Updates that were checked and refused, by word.
    """

    state: ServiceState
    started_unix_ms: int
    connections: int
    calls_open: int
    pulling: int
    online: int
    uploads_open: int
    calls: Mapping[str, int]
    failures: Mapping[tuple[str, str], int]
    bytes_up: int
    bytes_down: int
    accepted: int
    rejected: Mapping[str, int]


class Counters:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._rejected: Counter[str] = Counter()
        self._peers: Counter[str] = Counter()
        self._up = self._down = self._accepted = self._uploads = 0

    def begun(self, peer: str) -> None:
        """A call came by a connection."""
        with self._lock:
            self._peers[peer] += 1

    def ended(self, peer: str, method: str, word: str) -> None:
        """A call ended; with which word, if it failed."""
        with self._lock:
            self._calls[method] += 1
            if word:
                self._failures[method, word] += 1
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    def moved(self, *, up: int = 0, down: int = 0) -> None:
        """So many bytes came, or went."""
        with self._lock:
            self._up += up
            self._down += down

    def uploading(self, more: int) -> None:
        """One upload's stream more, or less."""
        with self._lock:
            self._uploads += more

    def checked(self, word: str = "") -> None:
        """An update was accepted, or rejected with a word."""
        with self._lock:
            if word:
                self._rejected[word] += 1
            else:
                self._accepted += 1

    def snapshot(
        self, *, state: ServiceState, started_unix_ms: int, pulling: int, online: int
    ) -> ServiceFigures:
        """All of it, at one moment."""
        with self._lock:
            return ServiceFigures(
                state=state,
                started_unix_ms=started_unix_ms,
                connections=len(self._peers),
                calls_open=self._peers.total(),
                pulling=pulling,
                online=online,
                uploads_open=self._uploads,
                calls=MappingProxyType(dict(self._calls)),
                failures=MappingProxyType(dict(self._failures)),
                bytes_up=self._up,
                bytes_down=self._down,
                accepted=self._accepted,
                rejected=MappingProxyType(dict(self._rejected)),
            )
