"""The loopback exception, which no address but loopback's own digits can use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sordino.core.errors import TrustError
from sordino.core.trust import require_loopback

GOOD = {
    "127.0.0.1:0": ("127.0.0.1", 0),
    "127.0.0.1:65535": ("127.0.0.1", 65535),
    "127.255.3.4:9": ("127.255.3.4", 9),
    "[::1]:443": ("::1", 443),
}
BAD = (
    "",
    ":443",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:65536",
    "127.0.0.1:-1",
    "127.0.0.1:4 4",
    "127.0.0.1:٤",
    "127.1:443",
    "0177.0.0.1:443",
    "2130706433:443",
    "0.0.0.0:443",
    "[::]:443",
    "::1:443",
    "[127.0.0.1]:443",
    "[::ffff:127.0.0.1]:443",
    "[::1%eth0]:443",
    "10.0.0.1:443",
    "128.0.0.1:443",
    "192.168.1.1:443",
    "localhost:443",
    "127.0.0.1.example:443",
    "127.0.0.1:443,10.0.0.1:443",
    "ipv4:127.0.0.1:443",
    "dns:///127.0.0.1:443",
    "unix:/run/sordino.sock",
    "127.0.0.1:443\n",
    " 127.0.0.1:443",
)


@pytest.mark.parametrize("address", GOOD)
def test_loopback_is_allowed(address: str) -> None:
    assert require_loopback(address) == GOOD[address]


@pytest.mark.parametrize("address", BAD)
def test_nothing_else_is(address: str) -> None:
    with pytest.raises(TrustError, match="insecure-loopback"):
        require_loopback(address)


def test_neither_end_of_trust_needs_grpc_to_be_imported() -> None:
    # `require_tls13` comes before grpc, so what holds it must not bring grpc along.
    code = (
        "import sys; from sordino.core.trust import require_tls13; import sordino.server.enroll;"
        "require_tls13(); require_tls13(); print('grpc' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert ran.stdout.strip() == "False"
