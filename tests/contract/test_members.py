"""What every `MembershipStore` must do: in memory, in SQLite, and (marker `slow`) PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.members import DAY, NOW, MemoryMembers

from sordino.server import fleet_rounds as fr
from sordino.server.enroll import CertificateRecord, DeviceRecord, MembershipStore, TokenRecord

STORES = ["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]

TOKEN = TokenRecord(token_id="0a", verifier=b"v" * 32, label="kitchen", expires_at_unix_ms=NOW)
DEVICE = DeviceRecord(device_id="d-1", display_name="Küche", enrolled_at_unix_ms=NOW)
FIRST = CertificateRecord(
    serial="f00", device_id="d-1", key_sha256="ab" * 32, der=b"\x30\x00", not_after_unix_ms=NOW
)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MembershipStore]:
    if request.param == "memory":
        yield MemoryMembers()
        return
    url = request.getfixturevalue("databases")() if request.param == "postgresql" else None
    with fr.open_fleet(tmp_path, url=url) as fleet:
        yield fr.Members(fleet)


def test_nothing_is_known_at_first(store: MembershipStore) -> None:
    assert store.token("0a") is store.device("d-1") is store.certificate("f00") is None
    assert [*store.tokens(), *store.devices()] == []
    assert [*store.certificates_of_key("ab" * 32), *store.certificates_of_device("d-1")] == []
    assert not store.withdraw_token("0a", NOW)
    assert not store.revoke_device("d-1", NOW, "")
    assert store.forget_nonces(NOW) == 0


def test_admission_is_one_change(store: MembershipStore) -> None:
    store.add_token(TOKEN)
    assert store.admit("0a", DEVICE, FIRST)
    assert store.token("0a") == replace(TOKEN, device_id="d-1")
    assert list(store.tokens()) == [replace(TOKEN, device_id="d-1")]
    assert store.device("d-1") == DEVICE
    assert list(store.devices()) == [DEVICE]
    assert store.certificate("f00") == FIRST
    second = replace(FIRST, serial="f01", device_id="d-2")
    assert not store.admit("0a", replace(DEVICE, device_id="d-2"), second)
    assert store.device("d-2") is store.certificate("f01") is None


def test_of_many_at_once_one_is_admitted(store: MembershipStore) -> None:
    store.add_token(TOKEN)

    def attempt(number: int) -> bool:
        name = f"d-{number}"
        certificate = replace(FIRST, serial=f"{number:x}", device_id=name)
        return store.admit("0a", replace(DEVICE, device_id=name), certificate)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(32))) == 1
    assert len(store.devices()) == 1


def test_an_unused_token_is_withdrawn_and_never_prolonged(store: MembershipStore) -> None:
    store.add_token(TOKEN)
    assert store.withdraw_token("0a", NOW + DAY)
    assert store.token("0a") == TOKEN
    assert store.withdraw_token("0a", NOW - DAY)
    assert store.token("0a") == replace(TOKEN, expires_at_unix_ms=NOW - DAY)
    store.admit("0a", DEVICE, FIRST)
    assert not store.withdraw_token("0a", NOW)


def test_certificates_come_oldest_first(store: MembershipStore) -> None:
    store.add_token(TOKEN)
    store.admit("0a", DEVICE, FIRST)
    later = [replace(FIRST, serial=serial) for serial in ("a", "fff", "1")]
    for one in later:
        store.add_certificate(one)
    assert list(store.certificates_of_key(FIRST.key_sha256)) == [FIRST, *later]
    assert list(store.certificates_of_device("d-1")) == [FIRST, *later]
    store.mark_used("fff")
    store.mark_used("fff")
    assert [one.used for one in store.certificates_of_device("d-1")] == [False, False, True, False]


def test_the_first_revocation_stays(store: MembershipStore) -> None:
    store.add_token(TOKEN)
    store.admit("0a", DEVICE, FIRST)
    assert store.revoke_device("d-1", NOW, "stolen")
    assert store.revoke_device("d-1", NOW + DAY, "again")
    wanted = replace(DEVICE, revoked_at_unix_ms=NOW, revoked_because="stolen")
    assert store.device("d-1") == wanted


def test_nonces_are_each_devices_own_and_kept_until_their_time(store: MembershipStore) -> None:
    for token_id, name, serial in (("0a", "d-1", "f00"), ("0b", "d-2", "f01")):
        store.add_token(replace(TOKEN, token_id=token_id))
        certificate = replace(FIRST, serial=serial, device_id=name)
        store.admit(token_id, replace(DEVICE, device_id=name), certificate)
    one, other = "11" * 32, "22" * 32
    assert store.remember_nonce("d-1", b"n" * 16, one, NOW) is None
    assert store.remember_nonce("d-1", b"n" * 16, one, NOW + DAY) == one
    assert store.remember_nonce("d-1", b"n" * 16, other, NOW + DAY) == one
    assert store.remember_nonce("d-2", b"n" * 16, other, NOW + DAY) is None
    assert store.forget_nonces(NOW) == 0
    assert store.forget_nonces(NOW + 1) == 1
    assert store.remember_nonce("d-1", b"n" * 16, other, NOW + DAY) is None
    assert store.remember_nonce("d-2", b"n" * 16, one, NOW + DAY) == other


def test_of_many_with_one_nonce_one_is_new(store: MembershipStore) -> None:
    store.add_token(TOKEN)
    store.admit("0a", DEVICE, FIRST)

    def attempt(number: int) -> str | None:
        return store.remember_nonce("d-1", b"n" * 16, f"{number:064x}", NOW)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(32)))
    assert outcomes.count(None) == 1
    assert len(set(outcomes)) == 2
