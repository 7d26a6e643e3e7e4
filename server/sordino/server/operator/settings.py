"""What the operators' listener allows. None of it changes a guarantee."""

from __future__ import annotations

from dataclasses import dataclass

from sordino.core.errors import ConfigError, expected
from sordino.server.service.settings import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """Address and limits of the service `Operator`.

    Attributes:
        address: HOST:PORT. Port 0: any. Loopback by default: operators come by SSH, or it is said
            otherwise.
        tick_ms: A `Watch` looks at least this often, at the operator's own standing too.
        chunk_bytes: Chunks of an export.
        calls_per_minute: Of an operator.
        calls_at_once: Of an operator; each `Watch` is one.
        message_s: How long a message may take: a request, or the taking of an answer.
        connections: Of operators.
        alarms_s: How often the machine is looked at.
        threads: That work on the store.
        grace_s: How long calls may take to end when the service stops.
    """

    address: str = "127.0.0.1:0"
    tick_ms: int = 5_000
    chunk_bytes: int = 1 << 18
    calls_per_minute: int = 600
    calls_at_once: int = 16
    message_s: float = 60.0
    connections: int = 64
    alarms_s: float = 3_600.0
    threads: int = 4
    grace_s: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str) and value <= 0:
                raise ConfigError(expected(name, value, "> 0"))
        _ = self.limits  # refuses what a listener can't be given

    @property
    def limits(self) -> ServiceSettings:
        """The same as the devices' listener takes them."""
        return ServiceSettings(
            fleet_address=self.address,
            enroll_address=self.address,
            tick_ms=self.tick_ms,
            chunk_bytes=self.chunk_bytes,
            calls_per_minute=self.calls_per_minute,
            calls_at_once=self.calls_at_once,
            message_s=self.message_s,
            connections=self.connections,
            grace_s=self.grace_s,
        )
