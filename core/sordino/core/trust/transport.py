"""TLS 1.3 where gRPC's Python can't be told so, first contact, and the loopback exception."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import sys
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.constant_time import bytes_eq

from sordino.core.errors import ContractError, TrustError, expected

CIPHERS: Final = "GRPC_SSL_CIPHER_SUITES"
_NO_OLD_CIPHER = "ECDHE-RSA-AES256-GCM-SHA384"


def require_tls13() -> None:
    """Leave this process' gRPC no way to agree on TLS 1.2. To be called before grpc is imported.

    grpcio has no setting for it. It has one for the cipher suites of TLS 1.2, which leaves those of
    1.3 alone: we allow only a suite for RSA certificates, which a fleet with keys on P-256 has
    none of. It is read when grpc is imported, and later changes are silently too late; so a
    coordinator tries its own port with `takes_tls12` before it serves, and refuses calls by the
    version that gRPC tells of their connection.

    Raises:
        TrustError: grpc was imported already, under other suites.
    """
    if "grpc" in sys.modules and os.environ.get(CIPHERS) != _NO_OLD_CIPHER:
        raise TrustError(
            f"grpc was imported before {CIPHERS} was set, so it would take TLS 1.2: "
            f"start the process with {CIPHERS}={_NO_OLD_CIPHER}"
        )
    os.environ[CIPHERS] = _NO_OLD_CIPHER


def takes_tls12(host: str, port: int, *, timeout_s: float = 10.0) -> bool:
    """Whether a server agrees to TLS 1.2, which no coordinator should.

    Raises:
        OSError: There is no answer at all: that says nothing of TLS.
    """
    context = _unverified(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    with (
        socket.create_connection((host, port), timeout_s) as plain,
        context.wrap_socket(plain, do_handshake_on_connect=False) as wrapped,
    ):
        try:
            wrapped.do_handshake()
        except (ssl.SSLError, ConnectionError):
            # A server that agreed to 1.2 and only then missed our certificate has chosen a suite.
            return wrapped.cipher() is not None
        return True


def fetch_authority(
    host: str, port: int, authority_sha256: bytes, *, timeout_s: float = 30.0
) -> x509.Certificate:
    """Ask a coordinator for the fleet's authority, and believe it by its fingerprint alone.

    Nothing is sent but a TLS handshake; whoever answers learns no secret. Every later connection is
    gRPC's, under this authority, with the host's name checked.

    Args:
        host: Name or address of the coordinator.
        port: Its port; the one for enrolment or the other.
        authority_sha256: From the token.
        timeout_s: For the connection and for each answer.

    Raises:
        ContractError: ``wrong-authority``: the coordinator shows no certificate of that hash.
        TrustError: There is no answer, or it isn't TLS 1.3.
    """
    context = _unverified(ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            chain = _chain(wrapped)
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise TrustError(
            f"no TLS 1.3 with {host}:{port} ({why}): check the address, and that the "
            "coordinator runs"
        ) from error
    for certificate in chain:
        if bytes_eq(certificate.fingerprint(hashes.SHA256()), authority_sha256):
            return certificate
    raise ContractError(
        "wrong-authority",
        f"{host}:{port} isn't the coordinator that the token was made for: expected an authority "
        f"with SHA-256 {authority_sha256.hex()}. Nothing was sent to it",
    )


def require_loopback(address: str) -> tuple[str, int]:
    """Allow an address without TLS only where no network can reach it.

    Args:
        address: ``127.0.0.1:PORT`` (any of 127.0.0.0/8) or ``[::1]:PORT``, written as digits: what
            a name stands for is somebody else's to say.

    Returns:
        Host and port.

    Raises:
        TrustError: It is anything else.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        parsed = ipaddress.ip_address(bare)
    except ValueError:
        parsed = ipaddress.IPv4Address(0)
    bracketed = bare != host
    loopback = parsed in ipaddress.ip_network("127.0.0.0/8") or parsed == ipaddress.IPv6Address(1)
    written = port.isascii() and port.isdigit() and int(port) < 1 << 16
    if not (loopback and written and bracketed == (parsed.version == 6)):
        required = "= 127.0.0.1:PORT or [::1]:PORT"
        todo = "--insecure-loopback is for tests on one machine; leave it out"
        raise TrustError(expected("address", address, required, todo))
    return str(parsed), int(port)


def _unverified(lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that believes nobody: what it is shown is checked by hand, or not used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version, context.maximum_version = lowest, highest
    context.set_alpn_protocols(["h2"])
    return context


def _chain(wrapped: ssl.SSLSocket) -> list[x509.Certificate]:
    """All certificates that the other side showed.

    Python has a public way to them from 3.13 on; before, the same call is on a private attribute.
    """
    public: Any = getattr(wrapped, "get_unverified_chain", None)
    if public is not None:
        return [x509.load_der_x509_certificate(der) for der in public()]
    inner: Any = getattr(wrapped, "_sslobj")  # noqa: B009 - mypy doesn't know it
    shown = inner.get_unverified_chain() or ()
    pems = [certificate.public_bytes() for certificate in shown]
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in pems]
