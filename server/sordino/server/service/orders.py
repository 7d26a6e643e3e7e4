"""A task as a device is sent it, made from the rows each time: it says the same each time."""

from __future__ import annotations

import tomllib

from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract import Artefact, TaskOrder, task_message
from sordino.core.settings import build
from sordino.protos.v1 import work_pb2
from sordino.server.fleet_rounds import Fleet
from sordino.server.fleet_rounds.context import require
from sordino.server.store import ArtefactRow, Reader, Round, Run, Task


def order_message(fleet: Fleet, task: Task) -> work_pb2.Task:
    """The message of a task. Only the time that is left differs from one sending to the next.

    Raises:
        StoreError: The plan's file can't be read.
    """
    with fleet.store.read() as rows:
        run = require(rows, Run, task.run_id)
        asked = require(rows, Round, task.run_id, task.round)
        base, manifest = _artefact(rows, run.base), _artefact(rows, run.manifest)
        before = asked.adapter_before
        adapter = _artefact(rows, before) if before else None
    settings = tomllib.loads(run.settings)
    order = TaskOrder(
        task_id=task.task_id,
        run_id=task.run_id,
        round=task.round,
        deadline_unix_ms=task.deadline_ms,
        expires_in_ms=max(1, task.deadline_ms - fleet.now_ms()),
        plan=fleet.artefacts.read(asked.plan),
        base=base,
        manifest=manifest,
        adapter=adapter,
        lora=build(LoraConfig, settings.get("lora", {}), "lora"),
        train=build(TrainConfig, settings.get("train", {}), "train"),
        max_answer_bytes=asked.max_answer_bytes,
    )
    return task_message(order)


def _artefact(rows: Reader, sha256: str) -> Artefact:
    row = require(rows, ArtefactRow, sha256)
    return Artefact(sha256=row.sha256, size=row.size)
