"""Every call that must be refused: each with its word, over the wire, and nothing changed by it."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace

import pytest
from support.contracts import make_hello
from support.devices import (
    Device,
    RefusedError,
    call_raw,
    chunk,
    coordinator,
    open_channel,
)
from support.fleets import rows_of
from support.members import DAY, MINUTE, asked, csr, new_fleet, new_key, new_token

from sordino.client import identity
from sordino.core import contract
from sordino.core.contract import Artefact
from sordino.core.contract.signing import ECDSA, PREFIX
from sordino.core.trust import encode_token
from sordino.protos.v1 import common_pb2, fleet_pb2
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.store import Round

MOST = 1 << 20  # a task's largest answer


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """A coordinator with an open round of three devices: two took their tasks, one offered."""
    with coordinator(tmp_path_factory.mktemp("fleet"), message_s=5) as made:
        for number in range(3):
            made.enrol(f"d{number}").hello()
        made.start()
        yield made


@pytest.fixture(scope="module")
def scene(at):
    return Scene(at)


class Scene:
    """Two devices with tasks that they took; the first has offered an answer and sent a half."""

    def __init__(self, at):
        self.at = at
        self.one, self.two, self.three = at.devices
        self.task, self.other = self.one.next_task(), self.two.next_task()
        self.untaken = self.three.next_task()
        self.one.acknowledge(self.task)
        self.two.acknowledge(self.other)
        self.data = json.dumps({"round": 1, "value": 1, "pad": "." * 3000}).encode()
        offered = self.one.offer(self.task, self.data)
        self.upload = offered.upload_id
        first = self.one.start_of(self.task, self.upload, self.data)
        answer = self.one.push_raw([first, chunk(0, self.data[:1000])])
        assert answer.state == fleet_pb2.UPLOAD_STATE_OPEN
        assert answer.offset == 1000
        self.plan = at.fleet.artefacts.read(rows_of(at.fleet, Round)[0].plan)

    def acknowledge(self, **changes):
        self.three.acknowledge(self.untaken, **changes)

    def offer(self, data=b"other", task=None, **changes):
        return self.one.offer(task or self.task, data, **changes)

    def push(self, *messages, data=None, offset=1000, upload=None, device=None, **changes):
        device = device or self.one
        data = data or self.data
        first = device.start_of(self.task, upload or self.upload, data, offset, **changes)
        return device.push_raw([first, *messages])

    def fetch(self, sha256, offset=0):
        return self.one.fetch(sha256, offset)

    def raw(self, method, data):
        return call_raw(self.one.channel, method, data)

    def stated(self, key=None, **changes):
        """A Hello whose statement says what it likes, signed all the same."""
        signed = self.one.seal("Hello", make_hello())
        statement = common_pb2.Statement.FromString(signed.statement)
        for name, value in changes.items():
            setattr(statement, name, value)
        signed.statement = statement.SerializeToString()
        signed.signature = (key or self.one.who.key).sign(PREFIX + signed.statement, ECDSA)
        return self.raw("Hello", signed.SerializeToString())

    def replayed(self):
        nonce = secrets.token_bytes(16)
        body = fleet_pb2.HeartbeatRequest(activity=fleet_pb2.ACTIVITY_IDLE)
        first = self.one.seal("Heartbeat", body)
        stated = common_pb2.Statement.FromString(first.statement)
        for moment in (0, 1):
            stated.nonce = nonce
            stated.issued_at_unix_ms += moment
            first.statement = stated.SerializeToString()
            first.signature = self.one.who.key.sign(PREFIX + first.statement, ECDSA)
            if moment:
                self.before = self.at.state()
            self.raw("Heartbeat", first.SerializeToString())

    def enroll(self, request):
        credentials = identity.enrolment_credentials(self.at.authority.certificate)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        with open_channel(self.at.service.enroll_address, credentials) as channel:
            return call_raw(channel, "Enroll", data)

    def late_token(self):
        """A token whose time is over."""
        members, then = fr.Members(self.at.fleet), self.at.clock() - 2 * DAY
        token = encode_token(enroll.make_token(members, self.at.authority, now_unix_ms=then))
        self.before = self.at.state()
        self.enroll(asked(token, csr(new_key())))

    def used_token(self):
        token = self.at.token()
        Device.enrol(self.at.folder / "devices" / secrets.token_hex(4), self.at.service, token)
        self.before = self.at.state()
        self.enroll(asked(token, csr(new_key())))

    def unreadable_request(self):
        token = self.at.token()
        self.before = self.at.state()
        self.enroll(asked(token, b"none"))

    def foreign_token(self):
        other, store = new_fleet(self.at.clock())
        self.enroll(asked(new_token(other, store, self.at.clock()), csr(new_key())))


def skewed(scene, by_ms):
    scene.one.now_ms.by_ms = by_ms
    try:
        scene.one.heartbeat()
    finally:
        scene.one.now_ms.by_ms = 0


def signed_hello(scene, **changes):
    signed = scene.one.seal("Hello", make_hello())
    for name, value in changes.items():
        setattr(signed, name, value)
    return scene.raw("Hello", signed.SerializeToString())


REFUSALS = {
    # --- who asks
    "forged-device": ("wrong-device", lambda s: s.stated(device_id=s.two.id)),
    "forged-signature": ("bad-signature", lambda s: s.stated(key=s.two.who.key)),
    "another-devices-request": (
        "bad-signature",
        lambda s: s.raw("Hello", s.two.seal("Hello", make_hello()).SerializeToString()),
    ),
    "another-methods-request": (
        "wrong-method",
        lambda s: s.raw("Leave", s.one.seal("Hello", make_hello()).SerializeToString()),
    ),
    "another-body": ("wrong-body", lambda s: signed_hello(s, body=b"\x08\x01")),
    "eleven-minutes-behind": ("clock-skew", lambda s: skewed(s, -11 * MINUTE)),
    "eleven-minutes-ahead": ("clock-skew", lambda s: skewed(s, 11 * MINUTE)),
    "nonce-again": ("nonce-replayed", Scene.replayed),
    # --- bytes that are no request
    "nothing": ("missing-field", lambda s: s.raw("Hello", b"")),
    "garbage": ("wrong-type", lambda s: s.raw("Hello", b"\x08\x01")),
    "unknown-field": ("unknown-field", lambda s: s.raw("Hello", b"\x7a\x00")),
    "cut-request": (
        "truncated",
        lambda s: s.raw("Hello", s.one.seal("Hello", make_hello()).SerializeToString()[:-9]),
    ),
    "long-request": ("too-long", lambda s: s.raw("Hello", b"\x12" + bytes(1 << 20))),
    "unsigned-stream": ("missing-field", lambda s: s.one.push_raw([chunk(0, b"abc")])),
    "empty-stream": ("missing-field", lambda s: s.one.push_raw([])),
    # --- tasks
    "stale-round": ("wrong-round", lambda s: s.acknowledge(round_number=0)),
    "future-round": ("wrong-round", lambda s: s.acknowledge(round_number=2)),
    "other-run": ("wrong-run", lambda s: s.acknowledge(run_id="run-2")),
    "no-such-task": (
        "unknown-task",
        lambda s: s.one.acknowledge(replace(s.task, task_id="none")),
    ),
    "another-devices-task": ("unknown-task", lambda s: s.one.acknowledge(s.untaken)),
    "another-plan": ("wrong-plan", lambda s: s.three.acknowledge(replace(s.untaken, plan=b"{}"))),
    "a-reason-that-is-a-sentence": (
        "bad-value",
        lambda s: s.three.decline(s.untaken, "Not today."),
    ),
    # --- artefacts
    "no-such-artefact": ("unknown-artefact", lambda s: s.fetch("ab" * 32)),
    "nobodys-artefact": (
        "unknown-artefact",
        lambda s: s.fetch(Artefact.of(s.plan).sha256),  # it is there, and travels in the task alone
    ),
    "beyond-the-artefact": ("wrong-offset", lambda s: s.fetch(s.task.base.sha256, 5)),
    # --- answers on their way
    "same-task-another-answer": ("another-answer", lambda s: s.offer()),
    "too-large-an-answer": (
        "too-long",
        lambda s: s.two.offer(s.other, b"x", size=MOST + 1),
    ),
    "an-answer-to-another-devices-task": ("unknown-task", lambda s: s.offer(task=s.other)),
    "an-answer-of-another-kind": (
        "wrong-kind",
        lambda s: s.two.call(
            "OfferUpload",
            fleet_pb2.OfferUploadRequest(
                task_id=s.other.task_id,
                artefact=contract.artefact_message(
                    Artefact.of(b"x"), common_pb2.ARTEFACT_KIND_ADAPTER
                ),
            ),
            s.other,
        ),
    ),
    "an-offer-of-a-stale-round": ("wrong-round", lambda s: s.offer(task=replace(s.task, round=9))),
    "no-such-upload": ("unknown-upload", lambda s: s.push(upload="none")),
    "another-devices-upload": ("unknown-upload", lambda s: s.push(device=s.two)),
    "same-upload-another-body": ("another-answer", lambda s: s.push(data=b"y" * len(s.data))),
    "a-gap": ("wrong-offset", lambda s: s.push(offset=1001)),
    "an-overlap": ("wrong-offset", lambda s: s.push(offset=999)),
    "a-chunk-after-a-gap": ("wrong-offset", lambda s: s.push(chunk(1500, b"z"))),
    "overlapping-chunks": (
        "wrong-offset",
        lambda s: s.push(chunk(999, s.data[999:1500])),
    ),
    "over-the-declared-size": (
        "wrong-offset",
        lambda s: s.push(chunk(1000, s.data[1000:] + b"!")),
    ),
    "a-push-of-another-round": ("wrong-round", lambda s: s.push(round_number=2)),
    "a-push-of-another-run": ("wrong-run", lambda s: s.push(run_id="run-2")),
    "a-second-start": (
        "wrong-kind",
        lambda s: s.push(s.one.start_of(s.task, s.upload, s.data, 1000)),
    ),
    "a-cut-chunk": ("truncated", lambda s: s.push(chunk(1000, s.data[1000:])[:-1])),
    "an-empty-chunk": ("missing-field", lambda s: s.push(b"\x12\x02\x08\x01")),
    "a-chunk-beyond-a-chunks-limit": (
        "too-long",
        lambda s: s.push(b"\x12\x85\x80\x40\x12\x81\x80\x40" + bytes((1 << 20) + 1)),
    ),
    # --- membership
    "token-again": ("token-used", Scene.used_token),
    "token-of-yesterday": ("token-expired", Scene.late_token),
    "token-of-another-fleet": ("wrong-authority", Scene.foreign_token),
    "no-token": ("bad-token", lambda s: s.enroll(asked("A" * 88, csr(new_key())))),
    "no-certificate-request": ("malformed", Scene.unreadable_request),
    "no-enrolment": ("unknown-field", lambda s: s.enroll(b"\x7a\x00")),
    "long-enrolment": ("too-long", lambda s: s.enroll(b"\x0a" + bytes(1 << 14))),
    "another-devices-key": (
        "wrong-key",
        lambda s: s.one.call(
            "Renew", fleet_pb2.RenewRequest(certificate_request=csr(s.two.who.key))
        ),
    ),
    "a-head-that-nobody-signed": (
        "wrong-receipt",
        lambda s: s.one.call("Hello", make_hello()),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_call_has_changed_nothing(at, scene, name):
    word, call = REFUSALS[name]
    scene.before = at.state()
    with pytest.raises(RefusedError) as caught:
        call(scene)
    assert caught.value.word == word, caught.value
    assert caught.value.code == contract.REASONS[word].code
    assert at.state() == scene.before
