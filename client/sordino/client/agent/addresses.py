"""Where a coordinator is: one address for enrolment, one for the fleet."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sordino.core.errors import TrustError, expected

MOST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A host and a port.

    Attributes:
        host: A name or an address, without brackets.
        port: From 1.
    """

    host: str
    port: int

    def __str__(self) -> str:
        try:
            v6 = ipaddress.ip_address(self.host).version == 6
        except ValueError:
            v6 = False
        return f"[{self.host}]:{self.port}" if v6 else f"{self.host}:{self.port}"

    def next_port(self) -> Address:
        """The same host, one port on: where the fleet's listener is unless told otherwise."""
        return parse_address(str(Address(self.host, self.port + 1)))


def parse_address(text: str) -> Address:
    """Read ``host:port``; an IPv6 address stands in brackets.

    >>> parse_address("coordinator.example:8443").next_port()
    Address(host='coordinator.example', port=8444)

    Raises:
        TrustError: It is something else.
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    ok = bare and (":" not in bare or bare != host) and port.isascii() and port.isdigit()
    if not ok or not 1 <= int(port) <= MOST_PORT:
        raise TrustError(expected("the coordinator's address", text, "as host:port"))
    return Address(bare, int(port))
