"""What all methods of the service work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sordino.core.errors import ContractError
from sordino.protos.v1 import fleet_pb2
from sordino.server.enroll import Authority, Call
from sordino.server.fleet_rounds import Fleet, Members, Work
from sordino.server.fleet_rounds.context import require
from sordino.server.fleet_rounds.devices import GONE
from sordino.server.service.figures import Counters
from sordino.server.service.presence import Presence
from sordino.server.service.settings import ServiceSettings
from sordino.server.store import Device, Reader, Task
from sordino.server.store.records import TaskState, UploadState


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The service's surroundings.

    Attributes:
        fleet: Rows and files. What looks at them runs in threads.
        members: Who is a member.
        authority: Who certifies.
        settings: The limits.
        work_of: The work of a run, by its name.
        counters: What is counted.
        presence: Who is there.
    """

    fleet: Fleet
    members: Members
    authority: Authority
    settings: ServiceSettings
    work_of: Callable[[str], Work]
    counters: Counters
    presence: Presence


def require_member(rows: Reader, device_id: str) -> Device:
    """The device, if it still is a member: what a stream that is open asks now and then.

    Raises:
        ContractError: ``certificate-revoked``.
    """
    device = require(rows, Device, device_id)
    if device.state in GONE:
        raise ContractError("certificate-revoked", f"{device_id} isn't a member any more")
    return device


def require_about(call: Call, task: Task) -> None:
    """Hold what a call states against the task that it is about.

    Raises:
        ContractError: ``wrong-run`` or ``wrong-round``: a stale, a future, or another run's.
    """
    stated = call.opened.statement
    if stated.run_id != task.run_id:
        raise ContractError("wrong-run", "the statement's run isn't the task's")
    if stated.round != task.round:
        raise ContractError("wrong-round", "the statement's round isn't the task's")


def task_state(state: TaskState) -> fleet_pb2.TaskState:
    """A task's state as it travels."""
    value: fleet_pb2.TaskState = fleet_pb2.TaskState.Value(f"TASK_STATE_{state.upper()}")
    return value


def upload_state(state: UploadState) -> fleet_pb2.UploadState:
    """An upload's state as it travels."""
    value: fleet_pb2.UploadState = fleet_pb2.UploadState.Value(f"UPLOAD_STATE_{state.upper()}")
    return value
