"""Which state may follow which: of runs, rounds, tasks and uploads.

The diagrams are in docs/coordinator.md. A transition that is asked for twice changes nothing the
second time; one that isn't in these tables is a fault of the program, and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from sordino.core.errors import StoreError
from sordino.server.store import Round, Run, Task, Upload, Writer

MOVES: Final[dict[type[Any], Mapping[str, tuple[str, ...]]]] = {
    Run: {
        "running": ("paused", "done", "stopped", "failed"),
        "paused": ("running", "stopped"),
        "done": ("running", "stopped"),
        "failed": ("running", "stopped"),
        "stopped": (),
    },
    Round: {
        "planned": ("open", "given-up"),
        "open": ("collecting", "closing", "failed", "given-up"),
        "collecting": ("closing", "failed", "given-up"),
        "closing": ("aggregated", "failed", "given-up"),
        "aggregated": ("published", "given-up"),
        "published": (),
        "failed": (),
        "given-up": (),
    },
    Task: {
        "offered": ("taken", "declined", "expired", "cancelled"),
        "taken": ("answered", "rejected", "declined", "expired", "cancelled"),
        "answered": (),
        "rejected": (),
        "declined": (),
        "expired": (),
        "cancelled": (),
    },
    Upload: {
        "open": ("checking", "discarded"),
        "checking": ("accepted", "rejected", "discarded"),
        "accepted": (),
        "rejected": (),
        "discarded": (),
    },
}

StatefulT = TypeVar("StatefulT", Run, Round, Task, Upload)


def move(tx: Writer, row: StatefulT, state: str, **changes: object) -> StatefulT:
    """Bring a row to a state, with what else changes, and give it as it then is.

    Raises:
        StoreError: That state can't follow.
    """
    if state not in MOVES[type(row)][row.state]:
        kind = type(row).__name__.lower()
        raise StoreError(f"a {kind} in state {row.state} can't become {state}")
    return tx.change(row, state=state, **changes)
