"""What somebody should look at: from events of rounds and devices, and from a look at the machine.

docs/operators.md says what to do about each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sordino.core.trust import not_after_ms
from sordino.protos.v1 import operator_pb2
from sordino.server.enroll import read_server_certificate
from sordino.server.enroll.authority import DAY_MS
from sordino.server.fleet_rounds import Fleet
from sordino.server.fleet_rounds.context import tell
from sordino.server.store import Event

ENDS_SOON_MS: Final = 14 * DAY_MS
"""A certificate that ends within two weeks is worth an alarm."""

ALARM: Final = "alarm-"
"""What an event's kind begins with that is nothing but an alarm."""

KINDS: Final = ("ledger-rolled-back", "run-failed")
"""Events of rounds and devices that are alarms too."""

_AGAIN_MS: Final = DAY_MS


def alarm_of(row: Event) -> operator_pb2.Alarm | None:
    """The alarm that an event is, if it is one."""
    detail = json.loads(row.detail)
    if row.kind == "ledger-rolled-back":
        message = f"the ledger of {row.device_id} is behind entry {detail['entry']}, which it had"
        return _alarm(row, "ledger-rolled-back", f"{message}: it isn't asked until it is cleared")
    if row.kind == "run-failed":
        message = f"{row.run_id} failed after its last rounds did: look why, then resume it"
        return _alarm(row, detail["reason"], message)
    if row.kind.startswith(ALARM):
        return _alarm(row, row.kind.removeprefix(ALARM), detail["message"])
    return None


def look_after(fleet: Fleet, folder: Path) -> None:
    """Write down what is wrong with the machine or about to be, each once a day at most.

    Args:
        fleet: The fleet.
        folder: With the coordinator's certificate.
    """
    now = fleet.now_ms()
    for reason, message in found(fleet, folder):
        with fleet.store.write("raise-alarm") as tx:
            last = tx.all(Event, order="-number", limit=1, kind=ALARM + reason)
            if not last or last[0].at_ms + _AGAIN_MS <= now:
                tell(fleet, tx, ALARM + reason, message=message)


def found(fleet: Fleet, folder: Path) -> Iterator[tuple[str, str]]:
    """What is wrong now: a word and a sentence each."""
    free, spare = fleet.artefacts.free_bytes(), fleet.limits.spare_bytes
    if free <= 2 * spare:
        yield "disk-full", f"{free} bytes are left; updates are refused below {spare}"
    certificate = read_server_certificate(folder).certificate
    left = not_after_ms(certificate) - fleet.now_ms()
    if left <= ENDS_SOON_MS:
        ends = certificate.not_valid_after_utc
        yield "certificate-ends", f"the coordinator's ends on {ends:%F}: sordino ca renew-server"


def _alarm(row: Event, reason: str, message: str) -> operator_pb2.Alarm:
    return operator_pb2.Alarm(
        reason=reason, message=message, run_id=row.run_id, device_id=row.device_id
    )
