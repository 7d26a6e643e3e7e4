"""Real TLS over loopback: who gets in, who doesn't, and what changes without a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from support.contracts import make_hello
from support.members import DAY, MINUTE, forged, join, new_fleet, new_token
from support.wire import HELLO, SERVICE, Coordinator, renew_server, serving

from sordino.client import identity
from sordino.client.identity import Identity, channel_credentials
from sordino.core import contract
from sordino.core.errors import ContractError, TrustError
from sordino.core.trust import decode_token, fetch_authority, require_tls13
from sordino.core.trust.transport import CIPHERS
from sordino.protos.v1 import common_pb2, fleet_pb2
from sordino.server import enroll

PULL, PUSH, ENROLL = (f"/{SERVICE}/{name}" for name in ("PullTask", "PushUpdate", "Enroll"))
Scenario = Callable[[Coordinator, Path], Awaitable[None]]


def now() -> int:
    return time.time_ns() // 1_000_000


def play(folder: Path, scenario: Scenario, **settings: float) -> None:
    async def run() -> None:
        async with serving(folder / "ca", now=now(), **settings) as coordinator:
            await scenario(coordinator, folder)

    asyncio.run(asyncio.wait_for(run(), 60))


def seal(who: Identity, body: Any, method: str, **changes: Any) -> common_pb2.Signed:
    given = {"device_id": who.device_id, "method": method, "now_unix_ms": now(), **changes}
    return contract.seal(who.key, body, **given)


async def say(
    port: int, credentials: grpc.ChannelCredentials | None, method: str, data: bytes
) -> bytes:
    address = f"127.0.0.1:{port}"
    opened = (
        grpc.aio.insecure_channel(address)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials)
    )
    async with opened as channel:
        answer: bytes = await channel.unary_unary(method)(data, timeout=10)
        return answer


async def hello(at: Coordinator, who: Identity, **changes: Any) -> bytes:
    data = contract.to_bytes(seal(who, make_hello(), HELLO, **changes))
    return await say(at.port, channel_credentials(who), HELLO, data)


async def refused(call: Awaitable[object], reason: str) -> contract.Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    assert contract.TRAILER in trailers, caught.value
    failure = contract.decode_failure(trailers[contract.TRAILER])
    assert failure.reason == reason, failure
    assert caught.value.code().name == contract.REASONS[reason].code
    return failure


async def shut_out(call: Awaitable[object]) -> None:
    """TLS itself refuses: there is no HTTP, no method, no failure of ours."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value


# --- from a token to a call --------------------------------------------------------------------


def test_a_device_joins_calls_and_renews(tmp_path: Path) -> None:
    async def scenario(at: Coordinator, folder: Path) -> None:
        token = new_token(at.authority, at.store, at.now)
        pinned = decode_token(token).authority_sha256
        for port in (at.enroll_port, at.port):
            found = await asyncio.to_thread(fetch_authority, "127.0.0.1", port, pinned)
            assert found == at.authority.certificate
        data = contract.to_bytes(identity.enrolment_request(folder, token))
        credentials = identity.enrolment_credentials(found)
        answer = await say(at.enroll_port, credentials, ENROLL, data)
        assert await say(at.enroll_port, credentials, ENROLL, data) == answer
        response = contract.from_bytes(answer, fleet_pb2.EnrollResponse)
        made = identity.accept_enrolment(folder, token, response)
        await hello(at, made)
        assert at.past_the_door == [made.device_id]
        again = say(at.enroll_port, credentials, ENROLL, data)
        await refused(again, "token-used")
        await refused(say(at.enroll_port, credentials, ENROLL, b"\x7a\x00"), "unknown-field")

    play(tmp_path, scenario)


def test_streams_are_known_by_their_first_message(tmp_path: Path) -> None:
    async def scenario(at: Coordinator, folder: Path) -> None:
        who = join(folder, at.authority, at.store, at.now)
        start = fleet_pb2.PushUpdateStart(upload_id="u", sha256=bytes(32), size=3)
        first = fleet_pb2.PushUpdateRequest(start=seal(who, start, PUSH))
        chunk = fleet_pb2.PushUpdateRequest(chunk=common_pb2.Chunk(data=b"abc"))

        async def sent(*messages: Any) -> AsyncIterator[bytes]:
            for message in messages:
                yield contract.to_bytes(message)

        async def silence() -> AsyncIterator[bytes]:
            await asyncio.sleep(30)
            yield b""

        address = f"127.0.0.1:{at.port}"
        async with grpc.aio.secure_channel(address, channel_credentials(who)) as channel:
            push, pull = channel.stream_unary(PUSH), channel.unary_stream(PULL)
            answer = await push(sent(first, chunk), timeout=10)
            assert fleet_pb2.PushUpdateResponse.FromString(answer).offset == 3
            await refused(push(sent(chunk, first), timeout=10), "missing-field")
            await refused(push(sent(), timeout=10), "missing-field")
            await refused(push(silence(), timeout=10), "too-slow")
            assert len(at.past_the_door) == 1

            for wait_ms, reason in ((1, ""), (2, "task-over"), (3, "internal"), (4, "over-norm")):
                body = fleet_pb2.PullTaskRequest(wait_ms=wait_ms)
                stream = pull(contract.to_bytes(seal(who, body, PULL)), timeout=10)
                assert await stream.read()
                if reason:
                    failure = await refused(stream.read(), reason)
                    assert "secret" not in failure.message
                else:
                    assert await stream.read() is grpc.aio.EOF
            unsigned = contract.to_bytes(fleet_pb2.PullTaskRequest(wait_ms=1))
            await refused(pull(unsigned, timeout=10).read(), "wrong-type")

    play(tmp_path, scenario, first_message_s=0.5)


# --- who doesn't get in ------------------------------------------------------------------------


def test_whom_tls_shuts_out(tmp_path: Path) -> None:
    async def scenario(at: Coordinator, folder: Path) -> None:
        who = join(folder / "a", at.authority, at.store, at.now)
        other, its_store = new_fleet(at.now)
        stranger = join(folder / "b", other, its_store, at.now)
        ended = join(folder / "c", at.authority, at.store, at.now - 40 * DAY)
        data = contract.to_bytes(seal(who, make_hello(), HELLO))
        ours = who.authorities
        nobody = identity.enrolment_credentials(ours[0])
        # The authority's own signature, under another fleet's name: its constraint forbids it.
        uri = f"sordino://{other.fleet}/device/{who.device_id}"
        named = forged(at.authority, who.certificates[0], who.key.public_key(), uri)
        for credentials in (
            channel_credentials(replace(who, certificates=(named,))),
            channel_credentials(replace(stranger, authorities=ours)),  # their authority
            channel_credentials(ended),
            channel_credentials(replace(who, authorities=stranger.authorities)),  # not our server
            nobody,
            None,  # plaintext
        ):
            await shut_out(say(at.port, credentials, HELLO, data))
        await shut_out(say(at.enroll_port, None, HELLO, data))
        assert at.past_the_door == []
        # The open listener opens nothing but Enroll.
        await refused(say(at.enroll_port, nobody, HELLO, data), "no-certificate")
        # Under the fleet's own name TLS takes it, and only the store knows better.
        uri = f"sordino://{at.authority.fleet}/device/{who.device_id}"
        named = forged(at.authority, who.certificates[0], who.key.public_key(), uri)
        await refused(hello(at, replace(who, certificates=(named,))), "unknown-device")
        await hello(at, who)

    play(tmp_path, scenario)


def test_whom_the_door_refuses(tmp_path: Path) -> None:
    async def scenario(at: Coordinator, folder: Path) -> None:
        who = join(folder / "a", at.authority, at.store, at.now)
        other = join(folder / "b", at.authority, at.store, at.now)
        await hello(at, who)
        before = list(at.store.writes)
        await refused(hello(at, other, device_id=who.device_id), "wrong-device")
        for skew in (-11 * MINUTE, 11 * MINUTE):
            failure = await refused(hello(at, who, now_unix_ms=at.now + skew), "clock-skew")
            assert failure.now_unix_ms == at.now
            assert failure.retry == "signed-anew"
        data = contract.to_bytes(seal(other, make_hello(), HELLO))
        await refused(say(at.port, channel_credentials(who), HELLO, data), "bad-signature")
        assert at.store.writes == before
        assert at.past_the_door == [who.device_id]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(at.port, channel_credentials(who), f"/{SERVICE}/Nothing", data)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    play(tmp_path, scenario)


def test_a_connection_that_is_open_gets_no_grace(tmp_path: Path) -> None:
    # TLS looked at the certificate when the connection began; each call looks again.
    async def scenario(at: Coordinator, folder: Path) -> None:
        who = join(folder / "a", at.authority, at.store, at.now)
        address = f"127.0.0.1:{at.port}"
        async with grpc.aio.secure_channel(address, channel_credentials(who)) as channel:
            call = channel.unary_unary(HELLO)

            def again() -> Awaitable[bytes]:
                data = contract.to_bytes(seal(who, make_hello(), HELLO))
                answer: Awaitable[bytes] = call(data, timeout=10)
                return answer

            await again()
            at.now += 31 * DAY
            await refused(again(), "certificate-expired")
            at.now -= 31 * DAY
            await again()
            enroll.revoke(at.store, who.device_id, now_unix_ms=at.now, because="stolen")
            await refused(again(), "certificate-revoked")
        assert len(at.past_the_door) == 2

    play(tmp_path, scenario)


def test_first_contact_cannot_be_led_astray(tmp_path: Path) -> None:
    async def scenario(at: Coordinator, folder: Path) -> None:
        other, its_store = new_fleet(at.now)
        theirs = decode_token(new_token(other, its_store, at.now)).authority_sha256

        def fetch() -> x509.Certificate:
            return fetch_authority("127.0.0.1", at.enroll_port, theirs)

        with pytest.raises(ContractError, match="wrong-authority"):
            await asyncio.to_thread(fetch)

    play(tmp_path, scenario)
    with socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
        with pytest.raises(TrustError, match="no TLS"):
            fetch_authority("127.0.0.1", port, bytes(32), timeout_s=0.2)


# --- TLS 1.3 -----------------------------------------------------------------------------------

ONLY_13 = """
import asyncio, sys, time
from pathlib import Path
from sordino.core.trust import require_tls13, takes_tls12
require_tls13()
from support.wire import serving
async def run():
    async with serving(Path(sys.argv[1]), now=time.time_ns() // 1_000_000) as at:
        for port in (at.port, at.enroll_port):
            print(await asyncio.to_thread(takes_tls12, "127.0.0.1", port))
asyncio.run(run())
"""


ALSO_12 = """
import asyncio, sys, time
from pathlib import Path
from sordino.core import contract
from sordino.core.trust import takes_tls12
from support.contracts import make_hello
from support.members import join
from support.wire import HELLO, call_by_hand, serving
async def run():
    folder, now = Path(sys.argv[1]), time.time_ns() // 1_000_000
    async with serving(folder / "ca", now=now) as at:
        for port in (at.port, at.enroll_port):
            print(await asyncio.to_thread(takes_tls12, "127.0.0.1", port))
        who = join(folder, at.authority, at.store, now)
        given = {"device_id": who.device_id, "method": HELLO, "now_unix_ms": now}
        data = contract.to_bytes(contract.seal(who.key, make_hello(), **given))
        answer = await asyncio.to_thread(call_by_hand, at.port, who, folder, HELLO, data)
        print(b"old-tls" in answer, at.past_the_door == [])
asyncio.run(run())
"""


def in_another_process(script: str, folder: Path) -> list[str]:
    """What a script prints in a process where nothing was set beforehand."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop(CIPHERS, None)
    command = [sys.executable, "-c", script, str(folder)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert not ran.returncode, ran.stderr
    return ran.stdout.split()


def test_a_coordinator_agrees_to_nothing_older(tmp_path: Path) -> None:
    assert in_another_process(ONLY_13, tmp_path / "ca") == ["False", "False"]


def test_without_the_setting_the_probe_and_the_door_see_it(tmp_path: Path) -> None:
    # The coordinator agrees to TLS 1.2: the probe says so, and no call over it comes past the door.
    assert in_another_process(ALSO_12, tmp_path) == ["True", "True", "True", "True"]


def test_the_setting_comes_before_grpc_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CIPHERS, raising=False)
    with pytest.raises(TrustError, match="imported before"):
        require_tls13()


# --- without a restart -------------------------------------------------------------------------


def shown(port: int) -> x509.Certificate:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(pem.encode())


def test_the_coordinators_certificate_is_replaced_while_it_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(at: Coordinator, folder: Path) -> None:
        who = join(folder / "a", at.authority, at.store, at.now)
        first = await asyncio.to_thread(shown, at.enroll_port)
        assert await asyncio.to_thread(shown, at.enroll_port) == first
        renew_server(at.folder, at.authority, at.now)
        second = await asyncio.to_thread(shown, at.enroll_port)
        assert second == enroll.read_server_certificate(at.folder).certificate != first
        await hello(at, who)
        (at.folder / "server.pem").write_text("spoilt", "utf-8")
        with caplog.at_level(logging.ERROR):
            assert await asyncio.to_thread(shown, at.enroll_port) == second
        assert "keeping the present" in caplog.text
        await hello(at, who)
        (at.folder / "server.pem").unlink()
        await hello(at, who)
        assert "PRIVATE" not in caplog.text

    play(tmp_path, scenario)


def test_no_refusal_in_the_log_holds_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(at: Coordinator, folder: Path) -> None:
        token = new_token(at.authority, at.store, at.now)
        who = join(folder / "a", at.authority, at.store, at.now)
        credentials = identity.enrolment_credentials(at.authority.certificate)
        request = identity.enrolment_request(folder / "b", token)
        request.token = token[:-1] + ("A" if token[-1] != "A" else "B")
        data = contract.to_bytes(request)
        await refused(say(at.enroll_port, credentials, ENROLL, data), "bad-token")
        await refused(hello(at, who, device_id="d-0"), "wrong-device")
        text = caplog.text
        assert "bad-token" in text
        assert "wrong-device" in text
        assert token[:-9] not in text
        assert token.replace("-", "")[:-9] not in text
        assert "PRIVATE" not in text

    with caplog.at_level(logging.DEBUG, logger="sordino"):
        play(tmp_path, scenario)
