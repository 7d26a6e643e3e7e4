"""Listings, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from google.protobuf.message import Message

from sordino.core.errors import ContractError, expected
from sordino.protos.v1 import operator_pb2
from sordino.server.fleet_rounds.context import require
from sordino.server.operator.views import View, head_message
from sordino.server.store import Accepted, Device, Round, Run

RowT = TypeVar("RowT")
MessageT = TypeVar("MessageT", bound=Message)

_USUAL: Final = 100
_MOST_BYTES: Final = 3 << 20
"""A page ends before gRPC's own limit of a message."""


def list_runs(view: View, request: operator_pb2.ListRunsRequest) -> operator_pb2.ListRunsResponse:
    """All runs, newest first."""
    runs = sorted(view.rows.all(Run, measures=""), key=lambda run: (-run.started_ms, run.run_id))
    made, rest = _page(request.page, runs, lambda run: run.run_id, view.run)
    return operator_pb2.ListRunsResponse(runs=made, next=rest)


def list_rounds(
    view: View, request: operator_pb2.ListRoundsRequest
) -> operator_pb2.ListRoundsResponse:
    """A run's rounds that were opened, newest first."""
    run = require(view.rows, Run, request.run_id)
    rows = view.rows.all(Round, order="-round", run_id=run.run_id)
    opened = [row for row in rows if row.opened_ms]
    made, rest = _page(request.page, opened, lambda row: str(row.round), view.round)
    return operator_pb2.ListRoundsResponse(rounds=made, next=rest)


def list_devices(
    view: View, request: operator_pb2.ListDevicesRequest
) -> operator_pb2.ListDevicesResponse:
    """Devices by name, those in some states perhaps."""
    names = [operator_pb2.DeviceState.Name(state) for state in request.states]
    wanted = {name.removeprefix("DEVICE_STATE_").lower() for name in names}
    rows = sorted(view.rows.all(Device), key=lambda row: row.device_id)
    rows = [row for row in rows if not wanted or view.standing(row) in wanted]
    made, rest = _page(request.page, rows, lambda row: row.device_id, view.device)
    return operator_pb2.ListDevicesResponse(devices=made, next=rest)


def list_heads(
    view: View, request: operator_pb2.ListLedgerHeadsRequest
) -> operator_pb2.ListLedgerHeadsResponse:
    """The newest head of each device, or of those that answered a run."""
    heads = heads_of(view, request.run_id)
    made, rest = _page(request.page, heads, lambda head: head.device_id, lambda head: head)
    return operator_pb2.ListLedgerHeadsResponse(heads=made, next=rest)


def heads_of(view: View, run_id: str) -> list[operator_pb2.DeviceLedgerHead]:
    """The newest head of each device that has one, by device.

    Args:
        view: The fleet.
        run_id: Only of devices that answered this run; empty: of all.

    Raises:
        ContractError: ``not-permitted``: under central trust; ``unknown-run``.
    """
    view.require_heads()
    if run_id:
        looks = view.looks_of(view.run_called(run_id))
        both = (run_id, looks.run_id) if looks else (run_id,)
        names = {row.device_id for row in view.rows.all(Accepted, run_id=both)}
    else:
        names = {row.device_id for row in view.rows.all(Device)}
    return [
        operator_pb2.DeviceLedgerHead(
            device_id=name, head=head_message(head), received_at_unix_ms=head.received_ms
        )
        for name in sorted(names)
        if (head := view.last_head(name)) is not None
    ]


def _page(
    page: operator_pb2.Page,
    rows: Sequence[RowT],
    name: Callable[[RowT], str],
    make: Callable[[RowT], MessageT],
) -> tuple[list[MessageT], str]:
    """A page of some rows, and the token of the next: the name of the last that was given.

    Raises:
        ContractError: ``bad-value``: the token is none of this listing.
    """
    begin = 0
    if page.token:
        names = [name(row) for row in rows]
        if page.token not in names:
            raise ContractError(
                "bad-value", expected("token", page.token, "as a page gave it", "begin anew")
            )
        begin = names.index(page.token) + 1
    made: list[MessageT] = []
    size = 0
    for row in rows[begin : begin + (page.size or _USUAL)]:
        message = make(row)
        size += message.ByteSize()
        if made and size > _MOST_BYTES:
            break
        made.append(message)
    end = begin + len(made)
    return made, name(rows[end - 1]) if made and end < len(rows) else ""
