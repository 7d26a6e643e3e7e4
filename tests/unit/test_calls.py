"""Who makes a call: every connection and statement that isn't a member's is refused by its word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from support.contracts import make_hello
from support.members import (
    DAY,
    MINUTE,
    NOW,
    TLS13,
    MemoryMembers,
    forged,
    join,
    new_fleet,
    new_key,
    transport,
)

from sordino.client.identity import Identity
from sordino.core import contract
from sordino.core.errors import ContractError
from sordino.core.trust import device_uri, public_pem
from sordino.protos.v1 import common_pb2
from sordino.server import enroll
from sordino.server.enroll import Authority, Call, Transport
from sordino.server.enroll.calls import NONCE_KEPT_MS, authenticate

HELLO = "/sordino.v1.Fleet/Hello"


class Fleet:
    """A coordinator with one member, and a way to call it."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.store = new_fleet()
        self.folder = folder
        self.device = self.join("a")
        self.store.writes.clear()

    def join(self, name: str) -> Identity:
        return join(self.folder / name, self.authority, self.store)

    def signed(
        self, *, by: Identity | None = None, as_id: str = "", now: int = NOW, method: str = HELLO
    ) -> bytes:
        who = by or self.device
        signed = contract.seal(
            who.key,
            make_hello(),
            device_id=as_id or who.device_id,
            method=method,
            now_unix_ms=now,
        )
        return contract.to_bytes(signed)

    def call(
        self,
        data: bytes | None = None,
        *,
        by: Transport | x509.Certificate | None = None,
        now: int = NOW,
        authorities: list[Authority] | None = None,
        method: str = HELLO,
    ) -> Call:
        by = self.device.certificates[0] if by is None else by
        return authenticate(
            self.signed(now=now) if data is None else data,
            method=method,
            transport=transport(by) if isinstance(by, x509.Certificate) else by,
            authorities=[one.certificate for one in authorities or [self.authority]],
            store=self.store,
            now_unix_ms=now,
        )

    def refuses(self, reason: str, call: Callable[[], object]) -> str:
        before = list(self.store.writes)
        with pytest.raises(ContractError) as caught:
            call()
        assert caught.value.reason == reason, str(caught.value)
        assert self.store.writes == before
        assert reason in contract.REASONS
        return str(caught.value)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_a_members_call_is_known_and_remembered(fleet: Fleet) -> None:
    call = fleet.call()
    assert call.peer.device_id == fleet.device.device_id
    assert call.opened.body == make_hello()
    assert not call.retry
    assert fleet.store.writes == ["remember_nonce", "mark_used"]
    assert fleet.call().peer.used


def test_connections_that_are_nobodys(fleet: Fleet) -> None:
    fleet.refuses("no-certificate", lambda: fleet.call(by={"ssl_tls_version": TLS13}))
    junk = {"ssl_tls_version": TLS13, "x509_pem_cert": [b"junk"]}
    fleet.refuses("no-certificate", lambda: fleet.call(by=junk))
    shown = {"x509_pem_cert": [public_pem(fleet.device.certificates[0])]}
    for version in ([b"TLSv1.2"], [], [*TLS13, b"TLSv1.2"]):
        fleet.refuses("old-tls", lambda v=version: fleet.call(by={"ssl_tls_version": v, **shown}))
    fleet.refuses("old-tls", lambda: fleet.call(by={}))  # plaintext


def test_certificates_of_other_authorities(fleet: Fleet, tmp_path: Path) -> None:
    other, its_store = new_fleet()
    stranger = join(tmp_path / "stranger", other, its_store)
    fleet.refuses("wrong-authority", lambda: fleet.call(by=stranger.certificates[0]))
    # The same name, but another key: a forger makes that in a second.
    forger = Authority(certificate=fleet.authority.certificate, key=other.key)
    forged = enroll.issue_device(
        forger,
        stranger.key.public_key(),
        fleet.device.device_id,
        now_unix_ms=NOW,
        lifetime_ms=DAY,
    )
    fleet.refuses("wrong-authority", lambda: fleet.call(by=forged))
    own = fleet.device.certificates[0]
    fleet.refuses("wrong-authority", lambda: fleet.call(by=own, authorities=[other]))
    assert fleet.call(by=own, authorities=[other, fleet.authority])  # while one is replaced


def test_certificates_that_are_not_a_devices(fleet: Fleet) -> None:
    server = enroll.issue_server(fleet.authority, ["a.example"], now_unix_ms=NOW)
    fleet.refuses("not-permitted", lambda: fleet.call(by=server.certificate))
    fleet.refuses("not-permitted", lambda: fleet.call(by=fleet.authority.certificate))


def test_a_signature_of_the_authority_is_not_enough(fleet: Fleet) -> None:
    # A certificate made with a stolen key, or before the store was restored from a backup.
    made = enroll.issue_device(
        fleet.authority,
        fleet.device.key.public_key(),
        fleet.device.device_id,
        now_unix_ms=NOW,
        lifetime_ms=DAY,
    )
    fleet.refuses("unknown-device", lambda: fleet.call(by=made))
    # The thief reads a member's certificate off the wire, and makes the same for another key.
    own, thief = fleet.device.certificates[0], replace(fleet.device, key=new_key())
    uri = device_uri(fleet.authority.fleet, fleet.device.device_id)
    made = forged(fleet.authority, own, thief.key.public_key(), uri)
    fleet.refuses("unknown-device", lambda: fleet.call(fleet.signed(by=thief), by=made))
    elsewhere = device_uri(new_fleet()[0].fleet, fleet.device.device_id)
    made = forged(fleet.authority, own, fleet.device.key.public_key(), elsewhere)
    fleet.refuses("wrong-device", lambda: fleet.call(by=made))


def test_a_store_that_gives_a_serial_to_another_device(fleet: Fleet) -> None:
    second = fleet.join("b")
    serial = f"{fleet.device.certificates[0].serial_number:x}"
    record = fleet.store.certificate(serial)
    assert record is not None
    fleet.store._certificates[serial] = replace(record, device_id=second.device_id)
    fleet.refuses("wrong-device", fleet.call)


def test_the_end_of_a_certificate_is_by_the_coordinators_clock(fleet: Fleet) -> None:
    end = fleet.device.not_after_unix_ms
    assert fleet.call(now=end - 1)
    fleet.refuses("certificate-expired", lambda: fleet.call(now=end))


def test_a_revoked_device_is_out_with_its_next_call(fleet: Fleet) -> None:
    assert fleet.call()
    enroll.revoke(fleet.store, fleet.device.device_id, now_unix_ms=NOW, because="stolen")
    fleet.refuses("certificate-revoked", fleet.call)
    other = fleet.join("b")
    assert fleet.call(fleet.signed(by=other), by=other.certificates[0])


def test_a_forged_device_is_seen(fleet: Fleet) -> None:
    # A valid certificate, another device's name; and a valid certificate, another device's key.
    other = fleet.join("b")
    named = fleet.signed(by=other, as_id=fleet.device.device_id)
    fleet.refuses("wrong-device", lambda: fleet.call(named, by=other.certificates[0]))
    fleet.refuses("bad-signature", lambda: fleet.call(by=other.certificates[0]))
    fleet.refuses("bad-signature", lambda: fleet.call(named))


def test_a_request_for_another_method_or_with_another_body(fleet: Fleet) -> None:
    data = fleet.signed()
    fleet.refuses("wrong-method", lambda: fleet.call(data, method="/sordino.v1.Fleet/Leave"))
    signed = common_pb2.Signed.FromString(data)
    signed.body += b"\0"
    fleet.refuses("wrong-body", lambda: fleet.call(signed.SerializeToString()))
    fleet.refuses("unknown-field", lambda: fleet.call(data + b"\x7a\x00"))


@pytest.mark.parametrize("skew", [-10 * MINUTE, 10 * MINUTE])
def test_ten_minutes_are_near_enough_and_no_more(fleet: Fleet, skew: int) -> None:
    beyond = skew + (1 if skew > 0 else -1)
    fleet.refuses("clock-skew", lambda: fleet.call(fleet.signed(now=NOW + beyond)))
    assert fleet.call(fleet.signed(now=NOW + skew))


def test_a_nonce_is_good_for_one_statement(fleet: Fleet) -> None:
    data = fleet.signed()
    assert not fleet.call(data).retry
    assert fleet.call(data).retry  # the answer was lost
    statement = common_pb2.Statement.FromString(common_pb2.Signed.FromString(data).statement)
    statement.issued_at_unix_ms += 1
    again = common_pb2.Signed.FromString(data)
    again.statement = statement.SerializeToString()
    again.signature = fleet.device.key.sign(
        contract.signing.PREFIX + again.statement, contract.signing.ECDSA
    )
    fleet.refuses("nonce-replayed", lambda: fleet.call(again.SerializeToString()))
    assert fleet.call(data).retry


def test_a_nonce_is_remembered_for_as_long_as_its_statement_is_taken(fleet: Fleet) -> None:
    data = fleet.signed(now=NOW + 10 * MINUTE)  # a clock that is as far ahead as it may be
    fleet.call(data)
    last = NOW + 20 * MINUTE
    assert last == NOW + NONCE_KEPT_MS
    assert fleet.store.forget_nonces(last) == 0
    assert fleet.call(data, now=last).retry
    assert fleet.store.forget_nonces(last + 1) == 1
    fleet.refuses("clock-skew", lambda: fleet.call(data, now=last + 1))


def test_another_devices_nonce_is_no_replay(fleet: Fleet) -> None:
    other = fleet.join("b")
    data = fleet.signed()
    fleet.call(data)
    nonce = common_pb2.Statement.FromString(common_pb2.Signed.FromString(data).statement).nonce
    statement = common_pb2.Statement.FromString(
        common_pb2.Signed.FromString(fleet.signed(by=other)).statement
    )
    statement.nonce = nonce
    signed = common_pb2.Signed.FromString(fleet.signed(by=other))
    signed.statement = statement.SerializeToString()
    signed.signature = other.key.sign(
        contract.signing.PREFIX + signed.statement, contract.signing.ECDSA
    )
    assert not fleet.call(signed.SerializeToString(), by=other.certificates[0]).retry


def test_the_renewed_and_the_old_certificate_both_open(fleet: Fleet, tmp_path: Path) -> None:
    from sordino.client import identity

    peer = fleet.call().peer
    request = identity.renewal_request(tmp_path / "a", fleet.device)
    response = enroll.renew(fleet.store, fleet.authority, peer, request, now_unix_ms=NOW)
    fresh = identity.accept_renewal(tmp_path / "a", fleet.device, response)
    assert fleet.call().peer.device_id == fleet.device.device_id
    assert fleet.call(fleet.signed(by=fresh), by=fresh.certificates[0])
    fleet.refuses("bad-signature", lambda: fleet.call(fleet.signed(by=fresh)))


def test_no_refusal_repeats_a_secret(fleet: Fleet) -> None:
    store = MemoryMembers()
    text = fleet.refuses("wrong-device", lambda: fleet.call(fleet.signed(as_id="d-0")))
    secret = fleet.device.key.private_numbers().private_value
    for shown in (text, repr(fleet.device), repr(store), repr(fleet.call())):
        assert f"{secret:x}" not in shown
        assert str(secret) not in shown
        assert "PRIVATE" not in shown
