"""An operator's commands: each one transaction, with its event, its id remembered with its answer.

None of them gives budget back. Commands that fail aren't remembered: they have changed nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from sordino.core.errors import ContractError, expected
from sordino.core.records import require_run_id
from sordino.privacy.plan import decode_metric_plan
from sordino.server.fleet_rounds import devices
from sordino.server.fleet_rounds.context import (
    Fleet,
    keep_artefact,
    name_artefact,
    require,
    tell,
)
from sordino.server.fleet_rounds.machine import move
from sordino.server.fleet_rounds.rounds import give_up_round
from sordino.server.store import ArtefactRow, Command, Device, Round, Run, Writer
from sordino.server.store.records import FINAL_ROUNDS

AnswerT = TypeVar("AnswerT", Run, Device)

MEASUREMENT_BYTES: Final = 4096
"""No answer to a look is longer."""

FOR_EVER: Final = 1 << 31
"""A patience that no number of failed looks ends: nothing that clients do to one fails the run."""


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a run is started from; see `Run` for what isn't said here.

    Attributes:
        plan: The plan's canonical encoding.
        manifest: The adapter manifest's canonical encoding.
        base: The base model's hash; it is kept before, with `keep_base`.
        metric: The canonical encoding of the plan of the metric that it buys; empty: none.
    """

    run_id: str
    settings: str
    trust: str
    plan: bytes
    manifest: bytes
    base: str
    rounds: int
    cohort: int
    extra: int = 0
    min_updates: int
    timeout_ms: int
    max_answer_bytes: int
    patience: int = 3
    metric: bytes = b""


def keep_base(fleet: Fleet, source: Path) -> str:
    """Keep a base model among the artefacts, and give its hash."""
    with fleet.artefacts.lock:
        kept = fleet.artefacts.put_file(source)
        with fleet.store.write("keep-base") as tx:
            return name_artefact(fleet, tx, kept, "base")


def start_run(fleet: Fleet, request_id: str, new: NewRun) -> Run:
    """Start a run: its first round is planned by whoever drives it.

    Raises:
        ContractError: ``run-exists``; ``another-request``; ``bad-value``;
            ``unknown-artefact``: the base isn't kept.
        WireError: A run can't have that name.
    """
    require_run_id(new.run_id)

    def start(tx: Writer) -> Run:
        if tx.find(Run, new.run_id) is not None:
            raise ContractError("run-exists", f"there is a run {new.run_id}: choose another name")
        _check_cohort(new.cohort, new.extra, new.min_updates)
        if tx.find(ArtefactRow, new.base) is None:
            raise ContractError(
                "unknown-artefact", f"the base {new.base} isn't kept: keep it first"
            )
        terms: dict[str, Any] = asdict(new)
        terms |= {
            "plan": keep_artefact(fleet, tx, new.plan, "plan"),
            "manifest": keep_artefact(fleet, tx, new.manifest, "manifest"),
            "rounds_planned": terms.pop("rounds"),
            "started_ms": fleet.now_ms(),
        }
        metric = terms.pop("metric")
        run = tx.add(Run(state="running", **terms))
        if metric:
            _add_looks(fleet, tx, run, metric)
        return run

    said = {**asdict(new), "plan": new.plan.hex(), "manifest": new.manifest.hex()}
    said["metric"] = new.metric.hex()
    return _command(fleet, request_id, "start-run", said, Run, start)


def _add_looks(fleet: Fleet, tx: Writer, run: Run, metric: bytes) -> None:
    """The looks at a run's metric are rounds of a run of their own, as its plan has it."""
    plan = decode_metric_plan(metric)
    if tx.find(Run, plan.run_id) is not None:
        raise ContractError("run-exists", f"there is a run {plan.run_id}: choose another name")
    tx.add(
        replace(
            run,
            run_id=plan.run_id,
            trust=plan.trust,
            plan=keep_artefact(fleet, tx, metric, "plan"),
            rounds_planned=plan.rounds,
            extra=0,
            min_updates=1,
            max_answer_bytes=MEASUREMENT_BYTES,
            patience=FOR_EVER,
            measures=run.run_id,
        )
    )


def pause_run(fleet: Fleet, request_id: str, run_id: str) -> Run:
    """Open no further round; the open one goes on to its end."""

    def pause(tx: Writer) -> Run:
        run = _trained(tx, run_id)
        return run if run.state == "paused" else _move(tx, run, "paused")

    return _command(fleet, request_id, "pause-run", {"run_id": run_id}, Run, pause)


def resume_run(fleet: Fleet, request_id: str, run_id: str) -> Run:
    """Go on after a pause, or after a failure that was looked into."""

    def resume(tx: Writer) -> Run:
        run = _trained(tx, run_id)
        return run if run.state == "running" else _move(tx, run, "running", reason="")

    return _command(fleet, request_id, "resume-run", {"run_id": run_id}, Run, resume)


def stop_run(fleet: Fleet, request_id: str, run_id: str) -> Run:
    """End a run for good. Its unfinished round is given up; what was charged stays charged."""

    def stop(tx: Writer) -> Run:
        run = _trained(tx, run_id)
        give_up_round(fleet, tx, run_id, "run-stopped")
        for looks in tx.all(Run, measures=run_id):
            give_up_round(fleet, tx, looks.run_id, "run-stopped")
        return run if run.state == "stopped" else _move(tx, run, "stopped")

    return _command(fleet, request_id, "stop-run", {"run_id": run_id}, Run, stop)


def add_rounds(
    fleet: Fleet, request_id: str, run_id: str, more: int, extended: Callable[[bytes], bytes]
) -> Run:
    """Announce more rounds: rounds that open from now on are under another plan.

    Args:
        fleet: The fleet.
        request_id: The caller's.
        run_id: Which run.
        more: How many more rounds.
        extended: Makes that plan's canonical encoding from the present one's.

    Raises:
        ContractError: ``bad-value``: not more rounds; ``run-over``.
    """

    def add(tx: Writer) -> Run:
        run = _trained(tx, run_id)
        if more < 1:
            raise ContractError("bad-value", expected("rounds", more, ">= 1"))
        if run.state == "stopped":
            raise ContractError("run-over", "the run was stopped")
        plan = keep_artefact(fleet, tx, extended(fleet.artefacts.read(run.plan)), "plan")
        run = tx.change(run, plan=plan, rounds_planned=run.rounds_planned + more)
        return _move(tx, run, "running") if run.state == "done" else run

    return _command(fleet, request_id, "add-rounds", {"run_id": run_id, "more": more}, Run, add)


def change_cohort(
    fleet: Fleet, request_id: str, run_id: str, cohort: int, extra: int, min_updates: int
) -> Run:
    """Change how many devices the rounds to come ask, and how many updates they need.

    Raises:
        ContractError: ``cohort-fixed``: under central trust it is the plan's; ``bad-value``;
            ``run-over``.
    """

    def change(tx: Writer) -> Run:
        run = _trained(tx, run_id)
        if run.trust == "central":
            raise ContractError("cohort-fixed", "under central trust the cohort is the plan's")
        if run.state == "stopped":
            raise ContractError("run-over", "the run was stopped")
        _check_cohort(cohort, extra, min_updates)
        return tx.change(run, cohort=cohort, extra=extra, min_updates=min_updates)

    said = {"run_id": run_id, "cohort": cohort, "extra": extra, "min_updates": min_updates}
    return _command(fleet, request_id, "change-cohort", said, Run, change)


def roll_back(fleet: Fleet, request_id: str, run_id: str, number: int) -> Run:
    """Go on from the adapter that an earlier round made; 0: from the initial one.

    The next round has the next number: nothing that was charged is given back.

    Raises:
        ContractError: ``run-not-paused``: it runs, or a round is under way; ``unknown-round``: it
            published no adapter.
    """

    def back(tx: Writer) -> Run:
        run = _trained(tx, run_id)
        under_way = [r for r in tx.all(Round, run_id=run_id) if r.state not in FINAL_ROUNDS]
        if run.state != "paused" or any(each.state != "planned" for each in under_way):
            raise ContractError("run-not-paused", "pause the run, and let its round come to an end")
        made = tx.find(Round, run_id, number) if number else None
        if number and (made is None or made.state != "published"):
            raise ContractError("unknown-round", f"round {number} published no adapter")
        return tx.change(run, adapter=made.adapter_after if made else "")

    said = {"run_id": run_id, "round": number}
    return _command(fleet, request_id, "roll-back", said, Run, back)


def revoke_device(fleet: Fleet, request_id: str, device_id: str, reason: str) -> Device:
    """Revoke a device for good: its certificates are void, its tasks are cancelled."""
    said = {"device_id": device_id, "reason": reason}
    return _command(
        fleet,
        request_id,
        "revoke-device",
        said,
        Device,
        lambda tx: devices.dismiss(fleet, tx, device_id, "revoked", fleet.now_ms(), reason),
    )


def clear_device(fleet: Fleet, request_id: str, device_id: str) -> Device:
    """Take a suspect or resting device back, after an operator has looked."""

    def clear(tx: Writer) -> Device:
        device = require(tx, Device, device_id)
        if device.state in devices.GONE:
            raise ContractError(
                "certificate-revoked", f"the device is {device.state}, which is final"
            )
        return tx.change(device, state="active", failures=0, rests_until_ms=0)

    return _command(fleet, request_id, "clear-device", {"device_id": device_id}, Device, clear)


def _command(
    fleet: Fleet,
    request_id: str,
    kind: str,
    said: dict[str, Any],
    answer: type[AnswerT],
    do: Callable[[Writer], AnswerT],
) -> AnswerT:
    """Carry a command out once: the same id again gives the same answer.

    Raises:
        ContractError: ``another-request``: the id was used for another command.
    """
    words = json.dumps([kind, said], sort_keys=True).encode()
    digest = hashlib.sha256(words).hexdigest()
    with fleet.artefacts.lock, fleet.store.write(kind) as tx:
        known = tx.find(Command, request_id)
        if known is not None:
            if known.command_sha256 != digest:
                raise ContractError("another-request", f"{request_id} was another command's id")
            return answer(**json.loads(known.answer))
        done = do(tx)
        tell(
            fleet,
            tx,
            kind,
            run_id=said.get("run_id", ""),
            round_number=said.get("round", 0),
            device_id=said.get("device_id", ""),
            request_id=request_id,
        )
        tx.add(
            Command(
                request_id=request_id,
                command_sha256=digest,
                answer=json.dumps(asdict(done), sort_keys=True),
                at_ms=fleet.now_ms(),
            )
        )
        return done


def _trained(tx: Writer, run_id: str) -> Run:
    """A run that an operator may command; its looks follow it."""
    run = require(tx, Run, run_id)
    if run.measures:
        raise ContractError("unknown-run", f"{run_id} is the metric of {run.measures}")
    return run


def _check_cohort(cohort: int, extra: int, min_updates: int) -> None:
    if not 1 <= min_updates <= cohort:
        required = f"in 1..cohort ({cohort})"
        raise ContractError("bad-value", expected("min_updates", min_updates, required))
    if extra < 0:
        raise ContractError("bad-value", expected("extra", extra, ">= 0"))


def _move(tx: Writer, run: Run, state: str, **changes: object) -> Run:
    if run.state == "stopped" or (state == "paused" and run.state != "running"):
        raise ContractError("run-over", f"the run is {run.state}")
    return move(tx, run, state, **changes)
