"""What a coordinator's service allows. docs/service.md says why each limit is what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sordino.core.errors import ConfigError, expected
from sordino.core.trust import require_loopback

MAX_CHUNK_BYTES: Final = 1 << 20
_NOT_ZERO = "> 0"


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Addresses and limits of the service `Fleet`. None of them changes a guarantee.

    Attributes:
        fleet_address: HOST:PORT of the listener that demands a device's certificate. Port 0: any.
        enroll_address: HOST:PORT of the listener for `Enroll`.
        insecure_loopback: No TLS, for tests on one machine; refuses every other address.
        passphrase: Of the authority's key.
        fleet_name: For people.
        certificate_days: A device's certificate is good for.
        heartbeat_ms: The interval of heartbeats.
        wait_ms: How long a `PullTask` may wait.
        tick_ms: A waiting stream says `still_here`, and its device is looked at anew, this often.
        chunk_bytes: Chunks of artefacts.
        calls_per_minute: Of a device.
        calls_at_once: Of a device.
        enrolments_per_minute: From an address.
        uploads_at_once: `PushUpdate` streams that are taken in at a time; further ones wait.
        upload_wait_s: How long they wait before they are sent away.
        message_s: How long a message may take to come: a request, or a chunk.
        bytes_per_s: What an upload must come to in the mean, once it is `message_s` old.
        connections: Of devices.
        enroll_connections: By the open listener.
        streams_per_connection: Calls at once by one connection.
        metadata_bytes: Headers of a call.
        handshake_s: How long TLS and HTTP/2 may take to begin.
        keepalive_s: A silent connection is pinged this often, and closed after as long without an
            answer.
        idle_s: A connection without a call is closed after this.
        age_s: A connection takes no new calls after this.
        age_grace_s: Its last calls may take so much longer; then it is closed. Above `wait_ms`.
        threads: That work on the store.
        check_threads: That check whole uploads.
        grace_s: How long calls may take to end when the service stops.
    """

    fleet_address: str
    enroll_address: str
    insecure_loopback: bool = False
    passphrase: bytes | None = field(default=None, repr=False)
    fleet_name: str = ""
    certificate_days: int = 30
    heartbeat_ms: int = 60_000
    wait_ms: int = 600_000
    tick_ms: int = 15_000
    chunk_bytes: int = 1 << 18
    calls_per_minute: int = 120
    calls_at_once: int = 8
    enrolments_per_minute: int = 120
    uploads_at_once: int = 64
    upload_wait_s: float = 60.0
    message_s: float = 60.0
    bytes_per_s: int = 1024
    connections: int = 2048
    enroll_connections: int = 128
    streams_per_connection: int = 16
    metadata_bytes: int = 8192
    handshake_s: float = 20.0
    keepalive_s: float = 60.0
    idle_s: float = 300.0
    age_s: float = 3600.0
    age_grace_s: float = 900.0
    threads: int = 16
    check_threads: int = 2
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(expected(name, value, _NOT_ZERO))
        if self.chunk_bytes > MAX_CHUNK_BYTES:
            raise ConfigError(expected("chunk_bytes", self.chunk_bytes, f"<= {MAX_CHUNK_BYTES}"))
        for name in ("fleet_address", "enroll_address"):
            address = getattr(self, name)
            _, colon, port = address.rpartition(":")
            if not (colon and port.isascii() and port.isdigit() and int(port) < 1 << 16):
                raise ConfigError(expected(name, address, "HOST:PORT"))
            if self.insecure_loopback:
                require_loopback(address)
