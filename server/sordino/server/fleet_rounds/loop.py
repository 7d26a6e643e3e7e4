"""What a coordinator does next for a run, and what it does when it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from sordino.core.errors import ContractError, StoreError
from sordino.server.fleet_rounds import rounds
from sordino.server.fleet_rounds.context import Fleet, require
from sordino.server.fleet_rounds.uploads import finish_upload
from sordino.server.fleet_rounds.work import Work
from sordino.server.store import Accepted, ArtefactRow, Round, Task, Upload
from sordino.server.store.records import FINAL_ROUNDS, UNFINISHED_UPLOADS


def step(
    fleet: Fleet, work: Work, run_id: str, among: Collection[str] | None = None
) -> Round | None:
    """Take the run's next transition, if its time has come.

    There is no other way to go on, after a restart neither: what was done is read from the store.

    Args:
        fleet: The fleet.
        work: The run's.
        run_id: Which run.
        among: The devices that may be asked; None: all.

    Returns:
        The round as it then is; None: the run opens no more.
    """
    now = rounds.plan_round(fleet, run_id)
    if now is None:
        return None
    match now.state:
        case "planned":
            now = rounds.open_round(fleet, work, run_id, now.round, among)
        case "open" | "collecting":
            now = rounds.close_round(fleet, work, run_id, now.round)
        case "closing":
            now = rounds.aggregate_round(fleet, work, run_id, now.round)
        case _:
            now = rounds.publish_round(fleet, run_id, now.round)
    if now.state in FINAL_ROUNDS:
        collect_garbage(fleet)
    return now


def advance(
    fleet: Fleet, work: Work, run_id: str, among: Collection[str] | None = None
) -> Round | None:
    """Take transitions until the run waits for devices, for time, or for an operator."""
    before, now = None, step(fleet, work, run_id, among)
    while now is not None and now != before:
        before, now = now, step(fleet, work, run_id, among)
    return now


def recover(fleet: Fleet, work_of: Mapping[str, Work]) -> None:
    """Finish what a crash cut short: check uploads that came whole, delete what nobody names.

    Args:
        fleet: The fleet, before it serves.
        work_of: The work of each unfinished run. Uploads of other runs wait.
    """
    with fleet.store.read() as rows:
        waiting = [
            (upload.upload_id, require(rows, Task, upload.task_id).run_id)
            for upload in rows.all(Upload, state="checking")
        ]
    for upload_id, run_id in waiting:
        if run_id in work_of:
            with suppress(ContractError):  # it was refused, which is written down
                finish_upload(fleet, work_of[run_id], upload_id)
    collect_garbage(fleet)


def collect_garbage(fleet: Fleet) -> int:
    """Delete the files that no row needs: updates of rounds that are over, uploads that ended.

    Returns:
        How many files went.
    """
    with fleet.artefacts.lock:
        with fleet.store.write("collect-garbage") as tx:
            unfinished = [
                (row.run_id, row.round) for row in tx.all(Round) if row.state not in FINAL_ROUNDS
            ]
            needed = {
                row.sha256
                for run_id, number in unfinished
                for row in tx.all(Accepted, run_id=run_id, round=number)
            }
            rows = tx.all(ArtefactRow)
            for row in rows:
                if row.kind == "update" and row.sha256 not in needed:
                    tx.remove(ArtefactRow, sha256=row.sha256)
                    continue
                needed.add(row.sha256)
            uploads = tx.all(Upload, state=UNFINISHED_UPLOADS)
        needed |= {row.sha256 for row in uploads}  # taken over, perhaps, and not yet named
        return fleet.artefacts.sweep(needed, {row.upload_id for row in uploads})


def check_artefacts(fleet: Fleet) -> None:
    """Hold every file against its hash: after a restore, or when a disk is doubted.

    Raises:
        StoreError: Naming those that are missing or damaged.
    """
    with fleet.store.read() as rows:
        names = {row.sha256 for row in rows.all(ArtefactRow)}
    damaged = fleet.artefacts.damaged(names)
    if damaged:
        raise StoreError(f"artefacts missing or damaged: {', '.join(damaged)}: restore them")
