"""`FleetGrid`: Flower's Grid over a fleet's durable rounds.

The same ServerApp, strategy and ClientApp run here as in a simulation; only the Grid differs. What
a strategy sends is decoded once and becomes a round in the store, which any number of devices pull
from a service in their own time; what they answered is read back from its files, one by one. So a
coordinator that was killed sends the same messages again, and finds the same round, the same tasks
and the same answers.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from flwr.app import Error, Message, MessageType, RecordDict

from sordino.core import app as flower
from sordino.core.contract import (
    Artefact,
    decode_measurement,
    decode_update,
    encode_adapter,
)
from sordino.core.errors import (
    ConfigError,
    PlanError,
    RoundGivenUpError,
    StoreError,
    expected,
)
from sordino.core.records import MetricTask, TrainTask
from sordino.core.wire import (
    Envelope,
    decode_metric_task,
    decode_task,
    encode_measurement,
    encode_update,
)
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.plain_grid import PlainGrid
from sordino.server.store import Accepted, Device, Round, Run, Task
from sordino.server.store.records import UNFINISHED_TASKS

LOOK_S: Final = 1.0
"""Whoever waits on the bell looks this often all the same: time passes without a ring."""

Online = Callable[[], Collection[str]]
"""The devices that are connected."""

_DECODERS: Final[dict[str, Callable[[Envelope], TrainTask | MetricTask]]] = {
    MessageType.TRAIN: decode_task,
    MessageType.EVALUATE: decode_metric_task,
}


def node_id(device_id: str) -> int:
    """Flower's number of a device: 63 bits of its name's hash, the same over restarts."""
    return int.from_bytes(hashlib.sha256(device_id.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """What the grids and drivers of a fleet's runs share.

    Attributes:
        fleet: The store and its files.
        bell: Rung by the store's hook.
        work: The check of updates, for those that came whole just before a round's end.
        online: The devices that are connected; None: any may be asked.
        stopping: Set, and the bell rung, when everybody is to come to an end.
    """

    fleet: fr.Fleet
    bell: Bell
    work: fr.Work
    online: Online | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def ready(self) -> list[str]:
        """The devices that may be asked and are connected, by name."""
        with self.fleet.store.read() as rows:
            able = fr.at_hand(self.fleet, rows)
        online = None if self.online is None else set(self.online())
        return sorted(name for name in able if online is None or name in online)

    def stop(self) -> None:
        """Let whoever waits come to an end: nothing is lost by it."""
        self.stopping.set()
        self.bell.ring()

    def check_running(self) -> None:
        """Raises `RoundGivenUpError` once the coordinator is to stop."""
        if self.stopping.is_set():
            raise RoundGivenUpError("the coordinator stops: the round goes on when it is back")


class FleetGrid(PlainGrid):
    """The grid of one run of a fleet.

    Messages are those of one of the run's rounds, or of a paid look at its metric, all of one
    content: that is what is asked of the devices, and exactly the addressed ones are its cohort.
    The same messages again are the same round again. Replies come when the round is closed. What a
    device declined, or was refused for, is an error's reply with its stable word; of a straggler
    there is none.

    Whoever makes messages is within `core.app.task_identity`, once for the process.

    Args:
        coordinator: The fleet.
        run_id: Which run.
    """

    def __init__(self, coordinator: Coordinator, run_id: str) -> None:
        super().__init__(1)
        self.coordinator = coordinator
        self.run_id = run_id
        self._devices: dict[int, str] = {}
        self._sent: dict[str, Message] = {}  # by the task's id, which is the message's

    # --- Flower's Grid -------------------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        """The node ids of the devices that may be asked now, ascending."""
        return sorted(node_id(name) for name in self.coordinator.ready())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Open the round of these messages, or find it open, and return their ids.

        Raises:
            ConfigError: A message is to none of the fleet's devices.
            PlanError: They aren't one round's, or not as the round was opened.
            RoundGivenUpError: The run isn't running.
        """
        return self._push(list(messages), None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once."""
        fleet = self.coordinator.fleet
        replies = []
        for key in [key for key in message_ids if key in self._sent]:
            with fleet.store.read() as rows:
                task = fr.require(rows, Task, key)
            self._close(task.run_id, task.round)
            with fleet.store.read() as rows:
                task = fr.require(rows, Task, key)
                asked = fr.require(rows, Round, task.run_id, task.round)
            if task.state not in UNFINISHED_TASKS:
                reply = self._reply(self._sent.pop(key), asked, task)
                replies += [reply] if reply else []
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Hold the round of these messages, and yield its replies: none is held on to.

        A round's deadline is fixed when it opens: the messages' time to live, or the timeout if
        that is shorter.

        Raises:
            RoundGivenUpError: While it waits: the run was stopped, or the coordinator stops.
            StoreError: An answer's file is damaged; or the round is over and done with.
        """
        return self._replies(self._push(list(messages), timeout))

    # --- the round -----------------------------------------------------------------------------

    def _push(self, messages: Sequence[Message], timeout: float | None) -> list[str]:
        if not messages:
            return []
        cohort = [self._device(message.metadata.dst_node_id) for message in messages]
        task, opening = self._asked(messages, cohort, timeout)
        opened = self._open(task, opening)
        with self.coordinator.fleet.store.read() as rows:
            tasks = rows.all(Task, run_id=task.run_id, round=task.round)
        _require_same(opened, {each.device_id for each in tasks}, opening)
        ids = {each.device_id: each.task_id for each in tasks}
        for device_id, message in zip(cohort, messages, strict=True):
            flower.set_message_id(message, ids[device_id])
            self._sent[ids[device_id]] = message
        return [ids[device_id] for device_id in cohort]

    def _asked(
        self, messages: Sequence[Message], cohort: Sequence[str], timeout: float | None
    ) -> tuple[TrainTask | MetricTask, fr.Opening]:
        """What the messages ask, decoded once."""
        first = messages[0]
        if any(m.content is not first.content for m in messages) or len(set(cohort)) < len(cohort):
            raise PlanError("expected a round's messages to share one content, one for each device")
        kind = first.metadata.message_type
        if kind not in _DECODERS:
            required = f"one of {', '.join(_DECODERS)}"
            raise PlanError(expected("message_type", kind, required))
        task = _DECODERS[kind](flower.from_records(first.content))
        self._require_ours(task)
        left = first.metadata.created_at + first.metadata.ttl - time.time()
        return task, opening_of(task, cohort, left if timeout is None else min(left, timeout))

    def _require_ours(self, task: TrainTask | MetricTask) -> None:
        """Refuse what isn't this run's, or the run's of its metric."""
        with self.coordinator.fleet.store.read() as rows:
            run, asked = rows.find(Run, self.run_id), rows.find(Run, task.run_id)
        owner = asked and (asked.measures if isinstance(task, MetricTask) else asked.run_id)
        if run is None or owner != self.run_id:
            required = f"{self.run_id!r}, or its metric's"
            raise PlanError(expected("run_id", task.run_id, required))
        for name, got, wanted in (
            ("base_sha256", task.base_sha256, run.base),
            ("manifest_sha256", task.manifest_sha256, run.manifest),
        ):
            if got != wanted:
                raise PlanError(expected(name, got, f"= {wanted!r}, as the run was started"))

    def _open(self, task: TrainTask | MetricTask, opening: fr.Opening) -> Round:
        fleet, number = self.coordinator.fleet, task.round
        with fleet.store.read() as rows:
            found = rows.find(Round, task.run_id, number)
        found = found or fr.plan_round(fleet, task.run_id)
        if found is None or found.round != number:
            required = "the run's next" if found is None else f"= {found.round}"
            raise PlanError(expected("round", number, required))
        opened = fr.open_round(fleet, task.run_id, number, opening)
        if opened.state == "planned":
            raise RoundGivenUpError(f"{task.run_id} isn't running: round {number} stays planned")
        return opened

    def _close(self, run_id: str, number: int) -> Round | None:
        """The round, if it takes no more answers; None: it still does."""
        who = self.coordinator
        if not fr.is_due(who.fleet, run_id, number):
            return None
        closed = fr.close_round(who.fleet, who.work, run_id, number)
        return None if closed.state in fr.COLLECTING else closed

    def _wait(self, run_id: str, number: int) -> Round:
        who = self.coordinator
        while True:
            heard = who.bell.count
            who.check_running()
            if (closed := self._close(run_id, number)) is not None:
                return closed
            who.bell.wait(heard, LOOK_S)

    def _replies(self, keys: Sequence[str]) -> Iterator[Message]:
        if not keys:
            return
        store = self.coordinator.fleet.store
        with store.read() as rows:
            first = fr.require(rows, Task, keys[0])
        number = first.round
        closed = self._wait(first.run_id, number)
        if closed.state == "given-up":
            raise RoundGivenUpError(f"round {number} was given up: {closed.reason}")
        if closed.state not in ("closing", "failed"):
            raise StoreError(f"round {number} is {closed.state}: its answers were used already")
        with store.read() as rows:
            tasks = rows.all(Task, run_id=first.run_id, round=number)
        messages = {key: self._sent.pop(key) for key in keys}
        for task in tasks:
            reply = self._reply(messages[task.task_id], closed, task)
            if reply is not None:
                yield reply

    def _reply(self, message: Message, asked: Round, task: Task) -> Message | None:
        """A task's reply once it has ended; None: its device had nothing to say in time."""
        match task.state:
            case "answered":
                return self._answer(message, asked, task)
            case "declined":
                return _answered(message, Error(flower.ERROR_REFUSED, task.reason))
            case "rejected":
                return _answered(message, Error(flower.ERROR_REJECTED, task.reason))
            case "expired" if asked.deadline_ms <= asked.opened_ms:
                return _answered(message, Error(flower.ERROR_EXPIRED, "over before it began"))
        return None

    def _answer(self, message: Message, asked: Round, task: Task) -> Message | None:
        fleet = self.coordinator.fleet
        with fleet.store.read() as rows:
            accepted = rows.find(Accepted, task.run_id, task.round, task.device_id)
        if accepted is None:
            raise StoreError(f"task {task.task_id} is answered, but no update is named")
        if asked.state == "failed" and not fleet.artefacts.has(accepted.sha256):
            return None  # nothing is made of it any more
        data = fleet.artefacts.read(accepted.sha256)
        return _answered(message, flower.to_records(_envelope(asked, data)))

    # --- who is who ----------------------------------------------------------------------------

    def _device(self, number: int) -> str:
        if number not in self._devices:
            with self.coordinator.fleet.store.read() as rows:
                names = [device.device_id for device in rows.all(Device)]
            self._devices = {node_id(name): name for name in names}
            if len(self._devices) < len(names):
                raise StoreError("two devices have the same node id: enrol one of them anew")
        if number not in self._devices:
            raise ConfigError(expected("dst_node_id", number, "a device of this fleet"))
        return self._devices[number]


def _envelope(asked: Round, data: bytes) -> Envelope:
    """What a client would have sent, of an accepted answer's bytes."""
    _, train = fr.read_settings(asked.settings)
    if train is None:
        return encode_measurement(decode_measurement(data)[0])
    return encode_update(decode_update(data, at_most=asked.max_answer_bytes)[0])


def opening_of(task: TrainTask | MetricTask, cohort: Sequence[str], time_s: float) -> fr.Opening:
    """What a round works with that asks a cohort for this task."""
    return fr.Opening(
        plan=task.plan,
        settings=fr.write_settings(task.lora, getattr(task, "train", None)),
        adapter=encode_adapter(task.tensors) if task.tensors else None,
        cohort=cohort,
        time_ms=round(time_s * 1000),
    )


def _require_same(opened: Round, asked: Collection[str], opening: fr.Opening) -> None:
    before = Artefact.of(opening.adapter).sha256 if opening.adapter else ""
    for name, got, wanted in (
        ("plan", Artefact.of(opening.plan).sha256, opened.plan),
        # Read, so that a later version's further settings have their defaults.
        ("settings", fr.read_settings(opening.settings), fr.read_settings(opened.settings)),
        ("adapter", before, opened.adapter_before),
        ("cohort", sorted(opening.cohort), sorted(asked)),
    ):
        if got != wanted:
            required = f"= {wanted!r}, with which round {opened.round} was opened"
            raise PlanError(expected(name, got, required))


def _answered(message: Message, content: RecordDict | Error) -> Message:
    """The reply to a message, from the device that it was for."""
    sent = flower.metadata_fields(message.metadata)
    fields = {
        **sent,
        "message-id": uuid.uuid4().hex,
        "reply-to": sent["message-id"],
        "src-node-id": sent["dst-node-id"],
        "dst-node-id": sent["src-node-id"],
    }
    return flower.rebuild_message(fields, content)
