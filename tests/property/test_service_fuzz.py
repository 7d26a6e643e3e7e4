"""Every method of the service, given anything: a word or an answer, and a refusal changes nothing.

Bytes come at every depth: in place of the request, in its envelope, in a statement that is signed
by the right key, in a body of the right hash, and as messages that keep every rule but name what
isn't there, or is another's. The device, its task and its open upload are real.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from support import fleets
from support.devices import (
    SERVICE,
    Coordinator,
    Device,
    RefusedError,
    chunk,
    coordinator,
    refusals,
)
from support.messages import Damage, damage, damages, messages

from sordino.core import contract
from sordino.core.contract import Artefact, TaskOrder, body_kind, signing
from sordino.protos.v1 import common_pb2, fleet_pb2
from sordino.server import fleet_rounds as fr
from sordino.server.store import Nonce, Upload
from sordino.server.store.schema import TABLES

METHODS = {rpc.name: rpc for rpc in fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods}
WHOLE = Artefact(sha256="ab" * 32, size=64 << 20)  # more than ever comes: no upload ends
DEVICES = 16
NOTED = "ledger-rolled-back"  # the one refusal that is written down: the device is suspect then
DEPTHS = ("bytes", "envelope", "statement", "body", "values")
LIVE = ("task_id", "upload_id", "plan_sha256", "sha256", "artefact", "token", "offset", "size")


class Newest(fleets.Powers):
    """Asks the member that came last."""

    def choose(self, run: Any, number: int, devices: Any, wanted: int) -> Any:
        return [self.last]


@dataclass
class Target:
    """A coordinator with a device in the middle of its task, made anew when that is over.

    After some devices the coordinator is made anew too, so that its rows stay few enough to be
    compared after each call.
    """

    folder: Path
    stack: ExitStack
    at: Coordinator = field(init=False)
    device: Device = field(init=False)
    task: TaskOrder = field(init=False)
    upload: str = ""
    token: str = ""
    turns: int = 0
    before: Any = None

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Another device with a task that it took, and an upload that it began."""
        if self.turns % DEVICES == 0:
            self.stack.close()
            folder = self.folder / str(self.turns)
            self.at = self.stack.enter_context(
                coordinator(folder, work=Newest(), calls_per_minute=10**9, wait_ms=1)
            )
        self.turns += 1
        name = f"run-{self.turns}"
        self.device = self.at.enrol(f"device-{self.turns}")
        self.device.hello()
        self.at.work.last = self.device.id
        base = self.at.folder / "base.gguf"
        base.write_bytes(b"GGUF")
        kept = fr.keep_base(self.at.fleet, base)
        week = 7 * 86_400_000
        new = fleets.new_run(
            kept, run_id=name, cohort=1, max_answer_bytes=WHOLE.size, timeout_ms=week
        )
        fr.start_run(self.at.fleet, name, new)
        fleets.advance(self.at.fleet, self.at.work, name)
        task = self.device.next_task()
        assert task is not None
        self.task = task
        self.device.acknowledge(task)
        self.upload = self.device.offer(task, b"x", **vars(WHOLE)).upload_id
        self.token = self.at.token()
        self.before = self.state()

    def live(self) -> dict[str, Any]:
        """What there is, by the fields that could name it."""
        return {
            "task_id": self.task.task_id,
            "upload_id": self.upload,
            "plan_sha256": bytes.fromhex(self.task.plan_sha256),
            "sha256": bytes.fromhex(WHOLE.sha256),
            "size": WHOLE.size,
            "offset": fleets.get(self.at.fleet, Upload, self.upload).stored,
            "artefact": contract.artefact_message(WHOLE, common_pb2.ARTEFACT_KIND_UPDATE),
            "token": self.token,
        }

    def state(self, *, streams: bool = True) -> Any:
        """All rows but the nonces, which remember refused calls too, and all files."""
        with self.at.fleet.store.read() as rows:
            found = {kind: rows.all(kind) for kind in TABLES if kind is not Nonce}
        if not streams:  # what a stream brought before it broke stays, and that it was there
            keep = {"upload_id", "state", "sha256", "size", "reason"}
            found[Upload] = [{name: getattr(u, name) for name in keep} for u in found[Upload]]
        skipped = ("coordinator.db", "device-")
        files = sorted(
            str(path)
            for path in self.at.folder.rglob("*")
            if path.is_file() and not path.name.startswith(skipped)
        )
        return found, [name for name in files if "/devices/" not in name]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with ExitStack() as stack:
        yield Target(tmp_path_factory.mktemp("fuzz"), stack)


# --- cases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What to send: a method, how deep the damage is, the damage, and what lies around it."""

    method: str
    depth: str
    by: list[Damage]
    body: Any
    alive: frozenset[str]
    rest: list[Any]
    field: str


def body_of(method: str) -> type[Any]:
    if method == "Enroll":
        return fleet_pb2.EnrollRequest
    return body_kind(f"/{SERVICE}/{method}")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    method = draw(st.sampled_from(sorted(METHODS)))
    piece = st.one_of(
        st.binary(max_size=60),
        damages,
        messages(fleet_pb2.PushUpdateRequest.DESCRIPTOR),
        st.tuples(st.integers(-2, 2), st.binary(max_size=60)),
    )
    return Case(
        method=method,
        depth=draw(st.sampled_from(DEPTHS)),
        by=draw(damages),
        body=draw(messages(body_of(method).DESCRIPTOR)),
        alive=draw(st.one_of(st.just(frozenset(LIVE)), st.frozensets(st.sampled_from(LIVE)))),
        rest=draw(st.lists(piece, max_size=3)) if method == "PushUpdate" else [],
        field=draw(st.sampled_from([f.name for f in common_pb2.Statement.DESCRIPTOR.fields])),
    )


def request_of(case: Case, target: Target) -> bytes:
    """The bytes of a case's request, as of now."""
    if case.depth == "bytes":
        return b"".join(piece for *_, piece in case.by)
    body = type(case.body)()
    body.CopyFrom(case.body)
    live = target.live()
    for known in case.alive & {known.name for known in body.DESCRIPTOR.fields}:
        if known == "artefact":
            body.artefact.CopyFrom(live[known])
        else:
            setattr(body, known, live[known])
    encoded = body.SerializeToString()
    if case.depth == "body":
        encoded = damage(encoded, case.by)
    if case.method == "Enroll":
        return damage(encoded, case.by) if case.depth == "envelope" else encoded
    signed = signed_of(case, target, encoded)
    if case.method == "PushUpdate":
        signed = fleet_pb2.PushUpdateRequest(
            start=common_pb2.Signed.FromString(signed)
        ).SerializeToString()
    return damage(signed, case.by) if case.depth == "envelope" else signed


def signed_of(case: Case, target: Target, body: bytes) -> bytes:
    """A request with the right signature, whatever it says."""
    statement = common_pb2.Statement(
        device_id=target.device.id,
        method=f"/{SERVICE}/{case.method}",
        run_id=target.task.run_id,
        round=target.task.round,
        nonce=secrets.token_bytes(16),
        issued_at_unix_ms=target.at.clock(),
        body_sha256=hashlib.sha256(body).digest(),
    )
    said = statement.SerializeToString()
    if case.depth == "statement":
        value = getattr(statement, case.field)
        if isinstance(value, int):
            setattr(statement, case.field, value ^ 1 << case.by[0][1] % 31)
            said = statement.SerializeToString()
        else:
            said = damage(said, case.by)
    signature = target.device.who.key.sign(signing.PREFIX + said, signing.ECDSA)
    return common_pb2.Signed(statement=said, body=body, signature=signature).SerializeToString()


def pieces_of(case: Case, target: Target) -> Iterator[bytes]:
    """What follows the start of an upload: rubbish, damaged pieces, and good ones."""
    at = target.live()["offset"]
    for piece in case.rest:
        match piece:
            case bytes():
                yield piece
            case list():
                chunk = common_pb2.Chunk(offset=at, data=b"\1" * 50)
                yield damage(fleet_pb2.PushUpdateRequest(chunk=chunk).SerializeToString(), piece)
            case (beside, data):
                chunk = common_pb2.Chunk(offset=max(0, at + beside), data=data)
                yield fleet_pb2.PushUpdateRequest(chunk=chunk).SerializeToString()
                at += len(data) if beside == 0 else 0
            case message:
                yield message.SerializeToString()


def send(case: Case, target: Target, request: bytes) -> Any:
    """Make the call; the first of several answers is enough."""
    path, rpc = f"/{SERVICE}/{case.method}", METHODS[case.method]
    channel = target.device.channel
    with refusals():
        if rpc.client_streaming:
            return channel.stream_unary(path)(iter([request, *pieces_of(case, target)]), timeout=60)
        if not rpc.server_streaming:
            return channel.unary_unary(path)(request, timeout=60)
        stream = channel.unary_stream(path)(request, timeout=60)
        try:
            return next(stream, b"")
        finally:
            stream.cancel()


def withstand(case: Case, target: Target) -> None:
    """One case, from a state that is known to one that is as it should be."""
    request = request_of(case, target)
    note(f"{case.method} {case.depth}: {request.hex()}")
    streams = case.method != "PushUpdate"
    before = target.before if streams else target.state(streams=False)
    refusal, answer = None, b""
    try:
        answer = send(case, target, request)
    except RefusedError as error:
        refusal = error
    after, target.before = target.state(streams=streams), target.state()
    event(f"{case.method} {case.depth}: {refusal.word if refusal else 'answered'}")
    if refusal is not None:
        assert refusal.word in set(contract.REASONS) - {"internal", "storage-full"}, refusal
        assert refusal.code == contract.REASONS[refusal.word].code
        assert differences(before, after) == [] or refusal.word == NOTED
        return
    contract.from_bytes(answer, GetMessageClass(METHODS[case.method].output_type))
    if fr.task_for(target.at.fleet, target.device.id) is None:
        target.renew()


def differences(before: Any, after: Any) -> list[object]:
    """The rows and files that aren't on both sides."""
    (rows, files), (rows_after, files_after) = before, after
    changed = [row for kind in rows for row in rows[kind] if row not in rows_after[kind]]
    added = [row for kind in rows for row in rows_after[kind] if row not in rows[kind]]
    return [*changed, *added, *sorted(set(files) ^ set(files_after))]


fuzzed = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(case=cases())
@fuzzed
def test_whatever_is_sent_meets_a_word_or_an_answer(target: Target, case: Case) -> None:
    withstand(case, target)


def test_after_all_of_it_an_honest_device_is_served(target: Target) -> None:
    target.renew()
    device, task = target.device, target.task
    assert device.hello().revision == contract.REVISION
    assert device.acknowledge(task) == "TAKEN"
    offered = device.offer(task, b"x", **vars(WHOLE))
    start = fleet_pb2.PushUpdateStart(
        upload_id=offered.upload_id,
        sha256=bytes.fromhex(WHOLE.sha256),
        size=WHOLE.size,
        offset=offered.offset,
    )
    first = fleet_pb2.PushUpdateRequest(start=device.seal("PushUpdate", start, task))
    said = device.push_raw([contract.to_bytes(first), chunk(offered.offset, b"more")])
    assert (said.state, said.offset) == (fleet_pb2.UPLOAD_STATE_OPEN, offered.offset + 4)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@given(case=cases())
@settings(fuzzed, max_examples=100_000)
def test_a_hundred_thousand_times(target: Target, case: Case) -> None:
    withstand(case, target)
