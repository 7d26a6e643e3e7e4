"""gRPC's server credentials, which follow `server.pem` without a restart.

Two listeners: gRPC's Python either demands a client certificate or doesn't ask for one, and a
device that enrols has none yet. The one for `Enroll` is open; what comes by it can call nothing
else, for want of a certificate.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from sordino.core.errors import TrustError
from sordino.core.trust import public_pem
from sordino.server.enroll.files import SERVER, read_server_certificate

_LOG = logging.getLogger(__name__)


def server_credentials(
    folder: Path, *, client_certificates: bool, clients: x509.Certificate | None = None
) -> Any:
    """Credentials for one listener.

    At each handshake the file is looked at, and read if it was replaced. A file that can't be
    believed is logged, and the certificate that was shown before stays.

    Args:
        folder: The authority's.
        client_certificates: Whether a client must have a certificate of the authority; False for
            the listener of `Enroll` alone.
        clients: That authority; None: the fleet's own. Operators have another.

    Returns:
        `grpc.ServerCredentials`.

    Raises:
        TrustError: There is no certificate to begin with.
    """
    follower = _Follower(folder, clients)
    return grpc.dynamic_ssl_server_credentials(
        follower.configuration(),
        follower.next_configuration,
        require_client_authentication=client_certificates,
    )


class _Follower:
    """What one listener shows, and whether there is something newer."""

    def __init__(self, folder: Path, clients: x509.Certificate | None) -> None:
        self._folder = folder
        self._clients = clients
        self._stamp = _stamp(folder)
        self.present = read_server_certificate(folder)

    def next_configuration(self) -> Any:
        """The configuration to change to, or None. Called by gRPC, to which nothing is raised."""
        try:
            stamp = _stamp(self._folder)
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            self.present = read_server_certificate(self._folder)
        except (OSError, TrustError) as error:
            _LOG.error("keeping the present server certificate: %s", error)
            return None
        ends = self.present.certificate.not_valid_after_utc.isoformat()
        _LOG.info("a new server certificate, good until %s", ends)
        return self.configuration()

    def configuration(self) -> Any:
        """What is shown at present, and whose clients are let in."""
        return grpc.ssl_server_certificate_configuration(
            [(self.present.key_pem, self.present.chain_pem)],
            public_pem(self._clients or self.present.authority),
        )


def _stamp(folder: Path) -> tuple[int, int]:
    try:
        found = (folder / SERVER).stat()
    except FileNotFoundError as error:
        raise TrustError(f"can't read {folder / SERVER}: sordino ca renew-server") from error
    return found.st_ino, found.st_mtime_ns
