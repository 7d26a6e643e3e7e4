"""The methods about tasks and what they name: PullTask, Acknowledge, Decline, FetchArtefact."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sordino.core import contract
from sordino.core.contract import Artefact
from sordino.core.errors import ContractError, expected
from sordino.protos.v1 import common_pb2, fleet_pb2, work_pb2
from sordino.server.enroll import Call, Peer
from sordino.server.fleet_rounds import acknowledge, decline, may_fetch, task_for
from sordino.server.fleet_rounds.context import require
from sordino.server.fleet_rounds.tasks import task_of
from sordino.server.service.membership import cancelled
from sordino.server.service.orders import Orders
from sordino.server.service.shared import Shared, require_about, require_member, task_state
from sordino.server.store import ArtefactRow, Certificate, Task

_KINDS: Final = {
    "base": common_pb2.ARTEFACT_KIND_BASE_GGUF,
    "manifest": common_pb2.ARTEFACT_KIND_MANIFEST_JSON,
    "adapter": common_pb2.ARTEFACT_KIND_ADAPTER,
}
_WORD: Final = re.compile(r"[a-z][a-z0-9-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What the store says to a waiting device.

    Attributes:
        order: A task that its stream hasn't sent yet.
        over: Those that it has sent, and that aren't open any more.
        rest_ms: How long the device rests yet.
    """

    order: work_pb2.Task | None
    over: Sequence[Task]
    rest_ms: int


class Tasks:
    """What a device is asked, and is given for it. Each look at the store is done in a thread.

    Args:
        shared: The service's surroundings.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared, self._fleet = shared, shared.fleet
        self._orders = Orders(shared.fleet)

    async def pull(self, call: Call, context: Any) -> AsyncIterator[fleet_pb2.PullTaskResponse]:
        """Wait for work, and say what becomes of it."""
        settings = self._shared.settings
        wait_ms = min(call.opened.body.wait_ms, settings.wait_ms)
        until = time.monotonic() + wait_ms / 1000
        sent: set[str] = set()
        with self._shared.presence.waiting(call.peer.device_id) as waiting:
            while True:
                look = await asyncio.to_thread(self._look, call.peer, sorted(sent))
                for task in look.over:
                    sent.discard(task.task_id)
                    if task.state in ("cancelled", "expired"):
                        yield fleet_pb2.PullTaskResponse(cancelled=cancelled(task))
                if look.order is not None:
                    sent.add(look.order.task_id)
                    yield fleet_pb2.PullTaskResponse(task=look.order)
                else:
                    yield self._still_here(look.rest_ms)
                left = until - time.monotonic()
                if left <= 0 or (look.rest_ms and not sent):
                    return
                await waiting.pause(min(left, settings.tick_ms / 1000))

    async def acknowledge(self, call: Call, context: Any) -> fleet_pb2.AcknowledgeResponse:
        """Take a task."""
        body: fleet_pb2.AcknowledgeRequest = call.opened.body

        def take() -> Task:
            self._require_own(call, body.task_id)
            plan = body.plan_sha256.hex()
            return acknowledge(self._fleet, call.peer.device_id, body.task_id, plan)

        task = await asyncio.to_thread(take)
        return fleet_pb2.AcknowledgeResponse(state=task_state(task.state))

    async def decline(self, call: Call, context: Any) -> fleet_pb2.DeclineResponse:
        """Let a task go."""
        body: fleet_pb2.DeclineRequest = call.opened.body
        if not _WORD.fullmatch(body.reason):
            raise ContractError("bad-value", expected("reason", body.reason, "a word"))

        def refuse() -> Task:
            self._require_own(call, body.task_id)
            return decline(self._fleet, call.peer.device_id, body.task_id, body.reason)

        task = await asyncio.to_thread(refuse)
        return fleet_pb2.DeclineResponse(state=task_state(task.state))

    async def fetch(
        self, call: Call, context: Any
    ) -> AsyncIterator[fleet_pb2.FetchArtefactResponse]:
        """Send a file from an offset on. Whether it may be had is looked at again now and then."""
        body: fleet_pb2.FetchArtefactRequest = call.opened.body
        sha256, offset = body.sha256.hex(), body.offset
        device_id, settings = call.peer.device_id, self._shared.settings
        row = await asyncio.to_thread(self._permitted, device_id, sha256)
        if offset > row.size:
            raise ContractError("wrong-offset", expected("offset", offset, f"<= {row.size}"))
        named = contract.artefact_message(Artefact(sha256=sha256, size=row.size), _KINDS[row.kind])
        yield fleet_pb2.FetchArtefactResponse(artefact=named)
        looked = time.monotonic()
        while offset < row.size:
            if time.monotonic() - looked > settings.tick_ms / 1000:
                await asyncio.to_thread(self._permitted, device_id, sha256)
                looked = time.monotonic()
            data = await asyncio.to_thread(self._piece, sha256, offset)
            chunk = common_pb2.Chunk(offset=offset, data=data)
            yield fleet_pb2.FetchArtefactResponse(chunk=chunk)
            offset += len(data)

    def _permitted(self, device_id: str, sha256: str) -> ArtefactRow:
        with self._fleet.store.read() as rows:
            require_member(rows, device_id)
        return may_fetch(self._fleet, device_id, sha256)

    def _piece(self, sha256: str, offset: int) -> bytes:
        return next(self._fleet.artefacts.chunks(sha256, offset, self._shared.settings.chunk_bytes))

    def _require_own(self, call: Call, task_id: str) -> None:
        with self._fleet.store.read() as rows:
            require_about(call, task_of(rows, call.peer.device_id, task_id))

    def _look(self, peer: Peer, sent: Sequence[str]) -> _Look:
        now = self._fleet.now_ms()
        with self._fleet.store.read() as rows:
            device = require_member(rows, peer.device_id)
            shown = rows.find(Certificate, peer.serial)
            tasks = [require(rows, Task, task_id) for task_id in sent]
        if shown is None or shown.not_after_ms <= now:
            raise ContractError("certificate-expired", "the certificate has ended: enrol anew")
        task = task_for(self._fleet, peer.device_id)
        new = task is not None and task.task_id not in sent
        rests = device.rests_until_ms - now if device.state == "resting" else 0
        return _Look(
            order=self._orders.message(task) if task is not None and new else None,
            over=[each for each in tasks if each.state not in ("offered", "taken")],
            rest_ms=max(0, rests),
        )

    def _still_here(self, rest_ms: int) -> fleet_pb2.PullTaskResponse:
        still = fleet_pb2.StillHere(now_unix_ms=self._fleet.now_ms(), rest_ms=rest_ms)
        return fleet_pb2.PullTaskResponse(still_here=still)
