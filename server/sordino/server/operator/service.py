"""The service `Operator` as one object: its listener, and a look at the machine now and then."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from sordino.core import durable
from sordino.core.errors import SordinoError
from sordino.server.bell import Bell
from sordino.server.enroll import read_server_certificate
from sordino.server.enroll.files import read_certificate
from sordino.server.enroll.operators import AUTHORITY
from sordino.server.fleet_rounds import Fleet
from sordino.server.logs import say
from sordino.server.looping import LoopThread
from sordino.server.operator import ADDRESS, SERVICE
from sordino.server.operator.alarms import look_after
from sordino.server.operator.commands import NewRunOf
from sordino.server.operator.methods import Methods
from sordino.server.operator.settings import OperatorSettings
from sordino.server.service.door import Door
from sordino.server.service.figures import Counters, ServiceFigures, ServiceState
from sordino.server.service.listeners import Listener, open_listener

_LOG = logging.getLogger(__name__)


class OperatorService:
    """Serves a fleet's operators from `__enter__` to `__exit__`, in a thread of its own.

    Their certificates are of an authority of their own, so a device's opens nothing here, nor the
    other way round. `sordino.core.trust.require_tls13` must have been called before grpc was
    imported.

    Args:
        fleet: Rows and files.
        bell: Rung when they change.
        folder: The fleet's.
        settings: Address and limits.
        new_run: Makes a run from its settings; called in threads.
        online: The devices that are there; called in threads.
    """

    def __init__(
        self,
        fleet: Fleet,
        bell: Bell,
        folder: Path,
        settings: OperatorSettings,
        new_run: NewRunOf,
        online: Callable[[], Collection[str]],
    ) -> None:
        self._fleet, self._folder, self._settings = fleet, folder, settings
        self._authority = read_certificate(folder / AUTHORITY)
        self._methods = Methods(
            fleet=fleet,
            bell=bell,
            folder=folder,
            authority=self._authority,
            settings=settings,
            new_run=new_run,
            online=online,
            stopping=lambda: self._state != "serving",
        )
        self._bell = bell
        self._counters = Counters()
        self._state: ServiceState = "starting"
        self._started_ms = fleet.now_ms()
        self._thread = LoopThread("operator-service", self._serve)
        self._listener: Listener | None = None

    def __enter__(self) -> OperatorService:
        """Serve.

        Raises:
            TrustError: The port can't be had, or takes TLS 1.2.
        """
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, with the grace of the settings."""
        self._thread.stop()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        if self._listener is None:
            raise RuntimeError("the service hasn't begun")
        return self._listener.address

    def ready(self) -> bool:
        """Whether calls are taken."""
        return self._state == "serving" and self._thread.is_alive()

    def figures(self) -> ServiceFigures:
        """What was counted until now; of devices nothing."""
        return self._counters.snapshot(
            state=self._state, started_unix_ms=self._started_ms, pulling=0, online=0
        )

    def watching(self) -> int:
        """How many follow what happens."""
        return len(self._methods.watching)

    async def _serve(self, begun: Callable[[], None], stop: asyncio.Event) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(settings.threads, "operator-store"))
        door = Door(
            settings.limits,
            self._counters,
            state=lambda: self._state,
            now_unix_ms=self._fleet.now_ms,
        )
        self._listener = listener = open_listener(
            settings.limits,
            self._folder,
            self._methods.handlers(),
            [door],
            client_certificates=True,
            service=SERVICE,
            clients=self._authority,
        )
        await listener.server.start()
        try:
            await asyncio.to_thread(listener.require_tls13)
            self._tell_where(listener.address)
            self._state = "serving"
            say(_LOG, "operator-started", address=listener.address)
            begun()
            looks = asyncio.ensure_future(self._look())
            await stop.wait()
            looks.cancel()
        finally:
            self._state = "stopping"
            self._bell.ring()  # who watches hears of it
            (self._folder / ADDRESS).unlink(missing_ok=True)
            await listener.server.stop(settings.grace_s)
            self._state = "stopped"
        say(_LOG, "operator-stopped")

    def _tell_where(self, address: str) -> None:
        """Write down where it serves, and by which of its names it can be believed there."""
        name = read_server_certificate(self._folder).hosts[0]
        durable.write_whole(
            self._folder / ADDRESS, json.dumps({"address": address, "name": name}) + "\n"
        )

    async def _look(self) -> None:
        """Look at the machine now and then; what can't be looked at is looked at again."""
        while True:
            try:
                await asyncio.to_thread(look_after, self._fleet, self._folder)
            except SordinoError as error:
                say(_LOG, "look-failed", logging.ERROR, why=str(error))
            await asyncio.sleep(self._settings.alarms_s)
