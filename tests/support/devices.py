"""A coordinator that serves over real TLS, and devices that only speak the protocol to it.

A device enrols, signs and calls as docs/contract.md says, one call at a time, and knows no model.
What it sends is up to the test: `Powers` (support/fleets.py) takes numbers, `AdapterWork` tensors.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from sordino.client import identity
from sordino.client.identity import Identity
from sordino.core import contract
from sordino.core.contract import Artefact, TaskOrder
from sordino.core.trust import decode_token, encode_token, fetch_authority
from sordino.protos.v1 import common_pb2, fleet_pb2
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.service import FleetService, ServiceSettings
from sordino.server.store import Nonce, Upload
from sordino.server.store.schema import TABLES
from support import fleets
from support.contracts import make_hello
from support.members import DAY, join

SERVICE = "sordino.v1.Fleet"
CHUNK = 1 << 18
TIMEOUT_S = 60.0
ANY_PORT = "127.0.0.1:0"


class RefusedError(Exception):
    """A call that failed, with its word; `code` alone where gRPC or TLS refused it."""

    def __init__(self, error: grpc.RpcError) -> None:
        trailers = dict(error.trailing_metadata() or ())
        data = trailers.get(contract.TRAILER)
        self.failure = contract.decode_failure(data) if data else None
        self.word = self.failure.reason if self.failure else ""
        self.code: str = error.code().name
        super().__init__(f"{self.word or self.code}: {error.details()}")


@contextmanager
def refusals() -> Iterator[None]:
    """Turn gRPC's errors into `RefusedError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise RefusedError(error) from error


def until(holds: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Wait until something is true, and give it."""
    ends = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < ends, "it didn't come to be"
        time.sleep(0.01)
    return found


@dataclass
class Moved:
    """The real time, moved by the test."""

    by_ms: int = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.by_ms


# --- a coordinator -----------------------------------------------------------------------------


@dataclass
class Coordinator:
    """What serves, and all it serves from. Its work may be another from now on."""

    folder: Path
    fleet: fr.Fleet
    bell: Bell
    service: FleetService
    clock: Moved
    work: Any
    devices: list[Device] = field(default_factory=list)

    @property
    def authority(self) -> enroll.Authority:
        return enroll.load_authority(self.folder)

    def token(self, **changes: str) -> str:
        members = fr.Members(self.fleet)
        made = enroll.make_token(members, self.authority, now_unix_ms=self.clock(), **changes)
        return encode_token(made)

    def enrol(self, name: str) -> Device:
        """A new member, by the wire; its channel is closed with the coordinator."""
        made = Device.enrol(self.folder / "devices" / name, self.service, self.token())
        self.devices.append(made)
        return made

    def admit(self, name: str, now: int = 0) -> Device:
        """A new member without a call, perhaps of long ago, which hasn't called yet."""
        folder, members = self.folder / "devices" / name, fr.Members(self.fleet)
        who = join(folder, self.authority, members, now or self.clock())
        made = Device(who, self.service.fleet_address)
        self.devices.append(made)
        return made

    def state(self) -> list[Any]:
        """All that a refused call must leave as it is: every row, and every file.

        But for nonces, and how many streams an upload had: both only ever keep a call from counting
        twice.
        """
        with self.fleet.store.read() as rows:
            kept = [rows.all(kind) for kind in TABLES if kind not in (Nonce, Upload)]
            uploads = [replace(row, streams=0) for row in rows.all(Upload)]
        files = [
            (path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for part in ("artefacts", "uploads")
            for path in sorted((self.folder / part).rglob("*"))
            if path.is_file()
        ]
        return [*kept, uploads, files]

    def start(self, **changes: Any) -> None:
        """Start a run, and open its round for whoever is enrolled."""
        fleets.start(self.fleet, self.folder, **changes)
        self.advance()

    def advance(self) -> None:
        fleets.advance(self.fleet, self.work, fleets.RUN)


def make_folder(folder: Path, now: int) -> None:
    """A fleet's folder with its authority, old enough for devices whose certificate has ended."""
    authority = enroll.new_authority(now_unix_ms=now - 100 * DAY)
    enroll.create_folder(folder, authority)
    issued = enroll.issue_server(authority, ["127.0.0.1"], now_unix_ms=now)
    enroll.write_server_certificate(folder, authority, issued)


def settings(**changes: Any) -> ServiceSettings:
    """On free ports of this machine, with short ticks and no limit that a test would meet."""
    given: dict[str, Any] = {
        "fleet_address": ANY_PORT,
        "enroll_address": ANY_PORT,
        "tick_ms": 500,
        "wait_ms": 60_000,
        "calls_per_minute": 100_000,
        "enrolments_per_minute": 100_000,
        "grace_s": 0.5,
    }
    return ServiceSettings(**{**given, **changes})


def work_on(kind: Any, fleet: fr.Fleet) -> Any:
    """Work of a kind, or as it is given."""
    if not isinstance(kind, type):
        return kind
    return kind(fleet) if kind is fr.AdapterWork else kind()


@contextmanager
def coordinator(
    folder: Path, *, work: Any = None, limits: fr.Limits | None = None, **changes: Any
) -> Iterator[Coordinator]:
    """Serve a fleet from a folder that is made if need be; a second time: a restart.

    `work` is `fr.AdapterWork` for a run that trains; else the checks of the fleet are `Powers`'.
    """
    clock, bell, work = Moved(), Bell(), work or fleets.Powers
    if not (folder / "ca.key").exists():
        make_folder(folder, clock())
    with (
        fr.open_fleet(folder, now_ms=clock, limits=limits, at=bell.hook()) as fleet,
        FleetService(fleet, bell, folder, settings(**changes), lambda _: made.work) as service,
    ):
        made = Coordinator(folder, fleet, bell, service, clock, work_on(work, fleet))
        try:
            yield made
        finally:
            for device in made.devices:
                device.close()


# --- a device ----------------------------------------------------------------------------------


class Device:
    """A member that calls one coordinator.

    Args:
        who: Its identity.
        address: The listener that demands certificates.
    """

    def __init__(self, who: Identity, address: str) -> None:
        self.who, self.address, self.now_ms = who, address, Moved()
        self.id = who.device_id
        credentials = identity.channel_credentials(who)
        self.channel = open_channel(address, credentials)

    @classmethod
    def enrol(cls, folder: Path, service: FleetService, token: str) -> Device:
        """Become a member as a device does: pin the authority, then ask."""
        host, _, port = service.enroll_address.rpartition(":")
        pinned = decode_token(token).authority_sha256
        authority = fetch_authority(host, int(port), pinned)
        request = identity.enrolment_request(folder, token)
        credentials = identity.enrolment_credentials(authority)
        with open_channel(service.enroll_address, credentials) as channel:
            response = call_raw(channel, "Enroll", contract.to_bytes(request))
        who = identity.accept_enrolment(folder, token, response)
        return cls(who, service.fleet_address)

    def reach(self, service: FleetService) -> None:
        """Go to where the coordinator is now."""
        self.close()
        self.address = service.fleet_address
        self.channel = open_channel(self.address, identity.channel_credentials(self.who))

    def close(self) -> None:
        self.channel.close()

    def seal(
        self, method: str, body: Any, task: TaskOrder | None = None, **changes: Any
    ) -> common_pb2.Signed:
        """A request, signed."""
        given: dict[str, Any] = {
            "device_id": self.id,
            "method": f"/{SERVICE}/{method}",
            "now_unix_ms": self.now_ms(),
        }
        if task is not None:
            given |= {"run_id": task.run_id, "round_number": task.round}
        return contract.seal(self.who.key, body, **{**given, **changes})

    def call(self, method: str, body: Any, task: TaskOrder | None = None, **changes: Any) -> Any:
        """A call with one answer."""
        data = contract.to_bytes(self.seal(method, body, task, **changes))
        return call_raw(self.channel, method, data)

    def hello(self, **changes: Any) -> fleet_pb2.HelloResponse:
        body = make_hello()
        body.ClearField("ledger_head")
        for name, value in changes.items():
            getattr(body, name).CopyFrom(value)
        answer: fleet_pb2.HelloResponse = self.call("Hello", body)
        return answer

    def pull(self, wait_ms: int = 30_000, timeout_s: float = TIMEOUT_S) -> Any:
        """A stream of what comes; `cancel()` ends it."""
        body = fleet_pb2.PullTaskRequest(wait_ms=wait_ms)
        data = contract.to_bytes(self.seal("PullTask", body))
        call = self.channel.unary_stream(
            f"/{SERVICE}/PullTask", response_deserializer=reading("PullTask")
        )
        return call(data, timeout=timeout_s)

    def next_task(self, wait_ms: int = 30_000) -> TaskOrder | None:
        """The task that there is, or comes within that time."""
        stream = self.pull(wait_ms)
        try:
            with refusals():
                for event in stream:
                    if event.HasField("task"):
                        return contract.read_task(event.task)
        finally:
            stream.cancel()
        return None

    def acknowledge(self, task: TaskOrder, **changes: Any) -> str:
        plan = bytes.fromhex(task.plan_sha256)
        body = fleet_pb2.AcknowledgeRequest(task_id=task.task_id, plan_sha256=plan)
        return name_of(fleet_pb2.TaskState, self.call("Acknowledge", body, task, **changes).state)

    def decline(self, task: TaskOrder, reason: str = "unavailable") -> str:
        body = fleet_pb2.DeclineRequest(task_id=task.task_id, reason=reason)
        return name_of(fleet_pb2.TaskState, self.call("Decline", body, task).state)

    def heartbeat(
        self, task_id: str = "", activity: Any = fleet_pb2.ACTIVITY_IDLE
    ) -> fleet_pb2.HeartbeatResponse:
        body = fleet_pb2.HeartbeatRequest(activity=activity, task_id=task_id)
        answer: fleet_pb2.HeartbeatResponse = self.call("Heartbeat", body)
        return answer

    def fetch(self, sha256: str, offset: int = 0, most: int | None = None) -> bytes:
        """A file from an offset on, or its next `most` bytes at least, and then a cut."""
        body = fleet_pb2.FetchArtefactRequest(sha256=bytes.fromhex(sha256), offset=offset)
        data = contract.to_bytes(self.seal("FetchArtefact", body))
        call = self.channel.unary_stream(
            f"/{SERVICE}/FetchArtefact", response_deserializer=reading("FetchArtefact")
        )
        stream, got = call(data, timeout=TIMEOUT_S), b""
        with refusals():
            assert next(stream).artefact.sha256.hex() == sha256
            for part in stream:
                assert part.chunk.offset == offset + len(got)
                got += part.chunk.data
                if most is not None and len(got) >= most:
                    stream.cancel()
                    break
        return got

    def offer(self, task: TaskOrder, data: bytes, **changes: Any) -> fleet_pb2.OfferUploadResponse:
        """Announce an answer."""
        kind = common_pb2.ARTEFACT_KIND_UPDATE
        artefact = contract.artefact_message(replace(Artefact.of(data), **changes), kind)
        body = fleet_pb2.OfferUploadRequest(task_id=task.task_id, artefact=artefact)
        answer: fleet_pb2.OfferUploadResponse = self.call("OfferUpload", body, task)
        return answer

    def start_of(
        self, task: TaskOrder, upload_id: str, data: bytes, offset: int = 0, **changes: Any
    ) -> bytes:
        """The first message of a `PushUpdate`."""
        artefact = Artefact.of(data)
        body = fleet_pb2.PushUpdateStart(
            upload_id=upload_id,
            sha256=bytes.fromhex(artefact.sha256),
            size=artefact.size,
            offset=offset,
        )
        start = self.seal("PushUpdate", body, task, **changes)
        return contract.to_bytes(fleet_pb2.PushUpdateRequest(start=start))

    def push_raw(self, messages: Iterable[bytes], timeout_s: float = TIMEOUT_S) -> Any:
        """Send these messages, whatever they are."""
        call = self.channel.stream_unary(
            f"/{SERVICE}/PushUpdate", response_deserializer=reading("PushUpdate")
        )
        with refusals():
            return call(iter(messages), timeout=timeout_s)

    def push(
        self, task: TaskOrder, upload_id: str, data: bytes, offset: int = 0, piece: int = CHUNK
    ) -> tuple[str, int]:
        """Send an answer from an offset on; state and offset of the acknowledgement."""
        first = self.start_of(task, upload_id, data, offset)
        answer = self.push_raw([first, *chunks(data, offset, piece)])
        return name_of(fleet_pb2.UploadState, answer.state), answer.offset

    def answer(self, task: TaskOrder, data: bytes, piece: int = CHUNK) -> str:
        """Take a task, and answer it with these bytes."""
        self.acknowledge(task)
        offered = self.offer(task, data)
        return self.push(task, offered.upload_id, data, offered.offset, piece)[0]


def chunk(offset: int, data: bytes) -> bytes:
    """A further message of a `PushUpdate`."""
    part = common_pb2.Chunk(offset=offset, data=data)
    return contract.to_bytes(fleet_pb2.PushUpdateRequest(chunk=part))


def chunks(data: bytes, offset: int = 0, piece: int = CHUNK) -> Iterator[bytes]:
    for at in range(offset, len(data), piece):
        yield chunk(at, data[at : at + piece])


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel with a connection of its own; without credentials, in plain text."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 1 << 22)]
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def call_raw(channel: grpc.Channel, method: str, data: bytes, timeout_s: float = TIMEOUT_S) -> Any:
    """A call with one answer and whatever bytes."""
    call = channel.unary_unary(f"/{SERVICE}/{method}", response_deserializer=reading(method))
    with refusals():
        return call(data, timeout=timeout_s)


def reading(method: str) -> Callable[[bytes], Any]:
    """The strict decoder of a method's answers."""
    return lambda data: contract.from_bytes(data, getattr(fleet_pb2, f"{method}Response"))


def name_of(enum: Any, value: int) -> str:
    """`ANSWERED` for `TASK_STATE_ANSWERED`."""
    return str(enum.Name(value).split("_STATE_")[1])
