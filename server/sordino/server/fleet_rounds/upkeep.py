"""What a coordinator does when it starts, and at the end of each round: checks, and garbage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from sordino.core.errors import ContractError, StoreError
from sordino.server.fleet_rounds.context import Fleet, require
from sordino.server.fleet_rounds.uploads import finish_upload
from sordino.server.fleet_rounds.work import Work
from sordino.server.store import Accepted, ArtefactRow, Round, Task, Upload
from sordino.server.store.records import FINAL_ROUNDS, UNFINISHED_UPLOADS


def recover(fleet: Fleet, work_of: Callable[[str], Work]) -> None:
    """Finish what a crash cut short: check uploads that came whole, delete what nobody names.

    Args:
        fleet: The fleet, before it serves.
        work_of: The work of a run.
    """
    with fleet.store.read() as rows:
        waiting = [
            (upload.upload_id, require(rows, Task, upload.task_id).run_id)
            for upload in rows.all(Upload, state="checking")
        ]
    for upload_id, run_id in waiting:
        with suppress(ContractError):  # it was refused, which is written down
            finish_upload(fleet, work_of(run_id), upload_id)
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
