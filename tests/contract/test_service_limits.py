"""Callers that TLS or a limit keeps out, and callers that are slow on purpose."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from support import fleets
from support.contracts import make_hello
from support.devices import (
    SERVICE,
    RefusedError,
    call_raw,
    chunk,
    coordinator,
    open_channel,
    refusals,
    settings,
    until,
)
from support.members import DAY, forged, join, new_fleet

from sordino.client import identity
from sordino.core.errors import ConfigError, TrustError
from sordino.core.trust.transport import CIPHERS
from sordino.protos.v1 import fleet_pb2
from sordino.server.service import FleetService, ServiceSettings


def refused(call, *args, **kwargs):
    with pytest.raises(RefusedError) as caught:
        call(*args, **kwargs)
    return caught.value


# --- whom TLS and gRPC keep out ----------------------------------------------------------------


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    with coordinator(tmp_path_factory.mktemp("fleet")) as made:
        made.enrol("d0").hello()
        yield made


def strangers(at, folder):
    """Credentials of callers that must not get in, by name."""
    device = at.devices[0]
    own = device.who
    other, its_store = new_fleet(at.clock())
    stranger = join(folder / "stranger", other, its_store, at.clock())
    ended = at.admit(f"ended-{folder.name}", at.clock() - 40 * DAY)
    uri = f"sordino://{other.fleet}/device/{own.device_id}"
    named = forged(at.authority, own.certificates[0], own.key.public_key(), uri)
    return {
        "wrong-authority": identity.channel_credentials(
            replace(stranger, authorities=own.authorities)
        ),
        "wrong-server": identity.channel_credentials(
            replace(own, authorities=stranger.authorities)
        ),
        "ended": identity.channel_credentials(ended.who),
        "another-fleets-name": identity.channel_credentials(replace(own, certificates=(named,))),
        "no-certificate": identity.enrolment_credentials(own.authorities[0]),
        "plaintext": None,
    }


@pytest.mark.parametrize(
    "name",
    [
        "wrong-authority",
        "wrong-server",
        "ended",
        "another-fleets-name",
        "no-certificate",
        "plaintext",
    ],
)
def test_whom_tls_keeps_out(at, tmp_path, name):
    credentials = strangers(at, tmp_path)[name]
    data = at.devices[0].seal("Hello", make_hello()).SerializeToString()
    before, calls = at.state(), at.service.figures().calls
    with open_channel(at.service.fleet_address, credentials) as channel:
        error = refused(call_raw, channel, "Hello", data)
    assert (error.code, error.word) == ("UNAVAILABLE", "")
    assert at.state() == before
    assert at.service.figures().calls == calls  # no method ever saw it
    at.devices[0].heartbeat()


def test_a_certificate_that_only_the_store_knows_better(at):
    own = at.devices[0].who
    uri = f"sordino://{at.authority.fleet}/device/{own.device_id}"
    named = forged(at.authority, own.certificates[0], own.key.public_key(), uri)
    credentials = identity.channel_credentials(replace(own, certificates=(named,)))
    data = at.devices[0].seal("Hello", make_hello()).SerializeToString()
    before = at.state()
    with open_channel(at.service.fleet_address, credentials) as channel:
        assert refused(call_raw, channel, "Hello", data).word == "unknown-device"
    assert at.state() == before


def test_the_open_listener_opens_nothing_but_enroll(at):
    credentials = identity.enrolment_credentials(at.authority.certificate)
    before = at.state()
    with open_channel(at.service.enroll_address, credentials) as channel:
        for method in ("Hello", "Leave", "OfferUpload"):
            data = at.devices[0].seal("Hello", make_hello()).SerializeToString()
            assert refused(call_raw, channel, method, data).word == "no-certificate"
    assert at.state() == before


@pytest.mark.parametrize("count", [1, 200])
def test_header_bombs(at, count):
    device, before = at.devices[0], at.state()
    bomb = [(f"x-{number}", "y" * (40_000 // count)) for number in range(count)]
    data = device.seal("Hello", make_hello()).SerializeToString()
    with pytest.raises(RefusedError) as caught, refusals():
        device.channel.unary_unary(f"/{SERVICE}/Hello")(data, timeout=30, metadata=bomb)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert at.state() == before
    device.heartbeat()


def test_a_message_beyond_any_limit_and_a_method_that_there_is_not(at):
    device, before = at.devices[0], at.state()
    assert refused(call_raw, device.channel, "Hello", bytes(3 << 20)).code == "RESOURCE_EXHAUSTED"
    with pytest.raises(RefusedError) as caught, refusals():
        device.channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=30)
    assert caught.value.code == "UNIMPLEMENTED"
    until(lambda: at.service.figures().failures.get(("unknown", "unknown-method")))
    assert at.state() == before


def test_a_connection_that_never_begins_is_closed_and_does_not_hold_others_up(tmp_path):
    with coordinator(tmp_path, handshake_s=1.0, enroll_connections=3) as at:
        device = at.enrol("d0")
        silent = []
        for address in (at.service.fleet_address, at.service.enroll_address):
            host, _, port = address.rpartition(":")
            silent += [socket.create_connection((host, int(port)), 30) for _ in range(3)]
        device.heartbeat()
        for each in silent:
            with closing(each):
                each.settimeout(30)
                with suppress(ConnectionError):
                    assert each.recv(1) == b""
        until(lambda: at.enrol(f"d{time.monotonic_ns()}"))  # places are free again


# --- who is slow on purpose --------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path):
    """A coordinator with little patience, and a round under way."""
    with coordinator(tmp_path, message_s=1.0, bytes_per_s=100_000) as made:
        made.enrol("d0").hello()
        made.start()
        yield made


def silence(*first):
    """Messages, and then nothing for long."""
    yield from first
    time.sleep(60)


def test_requests_and_chunks_that_do_not_come(slow):
    device, task = slow.devices[0], slow.devices[0].next_task()
    before = slow.state()
    for method in ("Hello", "PushUpdate"):  # no request at all
        call = device.channel.stream_unary(f"/{SERVICE}/{method}")
        with pytest.raises(RefusedError) as caught, refusals():
            call(silence(), timeout=30)
        assert caught.value.word == "too-slow"
    assert slow.state() == before
    device.acknowledge(task)
    data = json.dumps({"round": 1, "value": 1, "pad": "." * 5000}).encode()
    upload = device.offer(task, data).upload_id
    first = device.start_of(task, upload, data)
    error = refused(device.push_raw, silence(first, chunk(0, data[:4000])))
    assert (error.word, error.failure.retry) == ("too-slow", "resume")
    assert device.offer(task, data).offset == 4000  # what came is kept
    assert device.push(task, upload, data, 4000)[0] == "ACCEPTED"


def test_an_upload_that_trickles(slow):
    device, task = slow.devices[0], slow.devices[0].next_task()
    device.acknowledge(task)
    data = json.dumps({"round": 1, "value": 1, "pad": "." * 5000}).encode()
    upload = device.offer(task, data).upload_id

    def trickle():
        yield device.start_of(task, upload, data)
        for at in range(len(data)):
            time.sleep(0.1)
            yield chunk(at, data[at : at + 1])

    assert refused(device.push_raw, trickle()).word == "too-slow"
    kept = device.offer(task, data).offset
    assert 0 < kept < 100
    assert device.push(task, upload, data, kept)[0] == "ACCEPTED"


def test_an_answer_that_nobody_takes_ends_with_its_connection(tmp_path):
    with coordinator(tmp_path, age_s=3.0, age_grace_s=3.0) as at:
        device = at.enrol("d0")
        (tmp_path / "large").write_bytes(os.urandom(16 << 20))
        large = fleets.fr.keep_base(at.fleet, tmp_path / "large")
        at.start(base=large)
        body = fleet_pb2.FetchArtefactRequest(sha256=bytes.fromhex(large))
        data = device.seal("FetchArtefact", body).SerializeToString()
        stream = device.channel.unary_stream(f"/{SERVICE}/FetchArtefact")(data, timeout=60)
        next(stream)
        until(lambda: at.service.figures().calls_open == 1)
        until(lambda: at.service.figures().calls_open == 0)
        assert at.service.figures().bytes_down < 8 << 20
        with pytest.raises(RefusedError) as caught, refusals():
            list(stream)
        assert caught.value.code == "UNAVAILABLE"
        device.heartbeat()  # by the next connection


# --- who calls too often -----------------------------------------------------------------------


def test_calls_a_minute(tmp_path):
    with coordinator(tmp_path, calls_per_minute=5, enrolments_per_minute=3) as at:
        one, two = at.enrol("d0"), at.enrol("d1")
        for _ in range(5):
            one.heartbeat()
        before = at.state()
        error = refused(one.heartbeat)
        assert (error.word, error.failure.retry) == ("rate-limited", "same")
        assert 0 < error.failure.retry_after_ms <= 12_000
        assert at.state() == before
        two.heartbeat()
        at.enrol("d2")
        assert refused(at.enrol, "d3").word == "rate-limited"


def test_calls_at_once(tmp_path):
    with coordinator(tmp_path, calls_at_once=2) as at:
        one, two = at.enrol("d0"), at.enrol("d1")
        blocked = [
            one.channel.stream_unary(f"/{SERVICE}/Hello").future(silence(), timeout=60)
            for _ in range(2)
        ]
        until(lambda: at.service.figures().calls_open == 2)
        assert refused(one.heartbeat).word == "rate-limited"
        two.heartbeat()
        for call in blocked:
            call.cancel()
        until(lambda: at.service.figures().calls_open == 0)
        one.heartbeat()


def test_uploads_at_once(tmp_path):
    with coordinator(tmp_path, uploads_at_once=1, upload_wait_s=0.3) as at:
        devices = [at.enrol(f"d{number}") for number in range(2)]
        at.start()
        tasks = [device.next_task() for device in devices]
        datas = [json.dumps({"round": 1, "value": value}).encode() for value in (1, 2)]
        uploads = []
        for device, task, data in zip(devices, tasks, datas, strict=True):
            device.acknowledge(task)
            uploads.append(device.offer(task, data).upload_id)
        first = devices[0].start_of(tasks[0], uploads[0], datas[0])
        held = threading.Thread(
            target=lambda: refused(devices[0].push_raw, silence(first), timeout_s=20), daemon=True
        )
        held.start()
        until(lambda: at.service.figures().uploads_open == 1)
        error = refused(devices[1].push, tasks[1], uploads[1], datas[1])
        assert (error.word, error.failure.retry) == ("too-many-uploads", "same")
        assert error.failure.retry_after_ms > 0
        devices[0].offer(tasks[0], datas[0])  # ends the stream that holds the place
        until(lambda: at.service.figures().uploads_open == 0)
        assert devices[1].push(tasks[1], uploads[1], datas[1])[0] == "ACCEPTED"


# --- where the service doesn't begin -----------------------------------------------------------

UNPREPARED = """
import sys
from pathlib import Path
from sordino.core.errors import TrustError
from support.devices import coordinator
try:
    with coordinator(Path(sys.argv[1])) as at:
        print("served")
except TrustError as error:
    print(error)
"""


def test_it_does_not_serve_where_tls_12_would_be_taken(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop(CIPHERS, None)
    command = [sys.executable, "-c", UNPREPARED, str(tmp_path)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert "agrees to TLS 1.2" in ran.stdout, ran.stdout + ran.stderr


def test_it_says_that_its_port_is_taken(tmp_path):
    with coordinator(tmp_path / "one") as at:
        taken = settings(fleet_address=at.service.fleet_address)
        second = FleetService(at.fleet, at.bell, at.folder, taken, lambda _: at.work)
        with pytest.raises(TrustError, match="can't listen"), second:
            pass
        assert not second.ready()
        at.enrol("d0").heartbeat()


@pytest.mark.parametrize(
    "changes",
    [
        {"calls_per_minute": 0},
        {"message_s": -1.0},
        {"chunk_bytes": (1 << 20) + 1},
        {"fleet_address": "localhost"},
        {"enroll_address": "0.0.0.0:99999"},
    ],
)
def test_settings_that_cannot_be(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        settings(**changes)


@pytest.mark.parametrize("address", ["0.0.0.0:7443", "192.168.1.1:1", "[::]:1", "localhost:1"])
def test_without_tls_there_is_only_loopback(address):
    with pytest.raises(TrustError, match=r"127\.0\.0\.1"):
        settings(fleet_address=address, insecure_loopback=True)
    assert ServiceSettings(fleet_address=address, enroll_address=address)


def test_on_loopback_without_tls_the_signature_still_says_who(tmp_path):
    with coordinator(tmp_path, insecure_loopback=True) as at:
        one, two = at.admit("d0"), at.admit("d1")
        for device in (one, two):
            device.channel.close()
            device.channel = open_channel(at.service.fleet_address, None)
            device.hello()
        before = at.state()
        signed = one.seal("Hello", make_hello(), device_id=two.id)
        error = refused(call_raw, one.channel, "Hello", signed.SerializeToString())
        assert error.word == "bad-signature"
        signed = one.seal("Hello", make_hello(), device_id="nobody")
        error = refused(call_raw, one.channel, "Hello", signed.SerializeToString())
        assert error.word == "no-certificate"
        assert at.state() == before
        at.start()
        task = one.next_task()
        assert one.answer(task, json.dumps({"round": 1, "value": 1}).encode()) == "ACCEPTED"


def test_no_secret_and_one_line_of_json_for_each_event(tmp_path, capsys):
    from sordino.server.logs import log_json

    handler = log_json(sys.stderr)
    try:
        with coordinator(tmp_path) as at:
            token = at.token()
            device = at.enrol("d0")
            device.heartbeat()
            refused(device.call, "Hello", make_hello())
            logging.getLogger("sordino.other").info("plain text")
    finally:
        logging.getLogger("sordino").removeHandler(handler)
        logging.getLogger("sordino").setLevel(logging.NOTSET)
    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    events = [line["event"] for line in lines]
    assert events[0] == "service-started"
    assert {"device-enrolled", "call-refused", "message", "service-stopped"} <= set(events)
    (refusal,) = [line for line in lines if line["event"] == "call-refused"]
    assert (refusal["word"], refusal["device"]) == ("wrong-receipt", device.id)
    assert refusal["method"].endswith("/Hello")
    for secret in (token, token.replace("-", ""), "PRIVATE"):
        assert secret not in text
