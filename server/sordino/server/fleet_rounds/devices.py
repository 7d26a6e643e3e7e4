"""Devices: enrolment by a one-time token, certificates, nonces, rest after failures, heads."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from sordino.core.contract import SignedHead
from sordino.core.errors import FleetError
from sordino.server.fleet_rounds.context import Fleet, require, tell
from sordino.server.fleet_rounds.endings import cancel_tasks
from sordino.server.store import Certificate, Device, Head, Nonce, Token, Writer

_LONGEST_REST_MS: Final = 86_400_000
GONE: Final = ("revoked", "left")


def make_token(fleet: Fleet, *, valid_ms: int) -> str:
    """A new token of enrolment. It is shown this once: only its hash is kept."""
    token = secrets.token_urlsafe(32)
    now = fleet.now_ms()
    row = Token(token_sha256=_hash(token), made_ms=now, expires_ms=now + valid_ms)
    with fleet.store.write("make-token") as tx:
        tx.add(row)
    return token


def enrol(
    fleet: Fleet, token: str, *, key_sha256: str, name: str = "", device_id: str = ""
) -> Device:
    """Use a token up, bound to the key of the device's certificate request.

    The same token with the same key gives the same device again. The certificate is then made and
    kept with `add_certificate`.

    Args:
        fleet: The fleet.
        token: As the operator gave it.
        key_sha256: Hash of the device's public key.
        name: For people.
        device_id: A name for a new device; empty: a random one.

    Raises:
        FleetError: ``bad-token``: unknown or expired. ``token-used``: by another key, or its
            certificate was used since.
    """
    now = fleet.now_ms()
    with fleet.store.write("enrol") as tx:
        known = tx.find(Token, _hash(token))
        if known is None or (not known.used_ms and known.expires_ms <= now):
            raise FleetError("bad-token", "unknown or expired: ask the operator for a new one")
        if known.used_ms:
            device = require(tx, Device, known.device_id)
            if known.key_sha256 != key_sha256 or device.last_seen_ms:
                raise FleetError("token-used", "ask the operator for a new one")
            return device
        device = Device(device_id=device_id or secrets.token_hex(8), name=name, enrolled_ms=now)
        tx.add(device)
        tx.change(known, used_ms=now, key_sha256=key_sha256, device_id=device.device_id)
        tell(fleet, tx, "device-enrolled", device_id=device.device_id, name=name)
    return device


def add_certificate(fleet: Fleet, certificate: Certificate) -> None:
    """Keep a device's certificate before it is handed out. Others of it stay good to their ends."""
    with fleet.store.write("add-certificate") as tx:
        if tx.find(Certificate, certificate.serial) is None:
            tx.add(certificate)


def check_certificate(fleet: Fleet, fingerprint: str) -> Device:
    """Whose certificate this is.

    Raises:
        FleetError: ``no-certificate``, ``certificate-expired`` or ``certificate-revoked``.
    """
    with fleet.store.read() as rows:
        found = rows.all(Certificate, fingerprint=fingerprint)
        device = require(rows, Device, found[0].device_id) if found else None
    if device is None:
        raise FleetError("no-certificate", "not one that this fleet has given out")
    if found[0].revoked_ms or device.state in GONE:
        raise FleetError("certificate-revoked", f"device {device.device_id} is {device.state}")
    if found[0].not_after_ms <= fleet.now_ms():
        raise FleetError("certificate-expired", "enrol again with a new token")
    return device


def use_nonce(fleet: Fleet, device_id: str, nonce: str, statement_sha256: str) -> bool:
    """Remember a nonce, over restarts. True: it is new. False: a retry of the same statement.

    Raises:
        FleetError: ``nonce-replayed``: it was used for another statement.
    """
    now = fleet.now_ms()
    with fleet.store.write("use-nonce") as tx:
        known = tx.find(Nonce, device_id, nonce)
        if known is None or known.expires_ms <= now:
            tx.remove(Nonce, below=("expires_ms", now + 1))
            require(tx, Device, device_id)
            tx.add(
                Nonce(
                    device_id=device_id,
                    nonce=nonce,
                    statement_sha256=statement_sha256,
                    expires_ms=now + fleet.limits.nonce_ms,
                )
            )
            return True
    if known.statement_sha256 != statement_sha256:
        raise FleetError("nonce-replayed", "sign anew, with a new nonce")
    return False


def hello(fleet: Fleet, device_id: str, *, software: str = "", capabilities: str = "{}") -> Device:
    """Write down that a device was heard of, and what it says it can (JSON)."""
    with fleet.store.write("hello") as tx:
        device = require(tx, Device, device_id)
        return tx.change(
            device, last_seen_ms=fleet.now_ms(), software=software, capabilities=capabilities
        )


def seen(fleet: Fleet, device_id: str) -> None:
    """Write down that a device was heard of."""
    with fleet.store.write("seen") as tx:
        tx.change(require(tx, Device, device_id), last_seen_ms=fleet.now_ms())


def keep_head(fleet: Fleet, device_id: str, head: SignedHead) -> None:
    """Keep a head of a device's ledger, whose signature was checked.

    Raises:
        FleetError: ``ledger-rolled-back``: it is behind, or beside, one that is kept. The device
            is suspect from then on, and isn't asked until an operator clears it.
    """
    with fleet.store.write("keep-head") as tx:
        rolled_back = not note_head(fleet, tx, device_id, head, newest=True)
    if rolled_back:
        raise FleetError("ledger-rolled-back", "restore the ledger that was in use, and stop here")


def note_head(fleet: Fleet, tx: Writer, device_id: str, head: SignedHead, *, newest: bool) -> bool:
    """Keep a head, or make the device suspect and say False.

    Args:
        fleet: The fleet.
        tx: The transaction.
        device_id: Whose.
        head: With a signature that was checked.
        newest: Whether it is the ledger's end. A receipt's entry may be older than a kept head.
    """
    receipt = head.receipt
    same = tx.find(Head, device_id, receipt.entry_index)
    behind = newest and receipt.entry_index < tx.largest(Head, "entry_index", device_id=device_id)
    if behind or (same is not None and same.entry_sha256 != receipt.ledger_head):
        device = require(tx, Device, device_id)
        if device.state not in GONE:
            tx.change(device, state="suspect")
        tell(fleet, tx, "ledger-rolled-back", device_id=device_id, entry=receipt.entry_index)
        return False
    if same is None:
        tx.add(
            Head(
                device_id=device_id,
                entry_index=receipt.entry_index,
                entry_sha256=receipt.ledger_head,
                public_key=head.public_key,
                signature=head.signature,
                received_ms=fleet.now_ms(),
            )
        )
    return True


def last_head(fleet: Fleet, device_id: str) -> Head | None:
    """The newest head that is kept of a device's ledger."""
    with fleet.store.read() as rows:
        found = rows.all(Head, order="-entry_index", limit=1, device_id=device_id)
    return found[0] if found else None


def leave(fleet: Fleet, device_id: str) -> Device:
    """Let a device go, as it wishes. Final, and the same a second time."""
    with fleet.store.write("leave") as tx:
        return dismiss(fleet, tx, device_id, "left")


def dismiss(fleet: Fleet, tx: Writer, device_id: str, state: str) -> Device:
    """Make a device `left` or `revoked`: its tasks are cancelled, its certificates are void."""
    device = require(tx, Device, device_id)
    if device.state in GONE:
        return device
    for certificate in tx.all(Certificate, device_id=device_id, revoked_ms=0):
        tx.change(certificate, revoked_ms=fleet.now_ms())
    cancel_tasks(tx, state, device_id=device_id)
    tell(fleet, tx, f"device-{state}", device_id=device_id)
    return tx.change(device, state=state)


def failed(fleet: Fleet, tx: Writer, device_id: str) -> None:
    """Count a failure of a device; after many in a row it rests, longer each time."""
    device = require(tx, Device, device_id)
    failures = device.failures + 1
    beyond = failures - fleet.limits.failures
    if beyond < 0 or device.state not in ("active", "resting"):
        tx.change(device, failures=failures)
        return
    rest = min(fleet.limits.rest_ms << min(beyond, 20), _LONGEST_REST_MS)
    tx.change(device, failures=failures, state="resting", rests_until_ms=fleet.now_ms() + rest)
    tell(fleet, tx, "device-resting", device_id=device_id, failures=failures, rest_ms=rest)


def succeeded(fleet: Fleet, tx: Writer, device_id: str) -> None:
    """A device's update was accepted: its failures are forgotten."""
    device = require(tx, Device, device_id)
    changes: dict[str, object] = {"failures": 0, "last_seen_ms": fleet.now_ms()}
    if device.state == "resting":
        changes |= {"state": "active", "rests_until_ms": 0}
    tx.change(device, **changes)


def at_hand(fleet: Fleet, tx: Writer) -> list[str]:
    """The devices that may be asked, by name; those that have rested enough among them."""
    for device in tx.all(Device, state="resting"):
        if device.rests_until_ms <= fleet.now_ms():
            tx.change(device, state="active")
    return [device.device_id for device in tx.all(Device, state="active")]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
