"""The two listeners: gRPC's own limits, the ports, and the proof that they take nothing old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509

from sordino.core.errors import TrustError
from sordino.core.trust import takes_tls12
from sordino.server.enroll.listener import server_credentials
from sordino.server.service.settings import ServiceSettings

SERVICE: Final = "sordino.v1.Fleet"
_MOST_MESSAGE: Final = 1 << 21  # above the contract's largest, so that the gate gives the word
_MOST_ENROLMENT: Final = 1 << 15
_PROBED: Final = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}  # noqa: S104 - where to reach them


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A gRPC server with one port."""

    server: Any
    address: str

    def require_tls13(self) -> None:
        """Try TLS 1.2 on the own port.

        Raises:
            TrustError: It is agreed to.
        """
        host, _, port = self.address.rpartition(":")
        if takes_tls12(_PROBED.get(host, host.strip("[]")), int(port)):
            raise TrustError(
                f"{self.address} agrees to TLS 1.2: call require_tls13() before grpc is imported"
            )


def open_listener(
    settings: ServiceSettings,
    folder: Path,
    handlers: Mapping[str, Any],
    interceptors: list[Any],
    *,
    client_certificates: bool,
    service: str = SERVICE,
    clients: x509.Certificate | None = None,
) -> Listener:
    """Bind one listener; it serves once its server is started. On the running event loop.

    Args:
        settings: Address and limits.
        folder: The authority's.
        handlers: The methods.
        interceptors: Outermost first.
        client_certificates: Whether it is the fleet's; else it is that of `Enroll`.
        service: Whose methods they are.
        clients: Who certified those that may call; None: the fleet's authority.

    Raises:
        TrustError: The port is taken, the host isn't this machine's, or there is no certificate.
    """
    address = settings.fleet_address if client_certificates else settings.enroll_address
    server = grpc.aio.server(
        interceptors=interceptors,
        options=_options(settings, open_to_all=not client_certificates),
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    try:
        if settings.insecure_loopback:
            port = server.add_insecure_port(address)
        else:
            credentials = server_credentials(
                folder, client_certificates=client_certificates, clients=clients
            )
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise TrustError(
            f"can't listen on {address}: is another coordinator running, or is it not this "
            "machine's address?"
        ) from error
    host = address.rpartition(":")[0]
    return Listener(server=server, address=f"{host}:{port}")


def _options(settings: ServiceSettings, *, open_to_all: bool) -> list[tuple[str, int]]:
    message = _MOST_ENROLMENT if open_to_all else _MOST_MESSAGE
    connections = settings.enroll_connections if open_to_all else settings.connections
    keepalive_ms = int(settings.keepalive_s * 1000)
    return [
        ("grpc.so_reuseport", 0),  # a second coordinator can't listen on the same port
        ("grpc.http2.bdp_probe", 0),  # windows stay small: what isn't read waits at the device
        ("grpc.max_receive_message_length", message),
        ("grpc.max_metadata_size", settings.metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.metadata_bytes),
        ("grpc.max_concurrent_streams", settings.streams_per_connection),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", int(settings.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", int(settings.idle_s * 1000)),
        ("grpc.max_connection_age_ms", int(settings.age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.age_grace_s * 1000)),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive_ms // 4),
        ("grpc.http2.max_ping_strikes", 3),
    ]
