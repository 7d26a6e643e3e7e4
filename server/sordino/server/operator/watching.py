"""What happened, as an operator is told it: the store's events, each as what it is about stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sordino.protos.v1 import operator_pb2
from sordino.server.fleet_rounds.context import require
from sordino.server.operator.alarms import alarm_of
from sordino.server.operator.views import View
from sordino.server.store import Device, Event, Round, Run

_MOST: Final = 256
"""Events that are looked at in one go."""

_SECRET: Final = frozenset({"update-rejected", "device-resting"})
"""Under central trust they would tell who was asked."""


@dataclass(frozen=True, kw_only=True)
class News:
    """A part of what happened.

    Attributes:
        events: To be told.
        number: Of the last that was looked at.
        more: Whether there is more to look at already.
    """

    events: Sequence[operator_pb2.Event]
    number: int
    more: bool


def news(view: View, after: int, run_id: str = "") -> News:
    """What happened after a number, the oldest first.

    Args:
        view: The fleet.
        after: The number.
        run_id: Only of this run; empty: of all, and of the fleet.
    """
    rows = view.rows.all(Event, order="number", after=after, limit=_MOST)
    wanted = [row for row in rows if run_id in ("", row.run_id)]
    events = [event for row in wanted if (event := event_of(view, row)) is not None]
    last = rows[-1].number if rows else after
    return News(events=events, number=last, more=len(rows) == _MOST)


def event_of(view: View, row: Event) -> operator_pb2.Event | None:
    """An event with what it is about, as that stands now; None: it isn't for an operator."""
    event = operator_pb2.Event(number=row.number, at_unix_ms=row.at_ms)
    alarm = alarm_of(row)
    if alarm is not None:
        event.alarm.CopyFrom(alarm)
    elif row.kind in _SECRET and view.secret:
        return None
    elif row.device_id:
        event.device.CopyFrom(view.device(require(view.rows, Device, row.device_id)))
    elif row.round and row.kind.startswith("round-"):
        found = require(view.rows, Round, row.run_id, row.round)
        if not found.opened_ms:
            return None  # a number that was given up before anything came of it
        event.round.CopyFrom(view.round(found))
    else:
        event.run.CopyFrom(view.run(require(view.rows, Run, row.run_id)))
    return event
