"""A device's identity: made here, kept whole, and held against what its token names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from support.members import DAY, MINUTE, NOW, asked, join, new_fleet, new_key, new_token

from sordino.client import identity
from sordino.client.identity import IDENTITY, NEXT_KEY
from sordino.core import durable
from sordino.core.errors import ContractError, TrustError
from sordino.core.trust import private_pem
from sordino.server import enroll

AUTHORITY, STORE = new_fleet()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def refused(reason: str, folder: Path, token: str, response: object) -> None:
    with pytest.raises(ContractError) as caught:
        identity.accept_enrolment(folder, token, response)  # type: ignore[arg-type]
    assert caught.value.reason == reason, str(caught.value)
    assert not (folder / IDENTITY).exists()


def test_an_identity_is_kept_whole_and_for_its_owner(tmp_path: Path) -> None:
    before = os.umask(0)  # the most generous: the mode is ours to set
    made = join(tmp_path, AUTHORITY, STORE)
    os.umask(before)
    assert mode(tmp_path / IDENTITY) == 0o600
    assert not (tmp_path / NEXT_KEY).exists()
    back = identity.load_identity(tmp_path, now_unix_ms=NOW)
    assert back.device_id == made.device_id
    assert back.key.private_numbers() == made.key.private_numbers()
    assert back.certificates == made.certificates
    assert back.authorities == made.authorities == (AUTHORITY.certificate,)
    assert not back.is_due(NOW + 19 * DAY)
    assert back.is_due(NOW + 20 * DAY)
    with pytest.raises(TrustError, match="already"):
        identity.enrolment_request(tmp_path, new_token(AUTHORITY, STORE))


def test_the_key_is_durable_before_it_is_asked_with(tmp_path: Path) -> None:
    token = new_token(AUTHORITY, STORE)
    first = identity.enrolment_request(tmp_path, token)
    assert mode(tmp_path / NEXT_KEY) == 0o600
    response = enroll.enroll(STORE, AUTHORITY, first, now_unix_ms=NOW)
    # The device dies here; after its restart the same key asks, and gets the same certificate.
    again = identity.enrolment_request(tmp_path, token)
    assert enroll.enroll(STORE, AUTHORITY, again, now_unix_ms=NOW) == response
    assert identity.accept_enrolment(tmp_path, token, response).device_id == response.device_id


def test_a_crash_while_it_is_kept_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = new_token(AUTHORITY, STORE)
    request = identity.enrolment_request(tmp_path, token)
    response = enroll.enroll(STORE, AUTHORITY, request, now_unix_ms=NOW)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_whole", fail)
        with pytest.raises(OSError, match="No space"):
            identity.accept_enrolment(tmp_path, token, response)
    assert identity.accept_enrolment(tmp_path, token, response)


def test_a_crash_after_it_was_kept_makes_a_new_key_next_time(tmp_path: Path) -> None:
    made = join(tmp_path, AUTHORITY, STORE)
    durable.write_whole(tmp_path / NEXT_KEY, private_pem(made.key), mode=0o600)
    asked_with = identity.renewal_request(tmp_path, made).certificate_request
    assert enroll.membership.read_request(asked_with) != made.key.public_key()


def test_answers_that_are_not_the_fleets(tmp_path: Path) -> None:
    token = new_token(AUTHORITY, STORE)
    request = identity.enrolment_request(tmp_path, token)
    response = enroll.enroll(STORE, AUTHORITY, request, now_unix_ms=NOW)
    other, its_store = new_fleet()
    foreign = enroll.enroll(
        its_store,
        other,
        asked(new_token(other, its_store), request.certificate_request),
        now_unix_ms=NOW,
    )
    refused("wrong-authority", tmp_path, token, foreign)
    foreign.authorities.append(AUTHORITY.certificate.public_bytes(Encoding.DER))
    foreign.device_id = "d-0"
    refused("wrong-device", tmp_path, token, foreign)
    someone = enroll.issue_device(
        AUTHORITY, new_key().public_key(), "d-1", now_unix_ms=NOW, lifetime_ms=DAY
    )
    spoilt = type(response)()
    spoilt.CopyFrom(response)
    spoilt.certificates[0] = someone.public_bytes(Encoding.DER)
    refused("wrong-key", tmp_path, token, spoilt)
    spoilt.CopyFrom(response)
    spoilt.device_id = "d-2"
    refused("wrong-device", tmp_path, token, spoilt)
    spoilt.certificates[0] = b"junk"
    refused("malformed", tmp_path, token, spoilt)
    spoilt.ClearField("certificates")
    refused("missing-field", tmp_path, token, spoilt)
    spoilt.CopyFrom(response)
    spoilt.certificates.append(spoilt.authorities[0])
    spoilt.certificates.append(spoilt.certificates[0])
    refused("wrong-authority", tmp_path, token, spoilt)
    assert identity.accept_enrolment(tmp_path, token, response)


def test_a_garbled_token_is_seen_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="bad-token"):
        identity.enrolment_request(tmp_path, "AAAA")
    assert list(tmp_path.iterdir()) == []


def test_renewal_takes_the_old_ones_place(tmp_path: Path) -> None:
    made = join(tmp_path, AUTHORITY, STORE)
    record = STORE.certificates_of_device(made.device_id)[0]
    peer = enroll.Peer(
        device_id=made.device_id, serial=record.serial, key=made.key.public_key(), used=True
    )
    later = NOW + 20 * DAY
    for moment in (later, later + MINUTE):  # asked twice: with the same next key
        request = identity.renewal_request(tmp_path, made)
        response = enroll.renew(STORE, AUTHORITY, peer, request, now_unix_ms=moment)
    fresh = identity.accept_renewal(tmp_path, made, response)
    assert len(STORE.certificates_of_device(made.device_id)) == 2
    assert fresh.device_id == made.device_id
    assert fresh.key.private_numbers() != made.key.private_numbers()
    assert fresh.not_after_unix_ms == later + 30 * DAY
    back = identity.load_identity(tmp_path, now_unix_ms=later)
    assert back.key.private_numbers() == fresh.key.private_numbers()


def test_an_ended_certificate_has_ten_minutes_of_the_devices_clock(tmp_path: Path) -> None:
    end = join(tmp_path, AUTHORITY, STORE).not_after_unix_ms
    assert identity.load_identity(tmp_path, now_unix_ms=end + 10 * MINUTE)
    with pytest.raises(TrustError, match="join with a new token"):
        identity.load_identity(tmp_path, now_unix_ms=end + 10 * MINUTE + 1)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="sordino join makes it"):
        identity.load_identity(tmp_path, now_unix_ms=NOW)
    join(tmp_path, AUTHORITY, STORE)
    path = tmp_path / IDENTITY
    whole = json.loads(path.read_text("utf-8"))
    other = json.loads((tmp_path / IDENTITY).read_text("utf-8"))
    other["key"] = private_pem(new_key()).decode()
    wrong = private_pem(ec.generate_private_key(ec.SECP384R1())).decode()
    for spoilt in (
        {**whole, "version": 2},
        {**whole, "extra": 1},
        {**whole, "certificates": []},
        {**whole, "authorities": []},
        {**whole, "certificates": whole["authorities"]},
        {**whole, "key": "-----BEGIN PRIVATE KEY-----\nMIGHsecret"},
        {**whole, "key": wrong},
        {k: v for k, v in whole.items() if k != "key"},
        other,
        [],
        "half",
    ):
        path.write_text(json.dumps(spoilt), "utf-8")
        with pytest.raises(TrustError) as caught:
            identity.load_identity(tmp_path, now_unix_ms=NOW)
        assert "MIGH" not in str(caught.value)
    path.write_text(json.dumps(whole)[:-10], "utf-8")
    with pytest.raises(TrustError, match="whole identity"):
        identity.load_identity(tmp_path, now_unix_ms=NOW)
    path.write_text(json.dumps(whole), "utf-8")
    assert identity.load_identity(tmp_path, now_unix_ms=NOW)
    path.chmod(0o640)
    with pytest.raises(TrustError, match="0640"):
        identity.load_identity(tmp_path, now_unix_ms=NOW)
