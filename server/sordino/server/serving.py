"""A coordinator as one process: the store, the services, and what drives its runs.

`sordino.core.trust.require_tls13` must have been called before this is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sordino.core.errors import TrustError, expected
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.enroll import read_server_certificate
from sordino.server.fleet_config import FleetConfig, new_run
from sordino.server.fleet_run import Drivers
from sordino.server.grid import Coordinator
from sordino.server.operator.commands import StartOrder
from sordino.server.operator.service import OperatorService
from sordino.server.service import FleetService
from sordino.server.status import StatusServer


@dataclass(frozen=True)
class Serving:
    """A coordinator that serves.

    Attributes:
        fleet: Rows and files.
        service: What devices call.
        operator: What operators call.
        status: What browsers call, and who collects figures; None: nobody.
    """

    fleet: fr.Fleet
    service: FleetService
    operator: OperatorService
    status: StatusServer | None = None

    @property
    def addresses(self) -> dict[str, str]:
        """Where each of its services is called."""
        known = {
            "enroll": self.service.enroll_address,
            "fleet": self.service.fleet_address,
            "operator": self.operator.address,
        }
        return known | ({"status": self.status.address} if self.status else {})

    @property
    def failed(self) -> bool:
        """Whether a service has come to an end that nobody asked for."""
        return self.service.figures().state == "stopped" or not self.operator.ready()


@contextmanager
def serving(
    config: FleetConfig,
    *,
    passphrase: bytes | None = None,
    shipped: Mapping[str, Path] | None = None,
    insecure_loopback: bool = False,
) -> Iterator[Serving]:
    """Serve a fleet while the block runs. What a crash cut short is finished first.

    Args:
        config: From `load_fleet`.
        passphrase: Of the authority's key.
        shipped: Bases that come with the program, by name.
        insecure_loopback: Devices call without TLS: for tests on one machine.

    Raises:
        StoreError: The folder is another coordinator's, or its store can't be used.
        TrustError: The authority's files can't be used, a port can't be had, or the certificate
            isn't for the fleet's hosts.
    """
    folder, bell = Path(config.folder), Bell()
    _check_hosts(folder, config.hosts)
    settings = config.service_settings(passphrase, insecure_loopback=insecure_loopback)
    with ExitStack() as stack:
        fleet = stack.enter_context(
            fr.open_fleet(folder, url=config.database or None, limits=config.limits, at=bell.hook())
        )
        work = fr.AdapterWork(fleet)
        fr.recover(fleet, lambda _: work)
        service = stack.enter_context(FleetService(fleet, bell, folder, settings, lambda _: work))
        coordinator = Coordinator(fleet=fleet, bell=bell, work=work, online=service.online)
        stack.enter_context(Drivers(coordinator, folder))

        def start(order: StartOrder) -> fr.NewRun:
            toml = order.settings.encode()
            return new_run(fleet, config, order.run_id, toml, order.cohort, shipped=shipped)

        operator = stack.enter_context(
            OperatorService(fleet, bell, folder, config.operator_settings(), start, service.online)
        )
        status = _status(config, fleet, service, operator)
        yield Serving(fleet, service, operator, stack.enter_context(status) if status else None)


def _status(
    config: FleetConfig, fleet: fr.Fleet, service: FleetService, operator: OperatorService
) -> StatusServer | None:
    settings = config.status_settings()
    if settings is None:
        return None
    return StatusServer(
        fleet,
        Path(config.folder),
        settings,
        figures=service.figures,
        online=service.online,
        ready=lambda: service.ready() and operator.ready(),
    )


def _check_hosts(folder: Path, hosts: tuple[str, ...]) -> None:
    has = read_server_certificate(folder).hosts
    if missing := sorted(set(hosts).difference(has)):
        todo = f"sordino ca renew-server {folder} " + " ".join(f"--host {host}" for host in hosts)
        raise TrustError(expected("hosts", missing[0], f"one of {', '.join(has)}", todo))
