"""One task, from the moment it is pulled until it is forgotten.

    check ─ note ─ Acknowledge ─ fetch ─ [the ClientApp: charge, train, keep, release]
          ─ keep the answer ─ OfferUpload ─ PushUpdate ─ accepted ─ forget

A break anywhere, of the network or of the process, ends the attempt; `finish` goes on from what is
on disk, and there is no other way to go on. Nothing here charges or draws: the ClientApp does, once
a round, whoever asks how often.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sordino.client.agent.bridge import RefusedError, ask_app
from sordino.client.agent.cache import ArtefactCache
from sordino.client.agent.heads import signed_head
from sordino.client.agent.journal import Journal
from sordino.client.agent.link import CallError, Link
from sordino.client.agent.sending import fetch_chunks, send
from sordino.client.agent.sessions import Ready, Sessions
from sordino.client.agent.timing import Surroundings
from sordino.client.app import check_task, refusal
from sordino.client.charged import find_answer
from sordino.core import contract
from sordino.core.contract import Artefact, TaskOrder
from sordino.core.errors import (
    ContractError,
    DataError,
    LedgerError,
    PlanError,
    SordinoError,
)
from sordino.core.records import Measurement, MetricTask, Tensors, TrainTask, Update
from sordino.core.wire import decode_measurement, decode_update, unpack
from sordino.privacy.ledger import Hook, no_hook
from sordino.privacy.plan import NoPrivacyPlan, decode_plan
from sordino.protos.v1 import common_pb2, fleet_pb2

BASE_SUFFIX: Final = ".gguf"
_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Desk:
    """What a task is done with.

    Attributes:
        link: To the coordinator.
        journal: What outlasts the process.
        cache: Fetched files.
        sessions: The device's data and models.
        app: The ClientApp.
        surroundings: Time and chance.
        seeded: Whether the device's noise is seeded, and so good for plans without privacy alone.
        chunk_bytes: The size of the pieces that are sent.
        progress: Told when the coordinator and this device got on: the next wait is a short one.
        at: Told each step as it is reached.
        cancelled: Tasks that the coordinator doesn't want any more.
    """

    link: Link
    journal: Journal
    cache: ArtefactCache
    sessions: Sessions
    app: Any
    surroundings: Surroundings
    seeded: bool = False
    chunk_bytes: int = 1 << 18
    progress: Callable[[], None] = lambda: None
    at: Hook = no_hook
    cancelled: set[str] = field(default_factory=set)


def begin(desk: Desk, order: TaskOrder) -> None:
    """Do a task that was just pulled: take it if the owner's policy lets it, and answer it.

    Raises:
        CallError: The coordinator or the network failed; `finish` goes on.
    """
    ends_s = desk.surroundings.elapsed_s() + order.expires_in_ms / 1000
    try:
        ready = desk.sessions.of_base(order, lambda base: _fetch_base(desk, base))
        _hold(desk, order, ready)
    except (SordinoError, OSError) as error:
        if isinstance(error, CallError) and not error.refused:
            raise
        _LOG.warning("%s declined: %s", _name(order), error)
        _decline(desk, order, refusal(error) if isinstance(error, SordinoError) else "unavailable")
        return
    desk.journal.note(contract.encode_task(order))
    desk.at("task:noted")
    if not _take(desk, order):
        desk.journal.forget()
        return
    desk.at("task:taken")
    try:
        task = order.client_task(_adapter(desk, order))
    except (CallError, ContractError, DataError) as error:
        if isinstance(error, CallError) and not error.refused:
            raise
        _LOG.warning("%s has no adapter: %s", _name(order), error)
        _give_up(desk, order, "unavailable")
        return
    desk.at("adapter:here")
    left_s = ends_s - desk.surroundings.elapsed_s()
    if left_s <= 0 or order.task_id in desk.cancelled:
        _LOG.info("%s is over before it was begun: nothing was charged", _name(order))
        desk.journal.forget()
        return
    _answer(desk, order, ready, task, left_s)


def finish(desk: Desk) -> None:
    """Go on with what an earlier attempt, or an earlier process, left on disk.

    An answer is sent. A round that was charged is answered with what was kept, or declined where
    nothing was. A task that wasn't charged is forgotten: it comes again if it is still wanted.

    Raises:
        CallError: As `begin`.
    """
    noted = desk.journal.read()
    if noted is None:
        return
    order = noted.order
    if noted.answer is not None:
        _send(desk, order, noted.answer)
        return
    session = desk.sessions.installed().session
    try:
        state, data = find_answer(session.state_dir, session.client_id, order.run_id, order.round)
    except LedgerError as error:
        _LOG.error("%s can't be answered: %s", _name(order), error)
        state, data = "abandoned", b""
    if state == "released":
        envelope = unpack(data)
        made = decode_update(envelope) if order.train else decode_measurement(envelope)
        _keep_and_send(desk, order, made)
    elif state == "abandoned":
        _give_up(desk, order, "ledger-refused")
    else:
        desk.journal.forget()


def _hold(desk: Desk, order: TaskOrder, ready: Ready) -> None:
    """Hold a task against the device before it is taken."""
    task = replace(order, adapter=None).client_task({})  # the adapter changes nothing of this
    check_task(ready.session, task)
    if not desk.seeded:
        return
    if isinstance(task, MetricTask) or not isinstance(decode_plan(order.plan), NoPrivacyPlan):
        raise PlanError("node.noise_seed is set: this device takes plans without privacy alone")


def _take(desk: Desk, order: TaskOrder) -> bool:
    """Take the task; whether it is ours to do."""
    body = fleet_pb2.AcknowledgeRequest(
        task_id=order.task_id, plan_sha256=bytes.fromhex(order.plan_sha256)
    )
    try:
        answer = desk.link.call(
            "Acknowledge",
            body,
            fleet_pb2.AcknowledgeResponse,
            run_id=order.run_id,
            number=order.round,
        )
    except CallError as error:
        if not error.refused:
            raise
        _LOG.warning("%s can't be taken: %s", _name(order), error)
        return False
    desk.progress()
    if answer.state != fleet_pb2.TASK_STATE_TAKEN:
        state = fleet_pb2.TaskState.Name(answer.state).removeprefix("TASK_STATE_").lower()
        _LOG.info("%s is %s", _name(order), state)
        return False
    return True


def _answer(
    desk: Desk, order: TaskOrder, ready: Ready, task: TrainTask | MetricTask, ttl_s: float
) -> None:
    """Have the ClientApp answer."""
    try:
        made = ask_app(desk.app, ready.config, task, ttl_s=ttl_s)
    except RefusedError as error:
        _give_up(desk, order, error.word)
        return
    _keep_and_send(desk, order, made)


def _keep_and_send(desk: Desk, order: TaskOrder, made: Update | Measurement) -> None:
    """Keep an answer as it will travel, and send it."""
    answer = desk.journal.keep(_encode(made, desk.sessions.ledger))
    desk.at("answer:kept")
    if order.task_id in desk.cancelled:  # before it was offered: it needn't be
        desk.journal.forget()
        return
    _send(desk, order, answer)


def _encode(made: Update | Measurement, ledger: Path) -> bytes:
    """An answer as it travels, with its receipt's signature from the ledger."""
    head = None
    if made.receipt is not None:
        head = signed_head(ledger, made.receipt.entry_index)
    if isinstance(made, Update):
        return contract.encode_update(made, head)
    if head is None:
        raise LedgerError(f"{ledger} doesn't hold the entry that its own receipt names")
    return contract.encode_measurement(made, head)


def _send(desk: Desk, order: TaskOrder, answer: Artefact) -> None:
    waits = desk.surroundings
    try:
        while not send(
            desk.link,
            order,
            answer,
            desk.journal.path_of(answer),
            chunk_bytes=desk.chunk_bytes,
            progress=desk.progress,
            at=desk.at,
        ):
            if waits.pause(1.0 + waits.chance()):
                return
    except CallError as error:
        if not error.refused:
            raise
        # Politely: what was charged stays charged, and what was made goes.
        _LOG.warning("%s isn't wanted: %s", _name(order), error)
    desk.progress()
    desk.journal.forget()
    desk.at("task:forgotten")


def _decline(desk: Desk, order: TaskOrder, word: str) -> None:
    body = fleet_pb2.DeclineRequest(task_id=order.task_id, reason=word)
    try:
        desk.link.call(
            "Decline", body, fleet_pb2.DeclineResponse, run_id=order.run_id, number=order.round
        )
    except CallError as error:
        if not error.refused:
            raise
        _LOG.warning("%s can't be declined: %s", _name(order), error)


def _give_up(desk: Desk, order: TaskOrder, word: str) -> None:
    _LOG.warning("%s declined: %s", _name(order), word)
    _decline(desk, order, word)
    desk.journal.forget()
    desk.at("task:declined")


def _adapter(desk: Desk, order: TaskOrder) -> Tensors:
    if order.adapter is None:
        return {}
    base = desk.cache.find(order.base, BASE_SUFFIX)
    kind = common_pb2.ARTEFACT_KIND_ADAPTER
    path = _fetch(desk, order.adapter, kind, needed=[base] if base else [])
    try:
        return contract.decode_adapter(path.read_bytes(), order.adapter)
    except ContractError:
        path.unlink()  # what is wrong with it isn't kept for the next time
        raise


def _fetch_base(desk: Desk, base: Artefact) -> Path:
    return _fetch(desk, base, common_pb2.ARTEFACT_KIND_BASE_GGUF, suffix=BASE_SUFFIX)


def _fetch(
    desk: Desk,
    artefact: Artefact,
    kind: common_pb2.ArtefactKind,
    *,
    suffix: str = "",
    needed: Collection[Path] = (),
) -> Path:
    """Find a file or fetch it, from the bytes at hand on."""

    def chunks(offset: int) -> Iterator[tuple[int, bytes]]:
        for chunk in fetch_chunks(desk.link, artefact, kind, offset):
            yield chunk.offset, chunk.data
            desk.progress()
            desk.at("chunk:fetched")

    return desk.cache.fetch(artefact, chunks, suffix=suffix, needed=needed)


def _name(order: TaskOrder) -> str:
    return f"round {order.round} of run {order.run_id}"
