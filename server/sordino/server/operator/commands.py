"""An operator's commands: from a request to the durable transaction that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sordino.core.errors import (
    ConfigError,
    ContractError,
    ModelError,
    PlanError,
    WireError,
)
from sordino.privacy.plan import decode_plan
from sordino.protos.v1 import operator_pb2
from sordino.server import fleet_rounds as fr
from sordino.server.fleet_rounds import Fleet, NewRun
from sordino.server.fleet_rounds.context import require
from sordino.server.store import Device, Run

Command = (
    operator_pb2.StartRunRequest
    | operator_pb2.RunCommand
    | operator_pb2.AddRoundsRequest
    | operator_pb2.ChangeCohortRequest
    | operator_pb2.RollBackRequest
    | operator_pb2.RevokeDeviceRequest
)


@dataclass(frozen=True, kw_only=True)
class StartOrder:
    """What an operator says of a run to start.

    Attributes:
        run_id: Its name.
        settings: As TOML.
        cohort: Devices that a round asks.
    """

    run_id: str
    settings: str
    cohort: int


NewRunOf = Callable[[StartOrder], NewRun]
"""Makes the plan, the manifest and all else of a run from its settings."""


def start_run(fleet: Fleet, request: operator_pb2.StartRunRequest, new_run: NewRunOf) -> Run:
    """Start a run from its settings.

    Raises:
        ContractError: ``bad-settings``: they can't be read, or say something impossible;
            ``bad-value``: a run can't have that name; and as `fleet_rounds.start_run`.
    """
    try:
        settings = request.settings_toml.decode()
    except UnicodeDecodeError as error:
        raise ContractError("bad-settings", "settings_toml isn't UTF-8") from error
    order = StartOrder(run_id=request.run_id, settings=settings, cohort=request.cohort)
    try:
        new = new_run(order)
    except (ConfigError, PlanError, ModelError) as error:
        raise ContractError("bad-settings", str(error)) from error
    try:
        return fr.start_run(fleet, request.request_id, new)
    except ContractError:
        raise
    except WireError as error:
        raise ContractError("bad-value", str(error)) from error


def pause_run(fleet: Fleet, request: operator_pb2.RunCommand) -> Run:
    """Open no further round."""
    return fr.pause_run(fleet, request.request_id, request.run_id)


def resume_run(fleet: Fleet, request: operator_pb2.RunCommand) -> Run:
    """Go on."""
    return fr.resume_run(fleet, request.request_id, request.run_id)


def stop_run(fleet: Fleet, request: operator_pb2.RunCommand) -> Run:
    """End a run for good."""
    return fr.stop_run(fleet, request.request_id, request.run_id)


def add_rounds(fleet: Fleet, request: operator_pb2.AddRoundsRequest) -> Run:
    """Announce more rounds of the same mechanism, under a plan with a name of its own.

    Raises:
        ContractError: ``bad-value``: a plan can't have so many.
    """

    def extended(plan: bytes) -> bytes:
        present = decode_plan(plan)
        try:
            return replace(present, rounds=present.rounds + request.rounds).canonical()
        except PlanError as error:
            raise ContractError("bad-value", str(error)) from error

    return fr.add_rounds(fleet, request.request_id, request.run_id, request.rounds, extended)


def change_cohort(fleet: Fleet, request: operator_pb2.ChangeCohortRequest) -> Run:
    """Ask so many devices from the next round on; the least number of updates falls with it."""
    with fleet.store.read() as rows:
        run = require(rows, Run, request.run_id)
    least = min(run.min_updates, request.cohort)
    return fr.change_cohort(fleet, request.request_id, run.run_id, request.cohort, run.extra, least)


def roll_back(fleet: Fleet, request: operator_pb2.RollBackRequest) -> Run:
    """Go on from an earlier round's adapter."""
    return fr.roll_back(fleet, request.request_id, request.run_id, request.round)


def revoke_device(fleet: Fleet, request: operator_pb2.RevokeDeviceRequest) -> Device:
    """Revoke a device for good."""
    reason = request.reason or "revoked by the operator"
    return fr.revoke_device(fleet, request.request_id, request.device_id, reason)
