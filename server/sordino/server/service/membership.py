"""The methods about the device itself: Enroll, Renew, Hello, Heartbeat, Leave."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from cryptography import x509
from google.protobuf.json_format import MessageToDict

from sordino.core import contract
from sordino.core.errors import ContractError
from sordino.core.trust import renew_after_ms
from sordino.privacy.ledger.keys import signature_holds
from sordino.protos.v1 import common_pb2, fleet_pb2
from sordino.server import enroll
from sordino.server.enroll import Call, Peer
from sordino.server.fleet_rounds import hello, keep_head, last_head, leave, seen
from sordino.server.logs import say
from sordino.server.service.shared import Shared
from sordino.server.store import Certificate, Head, Task

_LOG = logging.getLogger(__name__)
_CANCELLED = ("cancelled", "expired")


class Membership:
    """What a device says of itself. Each method's work is done in a thread.

    Args:
        shared: The service's surroundings.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared, self._fleet = shared, shared.fleet
        self._terms = enroll.Terms(certificate_days=shared.settings.certificate_days)

    async def enroll(self, data: bytes, context: Any) -> fleet_pb2.EnrollResponse:
        """Make a member. The one method that is open to everybody."""
        request = contract.from_bytes(data, fleet_pb2.EnrollRequest)
        answer = await asyncio.to_thread(
            enroll.enroll,
            self._shared.members,
            self._shared.authority,
            request,
            now_unix_ms=self._fleet.now_ms(),
            terms=self._terms,
        )
        say(_LOG, "device-enrolled", device=answer.device_id)
        return answer

    async def renew(self, call: Call, context: Any) -> fleet_pb2.RenewResponse:
        """Certify the next key."""
        return await asyncio.to_thread(
            enroll.renew,
            self._shared.members,
            self._shared.authority,
            call.peer,
            call.opened.body,
            now_unix_ms=self._fleet.now_ms(),
            terms=self._terms,
        )

    async def hello(self, call: Call, context: Any) -> fleet_pb2.HelloResponse:
        """Keep what the device can and where its ledger stands; tell the fleet's terms."""
        return await asyncio.to_thread(self._hello, call.peer.device_id, call.opened.body)

    async def heartbeat(self, call: Call, context: Any) -> fleet_pb2.HeartbeatResponse:
        """Keep that the device lives; tell it what it should know."""
        body: fleet_pb2.HeartbeatRequest = call.opened.body
        answer = await asyncio.to_thread(self._heartbeat, call.peer, body.task_id)
        at_hand = body.activity != fleet_pb2.ACTIVITY_NOT_NOW
        self._shared.presence.heard(call.peer.device_id, at_hand=at_hand)
        return answer

    async def leave(self, call: Call, context: Any) -> fleet_pb2.LeaveResponse:
        """Let the device go."""
        device_id = call.peer.device_id
        left = await asyncio.to_thread(leave, self._fleet, device_id, call.opened.body.reason)
        self._shared.presence.gone(device_id)
        say(_LOG, "device-left", device=device_id)
        return fleet_pb2.LeaveResponse(left_at_unix_ms=left.gone_ms)

    def _hello(self, device_id: str, body: fleet_pb2.HelloRequest) -> fleet_pb2.HelloResponse:
        self._keep_head(device_id, body)
        capabilities = {"revision": body.revision, **_plain(body.capabilities)}
        if body.HasField("calibration"):
            capabilities["calibration"] = _plain(body.calibration)
        text = json.dumps(capabilities, sort_keys=True)
        hello(self._fleet, device_id, software=body.software, capabilities=text)
        settings = self._shared.settings
        answer = fleet_pb2.HelloResponse(
            revision=contract.REVISION,
            fleet=settings.fleet_name,
            now_unix_ms=self._fleet.now_ms(),
            heartbeat_interval_ms=settings.heartbeat_ms,
            max_wait_ms=settings.wait_ms,
            chunk_bytes=settings.chunk_bytes,
            max_calls_per_minute=settings.calls_per_minute,
        )
        if (known := last_head(self._fleet, device_id)) is not None:
            answer.known_ledger_head.CopyFrom(_head(known))
        return answer

    def _keep_head(self, device_id: str, body: fleet_pb2.HelloRequest) -> None:
        """Hold the ledger's head against those that are kept.

        Raises:
            ContractError: ``wrong-receipt``: its signature doesn't hold; ``ledger-rolled-back``.
        """
        if not body.HasField("ledger_head"):
            if last_head(self._fleet, device_id) is not None:
                raise ContractError(
                    "ledger-rolled-back", "the device had a ledger: restore the one that was in use"
                )
            return
        head = contract.read_head(body.ledger_head)
        if not signature_holds(head.public_key, head.receipt.ledger_head, head.signature):
            raise ContractError("wrong-receipt", "the signature of the ledger's head doesn't hold")
        keep_head(self._fleet, device_id, head)

    def _heartbeat(self, peer: Peer, task_id: str) -> fleet_pb2.HeartbeatResponse:
        seen(self._fleet, peer.device_id)
        now = self._fleet.now_ms()
        with self._fleet.store.read() as rows:
            task = rows.find(Task, task_id) if task_id else None
            shown = rows.find(Certificate, peer.serial)
        answer = fleet_pb2.HeartbeatResponse(now_unix_ms=now)
        if task is not None and task.device_id == peer.device_id and task.state in _CANCELLED:
            answer.cancelled.CopyFrom(cancelled(task))
        if shown is not None:
            certificate = x509.load_der_x509_certificate(bytes.fromhex(shown.der))
            answer.renew_now = now >= renew_after_ms(certificate)
        return answer


def cancelled(task: Task) -> fleet_pb2.TaskCancelled:
    """That a task isn't wanted any more, as it travels."""
    return fleet_pb2.TaskCancelled(task_id=task.task_id, reason=task.reason or "round-over")


def _head(known: Head) -> common_pb2.LedgerHead:
    return common_pb2.LedgerHead(
        entry_index=known.entry_index,
        entry_sha256=bytes.fromhex(known.entry_sha256),
        public_key=bytes.fromhex(known.public_key),
        signature=bytes.fromhex(known.signature),
    )


def _plain(message: Any) -> dict[str, Any]:
    plain: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return plain
