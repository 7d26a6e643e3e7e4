"""Devices: heard of, at rest after failures, gone; and the heads of their ledgers."""

from __future__ import annotations

from typing import Final

from sordino.core.contract import SignedHead
from sordino.core.errors import ContractError
from sordino.server.fleet_rounds.context import Fleet, require, tell
from sordino.server.fleet_rounds.endings import cancel_tasks
from sordino.server.store import Device, Head, Reader, Writer
from sordino.server.store.records import DeviceState

_LONGEST_REST_MS: Final = 86_400_000
GONE: Final = ("revoked", "left")


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
        ContractError: ``ledger-rolled-back``: it is behind, or beside, one that is kept. The device
            is suspect from then on, and isn't asked until an operator clears it.
    """
    with fleet.store.write("keep-head") as tx:
        rolled_back = not note_head(fleet, tx, device_id, head, newest=True)
    if rolled_back:
        raise ContractError(
            "ledger-rolled-back", "restore the ledger that was in use, and stop here"
        )


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


def leave(fleet: Fleet, device_id: str, reason: str = "") -> Device:
    """Let a device go, as it wishes. Final, and the same a second time."""
    with fleet.store.write("leave") as tx:
        return dismiss(fleet, tx, device_id, "left", fleet.now_ms(), reason)


def dismiss(
    fleet: Fleet, tx: Writer, device_id: str, state: DeviceState, at_ms: int, because: str
) -> Device:
    """Make a device `left` or `revoked`, once: none of its certificates is good any more.

    Its unfinished tasks are cancelled; what it answered stays.
    """
    device = require(tx, Device, device_id)
    if device.state in GONE:
        return device
    cancel_tasks(tx, state, device_id=device_id)
    tell(fleet, tx, f"device-{state}", device_id=device_id, because=because)
    return tx.change(device, state=state, gone_ms=at_ms, gone_because=because)


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


def at_hand(fleet: Fleet, rows: Reader) -> list[str]:
    """The devices that may be asked, by name; those that have rested enough among them."""
    able = rows.all(Device, state=("active", "resting"))
    now = fleet.now_ms()
    return [d.device_id for d in able if d.state == "active" or d.rests_until_ms <= now]


def wake(tx: Writer, device_id: str) -> bool:
    """Make a device that has rested active; False: it may not be asked any more."""
    device = require(tx, Device, device_id)
    if device.state == "resting":
        tx.change(device, state="active")
    return device.state in ("active", "resting")
