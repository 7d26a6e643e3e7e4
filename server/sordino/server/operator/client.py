"""The other end of `Operator`: for the command `sordino`, and for an operator's own programs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from sordino.core import contract, durable
from sordino.core.errors import ContractError, StoreError, TrustError, expected
from sordino.core.trust import read_secret
from sordino.protos.v1 import common_pb2, operator_pb2
from sordino.server.enroll.operators import CREDENTIALS, FLEET
from sordino.server.operator import ADDRESS, SERVICE

AnswerT = TypeVar("AnswerT", bound=Message)

_TIMEOUT_S: Final = 120.0
_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 30.0
_MOST_MESSAGE: Final = 8 << 20
_AGAIN: Final = frozenset({"same", "resume"})
_BEGIN_ANEW: Final = frozenset({"unknown-artefact", "wrong-offset"})
"""What an earlier try left is of a file that is over, or of none."""
_PEM_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where a coordinator is, and as whom it is called.

    Attributes:
        address: HOST:PORT.
        credentials: The operator's folder, as `sordino ca operator` makes it.
        name: The coordinator's name in its certificate, where it isn't the address' host.
    """

    address: str
    credentials: Path
    name: str = ""


def access_of(folder: Path, credentials: Path, address: str = "") -> Access:
    """Access to the coordinator that serves from a folder of this machine.

    Args:
        folder: The fleet's.
        credentials: The operator's.
        address: Where it is; empty: as the coordinator has written down.

    Raises:
        TrustError: None serves there.
    """
    if address:
        return Access(address=address, credentials=credentials)
    try:
        told = json.loads((folder / ADDRESS).read_bytes())
    except (OSError, ValueError) as error:
        raise TrustError(
            f"no coordinator serves operators from {folder}: start it, or give --address"
        ) from error
    return Access(address=told["address"], credentials=credentials, name=told["name"])


class OperatorClient:
    """Calls a coordinator. A call that broke is made again: commands carry an id, so it is safe.

    Args:
        access: Where and as whom.
        pause: How to wait.

    Raises:
        TrustError: The credentials can't be read.
    """

    def __init__(self, access: Access, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._access, self._pause = access, pause
        self._channel = open_channel(access)

    def __enter__(self) -> OperatorClient:
        """Call."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._channel.close()

    def call(self, method: str, request: Message, answer: type[AnswerT]) -> AnswerT:
        """Call a method that gives one answer.

        Raises:
            ContractError: It was refused, with the contract's word.
            TrustError: The coordinator can't be reached, or one of the two isn't believed.
        """
        stub = self._channel.unary_unary(
            f"/{SERVICE}/{method}", request_serializer=contract.to_bytes
        )
        data = self._tried(lambda: stub(request, timeout=_TIMEOUT_S))
        made: AnswerT = answer.FromString(data)
        return made

    def runs(self) -> Iterator[operator_pb2.Run]:
        """All runs, newest first."""
        kinds = operator_pb2.ListRunsRequest, operator_pb2.ListRunsResponse
        for page in self._pages("ListRuns", *kinds):
            yield from page.runs

    def run(self, run_id: str) -> operator_pb2.Run:
        """A run."""
        request = operator_pb2.GetRunRequest(run_id=run_id)
        return self.call("GetRun", request, operator_pb2.Run)

    def rounds(self, run_id: str) -> Iterator[operator_pb2.Round]:
        """A run's rounds, newest first."""
        kinds = operator_pb2.ListRoundsRequest, operator_pb2.ListRoundsResponse
        for page in self._pages("ListRounds", *kinds, run_id=run_id):
            yield from page.rounds

    def devices(self, *states: operator_pb2.DeviceState) -> Iterator[operator_pb2.Device]:
        """Devices by name; those in these states, if any are given."""
        kinds = operator_pb2.ListDevicesRequest, operator_pb2.ListDevicesResponse
        for page in self._pages("ListDevices", *kinds, states=states):
            yield from page.devices

    def heads(self, run_id: str = "") -> Iterator[operator_pb2.DeviceLedgerHead]:
        """The newest head of each device's ledger, or of those that answered a run."""
        kinds = operator_pb2.ListLedgerHeadsRequest, operator_pb2.ListLedgerHeadsResponse
        for page in self._pages("ListLedgerHeads", *kinds, run_id=run_id):
            yield from page.heads

    def watch(self, *, after: int = 0, run_id: str = "") -> Iterator[operator_pb2.Event]:
        """What happens, for as long as it is asked for; over broken connections too.

        Args:
            after: Only events after this number; 0: only those to come.
            run_id: Only of this run; empty: of all, and of the fleet.

        Raises:
            ContractError: It was refused for good.
            TrustError: The coordinator can't be reached any more.
        """
        stub = self._channel.unary_stream(f"/{SERVICE}/Watch", request_serializer=contract.to_bytes)
        broken = 0
        while True:
            try:
                request = operator_pb2.WatchRequest(after=after, run_id=run_id)
                for data in stub(request):
                    event = operator_pb2.Event.FromString(data)
                    after, broken = event.number, 0
                    yield event
            except grpc.RpcError as error:
                broken += 1
                self._wait_or_raise(error, broken)

    def export(
        self, run_id: str, kind: common_pb2.ArtefactKind, target: Path, *, round_number: int = 0
    ) -> contract.Artefact:
        """Fetch a file, on from where an earlier try for the same target stopped.

        Args:
            run_id: Of which run.
            kind: Which file.
            target: Where it goes, once it is whole and its hash is right.
            round_number: The round whose state is meant; 0: the newest.

        Raises:
            ContractError: It was refused.
            StoreError: It can't be written, or the bytes aren't what they were said to be.
            TrustError: As `call`.
        """
        stub = self._channel.unary_stream(
            f"/{SERVICE}/Export", request_serializer=contract.to_bytes
        )
        asked = operator_pb2.ExportRequest(run_id=run_id, kind=kind, round=round_number)
        broken = 0
        while True:
            part = _part_of(target)
            request = operator_pb2.ExportRequest()
            request.CopyFrom(asked)
            if part is not None:
                request.sha256 = bytes.fromhex(part.suffixes[-2].removeprefix("."))
                request.offset = part.stat().st_size
            try:
                return _receive(stub(request), target, request.offset)
            except grpc.RpcError as error:
                if part is not None and _failure(error).reason in _BEGIN_ANEW:
                    part.unlink()
                    continue
                broken += 1
                self._wait_or_raise(error, broken)

    def _pages(
        self, method: str, request: Any, answer: type[AnswerT], **about: Any
    ) -> Iterator[AnswerT]:
        token = ""
        while True:
            page = operator_pb2.Page(token=token)
            found: Any = self.call(method, request(page=page, **about), answer)
            yield found
            token = found.next
            if not token:
                return

    def _tried(self, call: Callable[[], bytes]) -> bytes:
        broken = 0
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                broken += 1
                self._wait_or_raise(error, broken)

    def _wait_or_raise(self, error: grpc.RpcError, broken: int) -> None:
        """Wait before a call is made again, if it is to be made again at all."""
        failure = _failure(error)
        if failure.retry not in _AGAIN or broken >= _TRIES:
            if failure.reason:
                word, _, rest = failure.message.partition(": ")
                message = rest if word == failure.reason else failure.message
                raise ContractError(failure.reason, message) from error
            raise TrustError(
                f"can't call the coordinator at {self._access.address} ({failure.message}): check "
                "the address, that it runs, and that its certificate and this operator's are good"
            ) from error
        usual = min(_FIRST_PAUSE_S * 2 ** (broken - 1), _LONGEST_PAUSE_S)
        self._pause(max(usual, failure.retry_after_ms / 1000))


def open_channel(access: Access, *more: tuple[str, Any]) -> Any:
    """Connect, over TLS, as an operator.

    Args:
        access: Where and as whom.
        more: Further options of gRPC's.

    Returns:
        `grpc.Channel`.

    Raises:
        TrustError: The credentials can't be read.
    """
    data = read_secret(access.credentials / CREDENTIALS, made_by="sordino ca operator")
    try:
        authority = (access.credentials / FLEET).read_bytes()
    except OSError as error:
        raise TrustError(
            f"can't read {access.credentials / FLEET} ({error.strerror}): sordino ca operator "
            "makes it"
        ) from error
    begin = data.find(_PEM_CERTIFICATE)
    if begin < 0:
        raise TrustError(expected(CREDENTIALS, "no certificate", "a key and its certificate"))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority, private_key=data[:begin], certificate_chain=data[begin:]
    )
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _MOST_MESSAGE),
        ("grpc.keepalive_time_ms", 60_000),
        *more,
    ]
    if access.name:
        options.append(("grpc.ssl_target_name_override", access.name))
    return grpc.secure_channel(access.address, credentials, options=options)


def _failure(error: Any) -> contract.Failure:
    """Why a call failed; without a word of the contract where it wasn't answered at all."""
    for name, value in error.trailing_metadata() or ():
        if name == contract.TRAILER:
            return contract.decode_failure(value)
    code = error.code()
    lost = code is grpc.StatusCode.UNAVAILABLE
    return contract.Failure(
        reason="", message=str(error.details() or code), retry="same" if lost else "never"
    )


def _part_of(target: Path) -> Path | None:
    """What came of a file before, under the hash that it will have."""
    return next(iter(sorted(target.parent.glob(f"{target.name}.*.part"))), None)


def _receive(stream: Any, target: Path, offset: int) -> contract.Artefact:
    parts = (operator_pb2.ExportResponse.FromString(data) for data in stream)
    named = next(parts).artefact
    artefact = contract.Artefact(sha256=named.sha256.hex(), size=named.size)
    draft = target.with_name(f"{target.name}.{artefact.sha256}.part")
    try:
        durable.make_folder(target.parent)
        with draft.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            for part in parts:
                if part.chunk.offset != file.tell():
                    raise StoreError(expected("offset", part.chunk.offset, f"= {file.tell()}"))
                file.write(part.chunk.data)
        with draft.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != artefact.sha256:
            draft.unlink()
            raise StoreError(expected("SHA-256", found, f"= {artefact.sha256}", "fetch it again"))
        draft.replace(target)
        durable.sync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"can't write {target}: {error.strerror}") from error
    return artefact
