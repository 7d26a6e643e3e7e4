"""How a task ends, and with it an answer that was on its way."""

from __future__ import annotations

from typing import Any

from sordino.server.fleet_rounds.machine import move
from sordino.server.store import Task, Upload, Writer
from sordino.server.store.records import UNFINISHED_TASKS, UNFINISHED_UPLOADS, TaskState


def end_task(tx: Writer, task: Task, state: TaskState, reason: str) -> Task:
    """End a task that brought no update; what came of its upload is discarded."""
    for upload in tx.all(Upload, task_id=task.task_id, state=UNFINISHED_UPLOADS):
        move(tx, upload, "discarded", reason=reason)
    return move(tx, task, state, reason=reason)


def cancel_tasks(tx: Writer, reason: str, **which: Any) -> list[Task]:
    """Cancel the unfinished ones of some tasks; their devices will be told the reason."""
    return [
        end_task(tx, task, "cancelled", reason)
        for task in tx.all(Task, state=UNFINISHED_TASKS, **which)
    ]
