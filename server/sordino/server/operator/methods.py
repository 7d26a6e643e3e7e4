"""The methods of `Operator`: bytes in, checked by the gate before they are parsed; messages out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from cryptography import x509
from google.protobuf.message import Message

from sordino.core import contract
from sordino.core.errors import ContractError
from sordino.protos.v1 import common_pb2, operator_pb2
from sordino.server.bell import Bell
from sordino.server.enroll import check_operator
from sordino.server.fleet_rounds import Fleet
from sordino.server.fleet_rounds.context import require
from sordino.server.operator import commands, exports, listing
from sordino.server.operator.commands import NewRunOf
from sordino.server.operator.settings import OperatorSettings
from sordino.server.operator.views import View
from sordino.server.operator.watching import news
from sordino.server.store import Event, Run

RequestT = TypeVar("RequestT", bound=Message)

_SETTLE_S: Final = 0.05
"""Rings of the bell within so long of each other are one look."""

_READS: Final[Mapping[str, tuple[type[Message], Callable[[View, Any], Message]]]] = {
    "ListRuns": (operator_pb2.ListRunsRequest, listing.list_runs),
    "GetRun": (
        operator_pb2.GetRunRequest,
        lambda view, request: view.run(view.run_called(request.run_id)),
    ),
    "ListRounds": (operator_pb2.ListRoundsRequest, listing.list_rounds),
    "ListDevices": (operator_pb2.ListDevicesRequest, listing.list_devices),
    "ListLedgerHeads": (operator_pb2.ListLedgerHeadsRequest, listing.list_heads),
}
_COMMANDS: Final[Mapping[str, tuple[type[Message], Callable[[Fleet, Any], Any]]]] = {
    "PauseRun": (operator_pb2.RunCommand, commands.pause_run),
    "ResumeRun": (operator_pb2.RunCommand, commands.resume_run),
    "StopRun": (operator_pb2.RunCommand, commands.stop_run),
    "AddRounds": (operator_pb2.AddRoundsRequest, commands.add_rounds),
    "ChangeCohort": (operator_pb2.ChangeCohortRequest, commands.change_cohort),
    "RollBack": (operator_pb2.RollBackRequest, commands.roll_back),
    "RevokeDevice": (operator_pb2.RevokeDeviceRequest, commands.revoke_device),
}


@dataclass(frozen=True, kw_only=True)
class Methods:
    """What the methods work with. Each look at the store is done in a thread.

    Attributes:
        fleet: Rows and files.
        bell: Rung when they change.
        folder: The fleet's: who is an operator, and what was exported.
        authority: The operators'.
        settings: The limits.
        new_run: Makes a run from its settings.
        online: The devices that are there.
        stopping: Whether the service is about to end: the bell is rung then.
        watching: A key of each open `Watch`. Belongs to the service's event loop.
    """

    fleet: Fleet
    bell: Bell
    folder: Path
    authority: x509.Certificate
    settings: OperatorSettings
    new_run: NewRunOf
    online: Callable[[], Collection[str]]
    stopping: Callable[[], bool]
    watching: set[object] = field(default_factory=set)

    def handlers(self) -> dict[str, Any]:
        """GRPC's handlers by the methods' names; they are given bytes."""
        start = (operator_pb2.StartRunRequest, self._start)
        single = {name: self._reading(*read) for name, read in _READS.items()}
        single |= {name: self._commanding(*each) for name, each in _COMMANDS.items()}
        single["StartRun"] = self._commanding(*start)
        several = {"Watch": self._watch, "Export": self._export}
        wrap = {"response_serializer": contract.to_bytes}
        return {
            **{n: grpc.unary_unary_rpc_method_handler(b, **wrap) for n, b in single.items()},
            **{n: grpc.unary_stream_rpc_method_handler(b, **wrap) for n, b in several.items()},
        }

    def _reading(self, kind: type[RequestT], look: Callable[[View, RequestT], Message]) -> Any:
        def read(data: bytes, context: Any) -> Message:
            self._admit(context)
            request = contract.from_bytes(data, kind)
            with self._view() as view:
                return look(view, request)

        return _in_thread(read)

    def _commanding(self, kind: type[RequestT], do: Callable[[Fleet, RequestT], Any]) -> Any:
        def command(data: bytes, context: Any) -> Message:
            self._admit(context)
            done = do(self.fleet, contract.from_bytes(data, kind))
            with self._view() as view:
                return view.run(done) if isinstance(done, Run) else view.device(done)

        return _in_thread(command)

    def _start(self, fleet: Fleet, request: operator_pb2.StartRunRequest) -> Run:
        return commands.start_run(fleet, request, self.new_run)

    async def _watch(self, data: bytes, context: Any) -> AsyncIterator[operator_pb2.Event]:
        """Tell what happens until the operator goes, or isn't one any more."""
        heard = self.bell.count
        number, run_id = await asyncio.to_thread(self._begin, data, context)
        self.watching.add(context)
        try:
            while not self.stopping():
                found = await asyncio.to_thread(self._news, context, number, run_id)
                for event in found.events:
                    begun = time.monotonic()
                    yield event
                    self._require_pace(begun)
                number = found.number
                if not found.more:
                    await asyncio.sleep(_SETTLE_S)
                    heard = await self.bell.listen(heard, self.settings.tick_ms / 1000)
        finally:
            self.watching.discard(context)
        raise ContractError("stopping", "go on after the last event's number")

    def _require_pace(self, begun: float) -> None:
        """Cut a watcher off that didn't take an event in time: once it has, for gRPC can't sooner.

        Raises:
            ContractError: ``too-slow``.
        """
        limit_s = self.settings.message_s
        if time.monotonic() - begun > limit_s:
            required = f"each event taken within {limit_s} s: go on after the last one's number"
            raise ContractError("too-slow", f"expected {required}")

    def _begin(self, data: bytes, context: Any) -> tuple[int, str]:
        """After which event a watch begins, and of which run it is."""
        self._admit(context)
        request = contract.from_bytes(data, operator_pb2.WatchRequest)
        with self.fleet.store.read() as rows:
            if request.run_id:
                require(rows, Run, request.run_id)
            return request.after or rows.largest(Event, "number"), request.run_id

    def _news(self, context: Any, after: int, run_id: str) -> Any:
        self._admit(context)
        with self._view() as view:
            return news(view, after, run_id)

    async def _export(
        self, data: bytes, context: Any
    ) -> AsyncIterator[operator_pb2.ExportResponse]:
        """Send a file from an offset on."""
        request, made = await asyncio.to_thread(self._make, data, context)
        named = contract.artefact_message(made.artefact, request.kind)
        yield operator_pb2.ExportResponse(artefact=named)
        offset = request.offset
        with made.path.open("rb") as file:
            file.seek(offset)
            while piece := await asyncio.to_thread(file.read, self.settings.chunk_bytes):
                chunk = common_pb2.Chunk(offset=offset, data=piece)
                yield operator_pb2.ExportResponse(chunk=chunk)
                offset += len(piece)

    def _make(
        self, data: bytes, context: Any
    ) -> tuple[operator_pb2.ExportRequest, exports.Exported]:
        self._admit(context)
        request = contract.from_bytes(data, operator_pb2.ExportRequest)
        with self._view() as view:
            return request, exports.export(view, self.folder, request)

    def _admit(self, context: Any) -> None:
        """Know who calls, before anything of the call is read; again at each look of a stream."""
        check_operator(
            context.auth_context(), self.folder, self.authority, now_unix_ms=self.fleet.now_ms()
        )

    @contextmanager
    def _view(self) -> Any:
        with self.fleet.store.read() as rows:
            yield View.of(self.fleet, rows, self.online())


def _in_thread(call: Callable[[bytes, Any], Message]) -> Any:
    async def behaviour(data: bytes, context: Any) -> Message:
        return await asyncio.to_thread(call, data, context)

    return behaviour
