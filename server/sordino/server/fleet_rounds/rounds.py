"""The round as a state machine: each transition one named transaction, safe to repeat.

    planned ─> open ─> collecting ─> closing ─> aggregated ─> published
                 └─────────┴───────────┴─> failed

What a round works with is fixed when it opens. An aggregate is made of the accepted updates' files,
read back one by one: the way after a crash is the only way there is. docs/coordinator.md says what
each transition needs and leaves behind.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from sordino.core.errors import ContractError
from sordino.server.fleet_rounds import devices
from sordino.server.fleet_rounds.context import Fleet, name_artefact, require, tell
from sordino.server.fleet_rounds.endings import cancel_tasks, end_task
from sordino.server.fleet_rounds.machine import move
from sordino.server.fleet_rounds.uploads import finish_upload
from sordino.server.fleet_rounds.work import Work
from sordino.server.store import Accepted, Round, Run, Task, Upload, Writer
from sordino.server.store.records import FINAL_ROUNDS, UNFINISHED_TASKS, RoundState

COLLECTING: Final[tuple[RoundState, ...]] = ("open", "collecting")


def plan_round(fleet: Fleet, run_id: str) -> Round | None:
    """The run's unfinished round; where there is none, the next, unless there shall be none.

    Returns:
        None: every announced round is over (the run is then done), or the run isn't running.
    """
    with fleet.store.write("plan-round") as tx:
        run = require(tx, Run, run_id)
        newest = tx.all(Round, order="-round", limit=1, run_id=run_id)
        if newest and newest[0].state not in FINAL_ROUNDS:
            return newest[0]
        if run.state != "running":
            return None
        number = newest[0].round + 1 if newest else 1
        if number > run.rounds_planned:
            move(tx, run, "done")
            tell(fleet, tx, "run-done", run_id=run_id)
            return None
        return tx.add(Round(run_id=run_id, round=number))


def open_round(
    fleet: Fleet, work: Work, run_id: str, number: int, among: Collection[str] | None = None
) -> Round:
    """Draw the cohort, fix everything the round works with, and offer the tasks.

    While the run is paused, or fewer devices are at hand than the round needs, it stays planned.

    Args:
        fleet: The fleet.
        work: The run's.
        run_id: Which run.
        number: Which round.
        among: Only these devices, those that are connected and capable; None: all.
    """
    now = fleet.now_ms()
    with fleet.store.write("open-round") as tx:
        opening = require(tx, Round, run_id, number)
        run = require(tx, Run, run_id)
        if opening.state != "planned" or run.state != "running":
            return opening
        ready = sorted(devices.at_hand(fleet, tx))
        if among is not None:
            ready = [name for name in ready if name in among]
        private = run.trust == "central"  # no count may show in what happens
        if len(ready) < (1 if private else run.min_updates):
            return opening
        wanted = len(ready) if private else run.cohort + run.extra
        cohort = sorted(work.choose(run, number, ready, wanted))
        deadline = now + run.timeout_ms
        opened = move(
            tx,
            opening,
            "open",
            plan=run.plan,
            adapter_before=run.adapter,
            asked=len(cohort),
            cohort=0 if private else run.cohort,
            min_updates=0 if private else run.min_updates,
            max_answer_bytes=run.max_answer_bytes,
            opened_ms=now,
            deadline_ms=deadline,
        )
        for device_id in cohort:
            tx.add(
                Task(
                    task_id=secrets.token_hex(16),
                    run_id=run_id,
                    round=number,
                    device_id=device_id,
                    deadline_ms=deadline,
                )
            )
        tell(fleet, tx, "round-opened", run_id=run_id, round_number=number)
        return opened


def close_round(fleet: Fleet, work: Work, run_id: str, number: int) -> Round:
    """Take no more answers, if the cohort is complete, nobody is left, or the deadline is past.

    An upload that came whole before is still checked first. Whoever is late has its task cancelled
    (or expired, which counts as a failure); with too few updates the round fails.
    """
    closing, checking = _close(fleet, run_id, number)
    while checking:
        for upload_id in checking:
            with suppress(ContractError):  # it was refused, which is written down
                finish_upload(fleet, work, upload_id)
        closing, checking = _close(fleet, run_id, number)
    return closing


def _close(fleet: Fleet, run_id: str, number: int) -> tuple[Round, list[str]]:
    """The transaction: the round as it is then, and the uploads that must be checked before it."""
    now = fleet.now_ms()
    with fleet.store.write("close-round") as tx:
        closing = require(tx, Round, run_id, number)
        if closing.state not in COLLECTING:
            return closing, []
        accepted = tx.count(Accepted, run_id=run_id, round=number)
        late = tx.all(Task, run_id=run_id, round=number, state=UNFINISHED_TASKS)
        over = now >= closing.deadline_ms
        if late and not over and not 0 < closing.cohort <= accepted:
            return closing, []
        names = {task.task_id for task in late}
        whole = [row for row in tx.all(Upload, state="checking") if row.task_id in names]
        if whole:
            return closing, [upload.upload_id for upload in whole]
        for task in late:
            end_task(tx, task, "expired" if over else "cancelled", "round-over")
            if over:
                devices.failed(fleet, tx, task.device_id)
        if accepted < closing.min_updates:
            return _fail(fleet, tx, closing, "too-few-updates"), []
        tell(fleet, tx, "round-closed", run_id=run_id, round_number=number)
        return move(tx, closing, "closing", closed_ms=now), []


def aggregate_round(fleet: Fleet, work: Work, run_id: str, number: int) -> Round:
    """Make the next adapter of what was accepted, and keep it under its hash."""
    with fleet.store.read() as rows:
        closed = require(rows, Round, run_id, number)
        accepted = rows.all(Accepted, run_id=run_id, round=number)
    if closed.state != "closing":
        return closed
    before = fleet.artefacts.read(closed.adapter_before) if closed.adapter_before else None
    accepted.sort(key=lambda row: row.device_id)  # databases differ in how they sort words
    updates = (fleet.artefacts.read(row.sha256) for row in accepted)
    adapter = work.aggregate(closed, before, updates)
    fleet.at("adapter:made")
    if adapter is None:
        with fleet.store.write("fail-round") as tx:
            closed = require(tx, Round, run_id, number)
            lost = closed.state == "closing"
            return _fail(fleet, tx, closed, "release-lost") if lost else closed
    with fleet.artefacts.lock:
        kept = fleet.artefacts.put(adapter)
        fleet.at("adapter:kept")
        with fleet.store.write("aggregate-round") as tx:
            closed = require(tx, Round, run_id, number)
            if closed.state != "closing":
                return closed
            made = name_artefact(fleet, tx, kept, "adapter")
            return move(tx, closed, "aggregated", adapter_after=made)


def publish_round(fleet: Fleet, run_id: str, number: int) -> Round:
    """Make the round's adapter the run's: the next round begins from it."""
    with fleet.store.write("publish-round") as tx:
        made = require(tx, Round, run_id, number)
        if made.state != "aggregated":
            return made
        run = require(tx, Run, run_id)
        tx.change(run, adapter=made.adapter_after, rounds_done=run.rounds_done + 1)
        tell(
            fleet,
            tx,
            "round-published",
            run_id=run_id,
            round_number=number,
            adapter=made.adapter_after,
        )
        return move(tx, made, "published")


def give_up_round(fleet: Fleet, tx: Writer, run_id: str, reason: str) -> None:
    """End the run's unfinished round, if there is one, for good: its adapter is the one before."""
    for unfinished in tx.all(Round, run_id=run_id):
        if unfinished.state not in FINAL_ROUNDS:
            cancel_tasks(tx, reason, run_id=run_id, round=unfinished.round)
            move(tx, unfinished, "given-up", reason=reason)
            tell(fleet, tx, "round-given-up", run_id=run_id, round_number=unfinished.round)


def _fail(fleet: Fleet, tx: Writer, failing: Round, reason: str) -> Round:
    """Fail a round; so many in a row fail the run. Its number and its charges are used up."""
    failed = move(tx, failing, "failed", reason=reason, closed_ms=fleet.now_ms())
    run = require(tx, Run, failing.run_id)
    tell(
        fleet,
        tx,
        "round-failed",
        run_id=run.run_id,
        round_number=failing.round,
        reason=reason,
    )
    last = tx.all(Round, order="-round", limit=run.patience, run_id=run.run_id)
    in_a_row = len(last) == run.patience and {each.state for each in last} == {"failed"}
    if in_a_row and run.state == "running":
        move(tx, run, "failed", reason=reason)
        tell(fleet, tx, "run-failed", run_id=run.run_id, reason=reason)
    return failed
