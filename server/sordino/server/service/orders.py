"""A task as a device is sent it: the same each time, but for the time that is left."""

from __future__ import annotations

import threading
import tomllib
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract import Artefact, TaskOrder, task_message
from sordino.core.settings import build
from sordino.protos.v1 import work_pb2
from sordino.server.fleet_rounds import Fleet
from sordino.server.fleet_rounds.context import require
from sordino.server.store import ArtefactRow, Reader, Round, Run, Task

_MOST_ROUNDS: Final = 32


class Orders:
    """Makes the messages of tasks, from any thread.

    What a round works with is fixed when it opens, so it is read once for all of its cohort.

    Args:
        fleet: Rows and files.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        self._rounds: OrderedDict[tuple[str, int], TaskOrder] = OrderedDict()

    def message(self, task: Task) -> work_pb2.Task:
        """The message of a task.

        Raises:
            StoreError: The plan's file can't be read.
        """
        name = task.run_id, task.round
        with self._lock:
            order = self._rounds.get(name)
        if order is None:
            order = _order(self._fleet, task)
            with self._lock:
                self._rounds[name] = order
                if len(self._rounds) > _MOST_ROUNDS:
                    self._rounds.popitem(last=False)
        left_ms = max(1, task.deadline_ms - self._fleet.now_ms())
        return task_message(replace(order, task_id=task.task_id, expires_in_ms=left_ms))


def _order(fleet: Fleet, task: Task) -> TaskOrder:
    """What is the same for the whole cohort of the task's round, and the task's own name."""
    with fleet.store.read() as rows:
        run = require(rows, Run, task.run_id)
        asked = require(rows, Round, task.run_id, task.round)
        base, manifest = _artefact(rows, run.base), _artefact(rows, run.manifest)
        before = asked.adapter_before
        adapter = _artefact(rows, before) if before else None
    settings = tomllib.loads(run.settings)
    return TaskOrder(
        task_id=task.task_id,
        run_id=task.run_id,
        round=task.round,
        deadline_unix_ms=task.deadline_ms,
        expires_in_ms=1,
        plan=fleet.artefacts.read(asked.plan),
        base=base,
        manifest=manifest,
        adapter=adapter,
        lora=build(LoraConfig, settings.get("lora", {}), "lora"),
        train=build(TrainConfig, settings.get("train", {}), "train"),
        max_answer_bytes=asked.max_answer_bytes,
    )


def _artefact(rows: Reader, sha256: str) -> Artefact:
    row = require(rows, ArtefactRow, sha256)
    return Artefact(sha256=row.sha256, size=row.size)
