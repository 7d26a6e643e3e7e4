"""Enrolment, renewal, revocation: what is given, and each request that is refused by its word."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from support.members import (
    DAY,
    MINUTE,
    NOW,
    MemoryMembers,
    asked,
    csr,
    new_fleet,
    new_key,
    new_token,
)

from sordino.core import trust
from sordino.core.contract import REASONS
from sordino.core.errors import ContractError, SordinoError, TrustError
from sordino.core.trust import decode_token, device_of, encode_token, is_issued_by
from sordino.protos.v1 import fleet_pb2
from sordino.server import enroll
from sordino.server.enroll import Authority, Peer
from sordino.server.enroll.membership import MAX_CERTIFICATES, read_request

AUTHORITY, _ = new_fleet()
KEY = new_key()
REQUEST = csr(KEY)


@pytest.fixture
def store() -> MemoryMembers:
    return MemoryMembers()


def refused(reason: str, call: Callable[[], object], store: MemoryMembers | None = None) -> str:
    before = list(store.writes) if store else []
    with pytest.raises(ContractError) as caught:
        call()
    assert caught.value.reason == reason, str(caught.value)
    assert store is None or store.writes == before
    return str(caught.value)


def admit(
    store: MemoryMembers, token: str, request: bytes = REQUEST, *, now: int = NOW, name: str = ""
) -> fleet_pb2.EnrollResponse:
    return enroll.enroll(store, AUTHORITY, asked(token, request, name), now_unix_ms=now)


def leaf(response: fleet_pb2.EnrollResponse | fleet_pb2.RenewResponse) -> x509.Certificate:
    return x509.load_der_x509_certificate(response.certificates[0])


def peer(response: fleet_pb2.EnrollResponse) -> Peer:
    serial = f"{leaf(response).serial_number:x}"
    return Peer(device_id=response.device_id, serial=serial, key=KEY.public_key(), used=False)


# --- what is given -----------------------------------------------------------------------------


def test_a_device_gets_a_short_lived_certificate_for_tls_clients_alone(
    store: MemoryMembers,
) -> None:
    response = admit(store, new_token(AUTHORITY, store), name="kitchen")
    certificate = leaf(response)
    value = certificate.extensions.get_extension_for_class
    assert device_of(certificate).device_id == response.device_id
    assert device_of(certificate).fleet == AUTHORITY.fleet
    assert is_issued_by(certificate, AUTHORITY.certificate)
    assert certificate.public_key() == KEY.public_key()
    assert value(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    assert list(value(x509.ExtendedKeyUsage).value) == [Purpose.CLIENT_AUTH]
    usage = value(x509.KeyUsage).value
    assert usage.digital_signature
    assert [usage.key_cert_sign, usage.crl_sign, usage.key_agreement] == [False] * 3
    assert response.not_after_unix_ms == NOW + 30 * DAY
    begins = certificate.not_valid_before_utc.timestamp() * 1000
    assert begins == NOW - 10 * MINUTE  # for clocks that are behind
    assert response.renew_after_unix_ms == pytest.approx(NOW + 20 * DAY, abs=10 * MINUTE)
    assert response.authorities == [AUTHORITY.certificate.public_bytes(Encoding.DER)]
    device = store.device(response.device_id)
    assert device is not None
    assert device.display_name == "kitchen"


def test_the_authority_can_sign_nothing_but_leaves_of_its_own_fleet() -> None:
    value = AUTHORITY.certificate.extensions.get_extension_for_class
    assert value(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert value(x509.BasicConstraints).critical
    names = value(x509.NameConstraints)
    assert names.critical
    assert [one.value for one in names.value.permitted_subtrees or []] == [AUTHORITY.fleet]
    assert not value(x509.KeyUsage).value.digital_signature


def test_what_a_request_asks_for_never_reaches_the_certificate(store: MemoryMembers) -> None:
    smuggled = csr(
        KEY,
        x509.BasicConstraints(ca=True, path_length=3),
        x509.ExtendedKeyUsage([Purpose.SERVER_AUTH, Purpose.ANY_EXTENDED_KEY_USAGE]),
        x509.SubjectAlternativeName([x509.DNSName("coordinator.example")]),
        x509.KeyUsage(True, True, True, True, True, True, True, False, False),
    )
    plain = leaf(admit(store, new_token(AUTHORITY, store), smuggled))
    other = leaf(admit(store, new_token(AUTHORITY, store), csr(new_key())))
    kinds = [type(one.value) for one in plain.extensions]
    assert kinds == [type(one.value) for one in other.extensions]
    value = plain.extensions.get_extension_for_class
    assert not value(x509.BasicConstraints).value.ca
    assert list(value(x509.ExtendedKeyUsage).value) == [Purpose.CLIENT_AUTH]
    assert not value(x509.KeyUsage).value.key_cert_sign
    assert "coordinator.example" not in str(value(x509.SubjectAlternativeName).value)


# --- tokens ------------------------------------------------------------------------------------


def test_a_token_is_good_for_one_key_once(store: MemoryMembers) -> None:
    token = new_token(AUTHORITY, store)
    first = admit(store, token)
    assert admit(store, token) == first  # the answer was lost: the very same one again
    assert admit(store, token, now=NOW + 2 * DAY) == first
    refused("token-used", lambda: admit(store, token, csr(new_key())), store)
    store.mark_used(f"{leaf(first).serial_number:x}")
    refused("token-used", lambda: admit(store, token), store)


def test_a_revoked_devices_token_gives_nothing_again(store: MemoryMembers) -> None:
    token = new_token(AUTHORITY, store)
    first = admit(store, token)
    enroll.revoke(store, first.device_id, now_unix_ms=NOW, because="lost")
    refused("token-used", lambda: admit(store, token), store)
    fresh = new_token(AUTHORITY, store)
    refused("wrong-key", lambda: admit(store, fresh), store)  # nor does its key come back


def test_of_two_at_once_one_is_admitted(store: MemoryMembers) -> None:
    token = new_token(AUTHORITY, store)
    requests = [csr(new_key()) for _ in range(8)]

    def attempt(request: bytes) -> str:
        try:
            return admit(store, token, request).device_id
        except ContractError as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, requests))
    assert sorted(outcomes)[1:] == ["token-used"] * 7
    assert len(store.devices()) == 1


def test_the_slower_of_two_gets_nothing(store: MemoryMembers) -> None:
    token = new_token(AUTHORITY, store)

    class Overtaken(MemoryMembers):
        def admit(self, *given: object) -> bool:
            if not store.devices():
                admit(store, token, csr(new_key()))
            return store.admit(*given)  # type: ignore[arg-type]

    slow = Overtaken(
        writes=store.writes,
        _tokens=store._tokens,
        _devices=store._devices,
        _certificates=store._certificates,
    )
    with pytest.raises(ContractError) as caught:
        admit(slow, token)
    assert caught.value.reason == "token-used"
    assert len(store.devices()) == 1


def test_tokens_that_admit_nobody(store: MemoryMembers) -> None:
    token = new_token(AUTHORITY, store)
    other, its_store = new_fleet()
    refused("token-expired", lambda: admit(store, token, now=NOW + DAY), store)
    assert "garbled" not in refused("bad-token", lambda: admit(store, token[:-1] + "?"), store)
    unknown = encode_token(replace(decode_token(token), secret=bytes(18)))
    assert unknown not in refused("bad-token", lambda: admit(store, unknown), store)
    foreign = new_token(other, its_store)
    refused("wrong-authority", lambda: admit(store, foreign), store)
    assert store.withdraw_token(decode_token(token).token_id, NOW)
    refused("token-expired", lambda: admit(store, token), store)


def test_a_stolen_database_row_is_no_token(store: MemoryMembers) -> None:
    # The id is in lists and logs, and the verifier in the store: neither makes the secret.
    token = decode_token(new_token(AUTHORITY, store))
    record = store.token(token.token_id)
    assert record is not None
    assert token.secret not in record.verifier
    assert token.secret.hex() not in repr(record)
    assert record.verifier.hex() not in repr(record)
    forged = replace(record, verifier=bytes(32))
    store._tokens[token.token_id] = forged
    refused("bad-token", lambda: admit(store, encode_token(token)), store)


def test_a_label_is_the_only_name(store: MemoryMembers) -> None:
    token = new_token(AUTHORITY, store, label="kitchen")
    refused("not-permitted", lambda: admit(store, token, name="cellar"), store)
    device = store.device(admit(store, token).device_id)
    assert device is not None
    assert device.display_name == "kitchen"
    with pytest.raises(TrustError, match="label"):
        new_token(AUTHORITY, store, label="a\nb")


# --- certificate requests ----------------------------------------------------------------------


def foreign_key_request() -> bytes:
    """Somebody's request with another key put in: its own signature doesn't hold for that."""
    theirs, ours = new_key(), new_key()
    der = csr(theirs)
    spki = [
        key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        for key in (theirs, ours)
    ]
    assert der.count(spki[0]) == 1
    return der.replace(*spki)


BAD_REQUESTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "nothing": ("malformed", lambda: b""),
    "not DER": ("malformed", lambda: b"-----BEGIN CERTIFICATE REQUEST-----"),
    "cut short": ("malformed", lambda: REQUEST[:-1]),
    "another's key": ("bad-signature", foreign_key_request),
    "a spoilt signature": ("bad-signature", lambda: REQUEST[:-1] + bytes([REQUEST[-1] ^ 1])),
    "SHA-512": ("bad-signature", lambda: csr(KEY, algorithm=hashes.SHA512())),
    "RSA of 1024 bits": ("wrong-key", lambda: csr(rsa.generate_private_key(65537, 1024))),
    "RSA of 2048 bits": ("wrong-key", lambda: csr(rsa.generate_private_key(65537, 2048))),
    "a weaker curve": ("wrong-key", lambda: csr(ec.generate_private_key(ec.SECP224R1()))),
    "another curve": ("wrong-key", lambda: csr(ec.generate_private_key(ec.SECP384R1()))),
    "Ed25519": ("wrong-key", lambda: csr(ed25519.Ed25519PrivateKey.generate(), algorithm=None)),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_leave_the_token_unused(name: str, store: MemoryMembers) -> None:
    reason, make = BAD_REQUESTS[name]
    token, request = new_token(AUTHORITY, store), make()
    refused(reason, lambda: admit(store, token, request), store)
    refused(reason, lambda: read_request(request))
    assert admit(store, token).device_id


# --- renewal and revocation --------------------------------------------------------------------


def renewed(
    store: MemoryMembers, who: Peer, request: bytes, now: int, authority: Authority = AUTHORITY
) -> fleet_pb2.RenewResponse:
    body = fleet_pb2.RenewRequest(certificate_request=request)
    return enroll.renew(store, authority, who, body, now_unix_ms=now)


def test_renewal_keeps_the_name_and_the_old_certificate(store: MemoryMembers) -> None:
    first = admit(store, new_token(AUTHORITY, store))
    later, key = NOW + 20 * DAY, new_key()
    second = renewed(store, peer(first), csr(key), later)
    assert device_of(leaf(second)) == device_of(leaf(first))
    assert leaf(second).public_key() == key.public_key()
    assert second.not_after_unix_ms == later + 30 * DAY
    assert renewed(store, peer(first), csr(key), later + MINUTE) == second  # the answer was lost
    assert len(store.certificates_of_device(first.device_id)) == 2


def test_the_same_key_can_be_renewed_when_it_is_due(store: MemoryMembers) -> None:
    first = admit(store, new_token(AUTHORITY, store))
    early = renewed(store, peer(first), REQUEST, NOW + DAY)
    assert early.certificates == first.certificates
    due = renewed(store, peer(first), REQUEST, first.renew_after_unix_ms)
    assert due.certificates != first.certificates


def test_renewals_that_are_refused(store: MemoryMembers) -> None:
    first = admit(store, new_token(AUTHORITY, store))
    second = admit(store, new_token(AUTHORITY, store), csr(new_key()))
    refused("wrong-key", lambda: renewed(store, peer(second), REQUEST, NOW), store)
    for _ in range(MAX_CERTIFICATES - 1):
        renewed(store, peer(first), csr(new_key()), NOW)
    refused("quota-full", lambda: renewed(store, peer(first), csr(new_key()), NOW), store)
    assert renewed(store, peer(first), csr(new_key()), NOW + 30 * DAY)  # the others have ended


def test_revocation_is_final_and_on_the_list(store: MemoryMembers) -> None:
    first = admit(store, new_token(AUTHORITY, store))
    kept = admit(store, new_token(AUTHORITY, store), csr(new_key()))
    enroll.revoke(store, first.device_id, now_unix_ms=NOW + DAY, because="stolen")
    enroll.revoke(store, first.device_id, now_unix_ms=NOW + 2 * DAY, because="again")
    device = store.device(first.device_id)
    assert device is not None
    assert (device.revoked_at_unix_ms, device.revoked_because) == (NOW + DAY, "stolen")
    refused("unknown-device", lambda: enroll.revoke(store, "d-0", now_unix_ms=NOW, because=""))
    revoked = enroll.membership.revoked_serials(store)
    made = enroll.revocation_list(AUTHORITY, revoked, now_unix_ms=NOW + DAY)
    assert made.is_signature_valid(AUTHORITY.key.public_key())
    found = made.get_revoked_certificate_by_serial_number(leaf(first).serial_number)
    assert found is not None
    assert found.revocation_date_utc.timestamp() * 1000 == NOW + DAY
    assert made.get_revoked_certificate_by_serial_number(leaf(kept).serial_number) is None


def test_nothing_outlives_the_authority(store: MemoryMembers) -> None:
    short = enroll.new_authority(now_unix_ms=NOW, days=10)
    response = enroll.enroll(store, short, asked(new_token(short, store), REQUEST), now_unix_ms=NOW)
    assert response.not_after_unix_ms == NOW + 10 * DAY
    with pytest.raises(SordinoError, match="make a new fleet"):
        enroll.issue_server(short, ["a.example"], now_unix_ms=NOW + 10 * DAY)


def test_the_coordinators_names_are_checked() -> None:
    issued = enroll.issue_server(AUTHORITY, ["fleet.example", "10.0.0.1", "::1"], now_unix_ms=NOW)
    value = issued.certificate.extensions.get_extension_for_class
    names = value(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert list(value(x509.ExtendedKeyUsage).value) == [Purpose.SERVER_AUTH]
    for bad in ("", "a b", "fleet.example:443", "*.example", "-a.example", "https://a", "1.2.3"):
        with pytest.raises(TrustError, match="host"):
            enroll.issue_server(AUTHORITY, [bad], now_unix_ms=NOW)
    with pytest.raises(TrustError, match="at least one"):
        enroll.issue_server(AUTHORITY, [], now_unix_ms=NOW)


def test_private_keys_are_not_shown() -> None:
    issued = enroll.issue_server(AUTHORITY, ["a.example"], now_unix_ms=NOW)
    for shown, key in ((repr(AUTHORITY), AUTHORITY.key), (repr(issued), issued.key)):
        secret = key.private_numbers().private_value
        assert "key=" not in shown
        assert str(secret) not in shown
        assert f"{secret:x}" not in shown


def test_every_word_that_is_raised_is_the_contracts() -> None:
    modules = (enroll.membership, enroll.peers, enroll.calls, trust.tokens, trust.certificates)
    for module in modules:
        text = Path(str(module.__file__)).read_text("utf-8")
        words = set(re.findall(r'ContractError\(\s*"([a-z-]+)"', text))
        assert words
        assert words <= set(REASONS)
