"""Who makes a call, shown anew with each: by a certificate and a signed statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from sordino.core.contract import MAX_CLOCK_SKEW_MS, Opened, open_signed
from sordino.core.errors import ContractError, expected
from sordino.server.enroll.peers import Peer, check_peer
from sordino.server.enroll.records import MembershipStore

Transport = Mapping[str, Sequence[bytes]]
"""What TLS knows of a connection, as gRPC's `auth_context` tells it."""

NONCE_KEPT_MS: Final = 2 * MAX_CLOCK_SKEW_MS
"""A statement is taken from 10 minutes before its time to 10 minutes after."""

TLS13: Final = (b"TLSv1.3",)
"""What `Transport` says of the only version that is taken."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call whose maker is known.

    Attributes:
        peer: The device.
        opened: What it stated, and the method's own request.
        retry: Whether the very same statement came before: the answer must be the same.
    """

    peer: Peer
    opened: Opened
    retry: bool


def authenticate(
    data: bytes,
    *,
    method: str,
    transport: Transport,
    authorities: Sequence[x509.Certificate],
    store: MembershipStore,
    now_unix_ms: int,
) -> Call:
    """Check a call, from its connection to its nonce, which is remembered last.

    Args:
        data: The encoding of a `Signed`, as it came.
        method: The full path that was called.
        transport: Of its connection.
        authorities: Whose certificates are taken.
        store: Who is a member; which nonces came.
        now_unix_ms: The coordinator's clock.

    Raises:
        ContractError: ``old-tls``, as `check_peer`, as `open_signed`, or ``nonce-replayed``.
            Nothing is remembered then.
    """
    version = tuple(transport.get("ssl_tls_version", ()))
    if version != TLS13:
        raise ContractError("old-tls", expected("TLS version", list(version), "1.3"))
    pems = transport.get("x509_pem_cert", ())
    peer = check_peer(
        pems[0] if pems else None,
        authorities=authorities,
        store=store,
        now_unix_ms=now_unix_ms,
    )
    opened = open_signed(
        data, peer.key, device_id=peer.device_id, method=method, now_unix_ms=now_unix_ms
    )
    retry = _remember(store, peer, opened, now_unix_ms)
    if not peer.used:
        store.mark_used(peer.serial)
    return Call(peer=peer, opened=opened, retry=retry)


def _remember(store: MembershipStore, peer: Peer, opened: Opened, now_unix_ms: int) -> bool:
    """Remember a call's nonce once. Returns whether the same statement came with it before."""
    before = store.remember_nonce(
        peer.device_id,
        opened.statement.nonce,
        opened.statement_sha256,
        now_unix_ms + NONCE_KEPT_MS,
    )
    if before not in {None, opened.statement_sha256}:
        raise ContractError("nonce-replayed", "the nonce came before, with another statement")
    return before is not None
