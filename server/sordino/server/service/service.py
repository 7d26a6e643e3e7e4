"""The service `Fleet` as one object: its thread, its event loop, its two listeners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import grpc

from sordino.core import contract
from sordino.core.errors import StoreError
from sordino.server.bell import Bell
from sordino.server.enroll import load_authority
from sordino.server.enroll.interceptor import Authentication, of_connection
from sordino.server.fleet_rounds import Fleet, Members, Work
from sordino.server.logs import say
from sordino.server.looping import LoopThread
from sordino.server.service.door import Door
from sordino.server.service.figures import Counters, ServiceFigures, ServiceState
from sordino.server.service.listeners import Listener, open_listener
from sordino.server.service.loopback import stated_transport
from sordino.server.service.membership import Membership
from sordino.server.service.presence import Presence
from sordino.server.service.settings import ServiceSettings
from sordino.server.service.shared import Shared
from sordino.server.service.uploads import Uploads
from sordino.server.service.watch import Watch
from sordino.server.service.work import Tasks
from sordino.server.store import Run

_FORGET_S: Final = 60.0
_LOG = logging.getLogger(__name__)


class FleetService:
    """Serves a fleet's devices from `__enter__` to `stop` or `__exit__`, in a thread of its own.

    `sordino.core.trust.require_tls13` must have been called before grpc was imported: the service
    tries its own ports, and doesn't serve where they take anything older.

    Args:
        fleet: Rows and files.
        bell: Rung when they change.
        ca_folder: The authority's.
        settings: Addresses and limits.
        work_of: The work of a run, by its name; called in threads.
    """

    def __init__(
        self,
        fleet: Fleet,
        bell: Bell,
        ca_folder: Path,
        settings: ServiceSettings,
        work_of: Callable[[str], Work],
    ) -> None:
        self._folder, self._settings = ca_folder, settings
        self._shared = Shared(
            fleet=fleet,
            members=Members(fleet),
            authority=load_authority(ca_folder, settings.passphrase),
            settings=settings,
            work_of=work_of,
            counters=Counters(),
            presence=Presence(settings.heartbeat_ms),
        )
        self._watch = Watch(fleet, bell, self._shared.presence, settings.tick_ms / 1000)
        self._state: ServiceState = "starting"
        self._started_ms = fleet.now_ms()
        self._thread = LoopThread("fleet-service", self._serve)
        self._grace_s = settings.grace_s
        self._listeners: list[Listener] = []

    def __enter__(self) -> FleetService:
        """Serve.

        Raises:
            TrustError: A port can't be had, or takes TLS 1.2.
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
        self.stop()

    @property
    def fleet_address(self) -> str:
        """HOST:PORT of the listener that demands certificates."""
        return self._listeners[0].address

    @property
    def enroll_address(self) -> str:
        """HOST:PORT of the listener for `Enroll`."""
        return self._listeners[1].address

    def online(self) -> frozenset[str]:
        """The devices that could be asked now: they wait for work, or their heart was heard."""
        return self._shared.presence.online()

    def ready(self) -> bool:
        """Whether calls are taken and the store can be read."""
        if self._state != "serving" or not self._thread.is_alive():
            return False
        try:
            with self._shared.fleet.store.read() as rows:
                rows.count(Run)
        except StoreError:
            return False
        return True

    def figures(self) -> ServiceFigures:
        """What was counted until now."""
        presence = self._shared.presence
        return self._shared.counters.snapshot(
            state=self._state,
            started_unix_ms=self._started_ms,
            pulling=presence.pulling(),
            online=len(presence.online()),
        )

    def stop(self, grace_s: float | None = None) -> None:
        """Take no more calls, let those under way end, and wait for that. Again: nothing.

        Args:
            grace_s: How long they may take; None: as the settings say.
        """
        if grace_s is not None:
            self._grace_s = grace_s
        self._thread.stop()

    # --- in the thread -------------------------------------------------------------------------

    async def _serve(self, begun: Callable[[], None], stop: asyncio.Event) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(settings.threads, "fleet-store"))
        with ThreadPoolExecutor(settings.check_threads, "fleet-check") as checking:
            uploads = Uploads(self._shared, checking)
            try:
                await self._begin(uploads)
                begun()
                tasks = [asyncio.ensure_future(work) for work in (self._watch.run(), self._tidy())]
                await stop.wait()
                self._state = "stopping"
                say(_LOG, "service-stopping")
                for task in tasks:
                    task.cancel()
            finally:
                self._shared.presence.end_all("stopping")
                stops = (each.server.stop(self._grace_s) for each in self._listeners)
                await asyncio.gather(*stops)
                await uploads.settle()
                self._state = "stopped"
        say(_LOG, "service-stopped")

    async def _begin(self, uploads: Uploads) -> None:
        handlers = _handlers(Membership(self._shared), Tasks(self._shared), uploads)
        now, plain = self._shared.fleet.now_ms, self._settings.insecure_loopback
        door = Door(
            self._settings, self._shared.counters, state=lambda: self._state, now_unix_ms=now
        )
        inner = Authentication(
            self._shared.members,
            [self._shared.authority.certificate],
            now_unix_ms=now,
            first_message_s=self._settings.message_s,
            transport_of=stated_transport(self._shared.members) if plain else of_connection,
        )
        for client_certificates in (True, False):
            listener = open_listener(
                self._settings,
                self._folder,
                handlers,
                [door, inner],
                client_certificates=client_certificates,
            )
            self._listeners.append(listener)
            await listener.server.start()
            if not plain:
                await asyncio.to_thread(listener.require_tls13)
        self._state = "serving"
        say(_LOG, "service-started", fleet=self.fleet_address, enroll=self.enroll_address)

    async def _tidy(self) -> None:
        """Forget nonces whose time is over, now and then."""
        while True:
            try:
                await asyncio.to_thread(
                    self._shared.members.forget_nonces, self._shared.fleet.now_ms()
                )
            except StoreError as error:
                say(_LOG, "tidying-failed", logging.ERROR, why=str(error))
            await asyncio.sleep(_FORGET_S)


def _handlers(membership: Membership, tasks: Tasks, uploads: Uploads) -> dict[str, Any]:
    """The methods by name. They are given bytes that nobody has parsed."""
    single = grpc.unary_unary_rpc_method_handler
    several = grpc.unary_stream_rpc_method_handler
    made = {
        "Enroll": (single, membership.enroll),
        "Renew": (single, membership.renew),
        "Hello": (single, membership.hello),
        "PullTask": (several, tasks.pull),
        "Acknowledge": (single, tasks.acknowledge),
        "Decline": (single, tasks.decline),
        "FetchArtefact": (several, tasks.fetch),
        "OfferUpload": (single, uploads.offer),
        "PushUpdate": (grpc.stream_unary_rpc_method_handler, uploads.push),
        "Heartbeat": (single, membership.heartbeat),
        "Leave": (single, membership.leave),
    }
    return {
        name: make(behaviour, response_serializer=contract.to_bytes)
        for name, (make, behaviour) in made.items()
    }
