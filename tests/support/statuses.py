"""A coordinator's status page over real HTTP, with figures as a service would count them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from types import MappingProxyType
from typing import Any

from sordino.server.service import ServiceFigures
from sordino.server.status import StatusServer, StatusSettings
from support.operators import Operated

FIGURES = ServiceFigures(
    state="serving",
    started_unix_ms=1_780_000_000_000,
    connections=3,
    calls_open=4,
    pulling=2,
    online=2,
    uploads_open=1,
    calls=MappingProxyType({"/sordino.v1.Fleet/PushUpdate": 5}),
    failures=MappingProxyType({("/sordino.v1.Fleet/PushUpdate", "over-norm"): 2}),
    bytes_up=123_456_789,
    bytes_down=987_654,
    accepted=5,
    rejected=MappingProxyType({"over-norm": 2}),
)


@dataclass
class Shown:
    """A page that is served."""

    server: StatusServer
    ready: list[bool] = field(default_factory=lambda: [True])

    def ask(self, path: str = "/", method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
        host, _, port = self.server.address.rpartition(":")
        connection = HTTPConnection(host.strip("[]"), int(port), timeout=60)
        try:
            connection.request(method, path, headers={"Connection": "close", **headers})
            answer = connection.getresponse()
            return answer, answer.read().decode()
        finally:
            connection.close()


@contextmanager
def shown(at: Operated, **settings: Any) -> Iterator[Shown]:
    """Serve the page of a coordinator."""
    ready = [True]
    given = StatusSettings(**{"kept_s": 0.0, **settings})
    with StatusServer(
        at.fleet,
        at.folder,
        given,
        figures=lambda: FIGURES,
        online=lambda: at.online,
        ready=lambda: ready[0],
    ) as server:
        yield Shown(server, ready)
