"""What a device does with a task: pull it, take it, or decline it."""

from __future__ import annotations

import json
from functools import lru_cache

from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract import Artefact, TaskOrder
from sordino.core.errors import ContractError
from sordino.core.settings import build, to_table
from sordino.core.wire import canonical_json
from sordino.server.fleet_rounds import devices
from sordino.server.fleet_rounds.context import Fleet, require
from sordino.server.fleet_rounds.endings import end_task
from sordino.server.fleet_rounds.machine import move
from sordino.server.store import ArtefactRow, Reader, Round, Run, Task, Writer
from sordino.server.store.records import UNFINISHED_TASKS


def task_for(fleet: Fleet, device_id: str) -> Task | None:
    """The device's unfinished task whose deadline is to come, the oldest first.

    The same task for as long as it is unfinished, over restarts of either side.
    """
    with fleet.store.read() as rows:
        found = rows.all(Task, order="deadline_ms", device_id=device_id, state=UNFINISHED_TASKS)
    return next((task for task in found if task.deadline_ms > fleet.now_ms()), None)


def order_of(fleet: Fleet, task: Task) -> TaskOrder:
    """A task as it travels. But for the time that is left, it is the same at each call."""
    with fleet.store.read() as rows:
        run = require(rows, Run, task.run_id)
        asked = require(rows, Round, task.run_id, task.round)
        base, manifest = (_artefact(rows, name) for name in (run.base, run.manifest))
        adapter = _artefact(rows, asked.adapter_before) if asked.adapter_before else None
    lora, train = read_settings(asked.settings)
    return TaskOrder(
        task_id=task.task_id,
        run_id=task.run_id,
        round=task.round,
        deadline_unix_ms=task.deadline_ms,
        expires_in_ms=max(task.deadline_ms - fleet.now_ms(), 1),
        plan=fleet.artefacts.read(asked.plan),
        base=base,
        manifest=manifest,
        adapter=adapter,
        lora=lora,
        train=train,
        max_answer_bytes=asked.max_answer_bytes,
    )


def write_settings(lora: LoraConfig, train: TrainConfig | None) -> str:
    """What a round's tasks say beside plan and files, as its row keeps it.

    Args:
        lora: The adapter's settings.
        train: The local optimizer; None: the tasks are a paid look at a metric.
    """
    table = {"lora": to_table(lora)} | ({"train": to_table(train)} if train else {})
    return canonical_json(table)


@lru_cache(maxsize=64)
def read_settings(text: str) -> tuple[LoraConfig, TrainConfig | None]:
    """What `write_settings` wrote."""
    table = json.loads(text)
    train = table.get("train")
    return (
        build(LoraConfig, table["lora"], "lora"),
        None if train is None else build(TrainConfig, train, "train"),
    )


def _artefact(rows: Reader, sha256: str) -> Artefact:
    return Artefact(sha256=sha256, size=require(rows, ArtefactRow, sha256).size)


def may_fetch(fleet: Fleet, device_id: str, sha256: str) -> ArtefactRow:
    """An artefact that one of the device's unfinished tasks names: base, manifest or adapter.

    Raises:
        ContractError: ``unknown-artefact``: there is none, or it is none of this device's business.
    """
    with fleet.store.read() as rows:
        for task in rows.all(Task, device_id=device_id, state=UNFINISHED_TASKS):
            run = require(rows, Run, task.run_id)
            before = require(rows, Round, task.run_id, task.round).adapter_before
            if sha256 in (run.base, run.manifest, before) and sha256:
                return require(rows, ArtefactRow, sha256)
    raise ContractError("unknown-artefact", f"no task of this device names {sha256}")


def task_of(rows: Reader, device_id: str, task_id: str) -> Task:
    """A device's own task.

    Raises:
        ContractError: ``unknown-task``: there is none, or it is another device's.
    """
    task = require(rows, Task, task_id)
    if task.device_id != device_id:
        raise ContractError("unknown-task", f"there is no task {task_id} of this device")
    return task


def acknowledge(fleet: Fleet, device_id: str, task_id: str, plan_sha256: str) -> Task:
    """Take a task: from here on the device may charge its ledger. Again: says how it stands.

    Raises:
        ContractError: ``unknown-task``; ``wrong-plan``: the device read another plan.
    """
    with fleet.store.write("acknowledge") as tx:
        task = task_of(tx, device_id, task_id)
        if task.state != "offered":
            return task
        if task.deadline_ms <= fleet.now_ms():
            return end_task(tx, task, "expired", "round-over")
        plan = require(tx, Round, task.run_id, task.round).plan
        if plan_sha256 != plan:
            raise ContractError("wrong-plan", f"expected plan_sha256 = {plan}, got {plan_sha256}")
        return take(tx, task)


def take(tx: Writer, task: Task) -> Task:
    """Make an offered task taken; its round collects from then on."""
    taking_round = require(tx, Round, task.run_id, task.round)
    if taking_round.state == "open":
        move(tx, taking_round, "collecting")
    return move(tx, task, "taken")


def decline(fleet: Fleet, device_id: str, task_id: str, reason: str) -> Task:
    """Refuse a task for good. Only `internal` counts as a failure: an owner's no is none.

    Raises:
        ContractError: ``unknown-task``.
    """
    with fleet.store.write("decline") as tx:
        task = task_of(tx, device_id, task_id)
        if task.state not in UNFINISHED_TASKS:
            return task
        if reason == "internal":
            devices.failed(fleet, tx, device_id)
        return end_task(tx, task, "declined", reason)
