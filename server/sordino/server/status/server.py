"""The HTTP server of the page and the figures, in a thread of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from sordino.core.errors import ConfigError, SordinoError, TrustError, expected
from sordino.server.fleet_rounds import Fleet
from sordino.server.looping import LoopThread
from sordino.server.service import ServiceFigures
from sordino.server.status import figures as prometheus
from sordino.server.status import page
from sordino.server.status.snapshot import Snapshots

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_BEGIN_S: Final = 0.01

Next = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class StatusSettings:
    """Where the page is.

    Attributes:
        address: HOST:PORT, digits as in 127.0.0.1:7423 or [::1]:7423. Port 0: any.
        hosts: Further names that it may be asked for by, through a proxy. A page on another
            address than loopback needs them: it knows no reader from another.
        kept_s: How long a look at the store is good.
        connections: At once.

    Raises:
        ConfigError: A value is impossible.
    """

    address: str = "127.0.0.1:0"
    hosts: tuple[str, ...] = ()
    kept_s: float = 1.0
    connections: int = 64

    def __post_init__(self) -> None:
        host, port = self.host_and_port
        try:
            parsed = ipaddress.ip_address(host)
        except ValueError as error:
            required = "ADDRESS:PORT, the address in digits"
            raise ConfigError(expected("status address", self.address, required)) from error
        if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ConfigError(expected("status address", self.address, "ADDRESS:PORT"))
        if not (parsed.is_loopback or self.hosts):
            todo = "name the hosts that it may be asked for by, and keep a proxy before it"
            raise ConfigError(expected("status address", self.address, "loopback", todo))

    @property
    def host_and_port(self) -> tuple[str, str]:
        """The address' two parts."""
        host, _, port = self.address.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), port


class StatusServer:
    """Serves the page, `/metrics`, `/health` and `/ready` from `__enter__` to `__exit__`.

    Args:
        fleet: Rows and files.
        folder: With the coordinator's certificate.
        settings: Where.
        figures: What the service for devices has counted: `FleetService.figures`.
        online: The devices that are there: `FleetService.online`.
        ready: Whether the coordinator takes calls.
    """

    def __init__(
        self,
        fleet: Fleet,
        folder: Path,
        settings: StatusSettings,
        *,
        figures: Callable[[], ServiceFigures],
        online: Callable[[], Collection[str]],
        ready: Callable[[], bool],
    ) -> None:
        snapshots = Snapshots(
            fleet, folder, figures=figures, online=online, ready=ready, kept_s=settings.kept_s
        )
        self._settings = settings
        self._app = make_app(snapshots, settings.hosts)
        self._thread = LoopThread("status", self._serve)
        self._socket: socket.socket | None = None

    def __enter__(self) -> StatusServer:
        """Serve.

        Raises:
            TrustError: The port can't be had.
        """
        self._socket = _listen(self._settings)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self._thread.stop()
        if self._socket is not None:
            self._socket.close()

    @property
    def address(self) -> str:
        """ADDRESS:PORT."""
        if self._socket is None:
            raise RuntimeError("the server hasn't begun")
        host = self._settings.address.rpartition(":")[0]
        return f"{host}:{self._socket.getsockname()[1]}"

    async def _serve(self, begun: Callable[[], None], stop: asyncio.Event) -> None:
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            limit_concurrency=self._settings.connections,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=1 << 14,
        )
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[self._socket]))  # type: ignore[list-item]
        while not (server.started or serving.done()):
            await asyncio.sleep(_BEGIN_S)
        begun()
        await stop.wait()
        server.should_exit = True
        await serving


def make_app(snapshots: Snapshots, hosts: Collection[str] = ()) -> FastAPI:
    """The application.

    Args:
        snapshots: What is shown.
        hosts: Names that it may be asked for by, beside those of the machine itself.
    """
    app = FastAPI(title="Sordino", openapi_url=None, docs_url=None, redoc_url=None)
    known, policy = _LOCAL.union(hosts), page.content_policy()

    @app.middleware("http")
    async def guarded(request: Request, call_next: Next) -> Response:
        if _host(request) not in known:  # another site's name that leads here
            refusal = "this page isn't served under that name\n"
            response: Response = PlainTextResponse(refusal, 421)
        else:
            response = await call_next(request)
        response.headers.update({**_HEADERS, "Content-Security-Policy": policy})
        return response

    @app.exception_handler(SordinoError)
    async def failed(request: Request, error: Exception) -> Response:
        return PlainTextResponse("the coordinator's store can't be read: see its log\n", 503)

    @app.get("/", response_class=HTMLResponse)
    def shown() -> str:
        return page.render(snapshots.now())

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(prometheus.render(snapshots.now()), media_type=prometheus.CONTENT_TYPE)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"state": "alive"}

    @app.get("/ready")
    def ready() -> Response:
        good = snapshots.ready()
        return JSONResponse({"ready": good}, 200 if good else 503)

    return app


def _host(request: Request) -> str:
    """The host's name that was asked for, without its port."""
    given = request.headers.get("host", "").strip().lower()
    if given.startswith("["):
        return given[1:].partition("]")[0]
    return given.partition(":")[0]


def _listen(settings: StatusSettings) -> socket.socket:
    host, port = settings.host_and_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, int(port)))
    except OSError as error:
        made.close()
        raise TrustError(f"can't listen on {settings.address}: {error.strerror}") from error
    return made
