"""The round as a state machine: each transition one named transaction, safe to repeat.

    planned ─> open ─> collecting ─> closing ─> aggregated ─> published
                 └─────────┴───────────┴─> failed

What a round works with is fixed when it opens. Whom it asks and what is made of the answers is the
strategy's doing, through `sordino.server.grid` and `sordino.server.fleet_run`: of the accepted
updates' files, read back one by one, so that the way after a crash is the only way there is.
docs/coordinator.md says what each transition needs and leaves behind.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sordino.core.errors import ContractError
from sordino.server.fleet_rounds import devices
from sordino.server.fleet_rounds.context import (
    Fleet,
    keep_artefact,
    name_artefact,
    require,
    tell,
)
from sordino.server.fleet_rounds.endings import cancel_tasks, end_task
from sordino.server.fleet_rounds.machine import move
from sordino.server.fleet_rounds.uploads import finish_upload
from sordino.server.fleet_rounds.work import Work
from sordino.server.store import Accepted, Reader, Round, Run, Task, Upload, Writer
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


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a round works with, from its opening to its end.

    Attributes:
        plan: The plan's canonical encoding.
        settings: What else devices are told, from `write_settings`.
        adapter: The adapter before it, as an artefact; None: the public initial one.
        cohort: Whom it asks.
        time_ms: From now to its deadline.
    """

    plan: bytes
    settings: str
    adapter: bytes | None
    cohort: Sequence[str]
    time_ms: int


def open_round(fleet: Fleet, run_id: str, number: int, opening: Opening) -> Round:
    """Fix everything that a planned round works with, and offer its tasks.

    While the run isn't running it stays planned. Who has gone since the cohort was chosen has a
    task that is cancelled at once.
    """
    with fleet.artefacts.lock, fleet.store.write("open-round") as tx:
        planned = require(tx, Round, run_id, number)
        run = require(tx, Run, run_id)
        if planned.state != "planned" or run.state != "running":
            return planned
        now = fleet.now_ms()
        private = run.trust == "central"  # no count may show in what happens
        before = keep_artefact(fleet, tx, opening.adapter, "adapter") if opening.adapter else ""
        opened = move(
            tx,
            planned,
            "open",
            plan=keep_artefact(fleet, tx, opening.plan, "plan"),
            settings=opening.settings,
            adapter_before=before,
            asked=len(opening.cohort),
            cohort=0 if private else run.cohort,
            min_updates=0 if private else run.min_updates,
            max_answer_bytes=run.max_answer_bytes,
            opened_ms=now,
            deadline_ms=now + opening.time_ms,
        )
        for device_id in sorted(opening.cohort):
            _offer(tx, opened, device_id)
        tell(fleet, tx, "round-opened", run_id=run_id, round_number=number)
        return opened


def _offer(tx: Writer, opened: Round, device_id: str) -> None:
    task = tx.add(
        Task(
            task_id=secrets.token_hex(16),
            run_id=opened.run_id,
            round=opened.round,
            device_id=device_id,
            deadline_ms=opened.deadline_ms,
        )
    )
    if not devices.wake(tx, device_id):
        end_task(tx, task, "cancelled", "device-gone")


def is_due(fleet: Fleet, run_id: str, number: int) -> bool:
    """Whether `close_round` would change anything, for whoever waits: no writer is held up."""
    with fleet.store.read() as rows:
        waiting = require(rows, Round, run_id, number)
        if waiting.state not in COLLECTING:
            return True
        late = rows.count(Task, run_id=run_id, round=number, state=UNFINISHED_TASKS)
        return _may_close(fleet, rows, waiting, late)


def _may_close(fleet: Fleet, rows: Reader, closing: Round, late: int) -> bool:
    if not late or fleet.now_ms() >= closing.deadline_ms:
        return True
    accepted = rows.count(Accepted, run_id=closing.run_id, round=closing.round)
    return 0 < closing.cohort <= accepted


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
        late = tx.all(Task, run_id=run_id, round=number, state=UNFINISHED_TASKS)
        if not _may_close(fleet, tx, closing, len(late)):
            return closing, []
        over = now >= closing.deadline_ms
        names = {task.task_id for task in late}
        whole = [row for row in tx.all(Upload, state="checking") if row.task_id in names]
        if whole:
            return closing, [upload.upload_id for upload in whole]
        for task in late:
            end_task(tx, task, "expired" if over else "cancelled", "round-over")
            if over:
                devices.failed(fleet, tx, task.device_id)
        if tx.count(Accepted, run_id=run_id, round=number) < closing.min_updates:
            return _fail(fleet, tx, closing, "too-few-updates"), []
        tell(fleet, tx, "round-closed", run_id=run_id, round_number=number)
        return move(tx, closing, "closing", closed_ms=now), []


def aggregate_round(fleet: Fleet, run_id: str, number: int, adapter: bytes) -> Round:
    """Keep what was made of a closed round under its hash: the adapter after it."""
    with fleet.artefacts.lock:
        kept = fleet.artefacts.put(adapter)
        fleet.at("adapter:kept")
        with fleet.store.write("aggregate-round") as tx:
            closed = require(tx, Round, run_id, number)
            if closed.state != "closing":
                return closed
            made = name_artefact(fleet, tx, kept, "adapter")
            return move(tx, closed, "aggregated", adapter_after=made)


def fail_round(fleet: Fleet, run_id: str, number: int, reason: str) -> Round:
    """Fail a closed round of which nothing was made, nor will be."""
    with fleet.store.write("fail-round") as tx:
        closed = require(tx, Round, run_id, number)
        return _fail(fleet, tx, closed, reason) if closed.state == "closing" else closed


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


def publish_look(
    fleet: Fleet,
    run_id: str,
    number: int,
    *,
    metric: str,
    value: float | None,
    noise_std: float | None,
    answers: int,
) -> Round:
    """End a closed look at a metric, and tell what was measured: nothing comes after it."""
    with fleet.store.write("publish-look") as tx:
        look = require(tx, Round, run_id, number)
        if look.state != "closing":
            return look
        run = require(tx, Run, run_id)
        tx.change(run, rounds_done=run.rounds_done + 1)
        tell(
            fleet,
            tx,
            "metric-measured",
            run_id=run.measures,
            round_number=number,
            metric=metric,
            value=repr(value),
            noise_std=repr(noise_std),
            answers=answers,
        )
        return move(tx, move(tx, look, "aggregated"), "published")


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
