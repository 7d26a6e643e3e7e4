"""`sordino ca`, and the folder that it writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.members import MINUTE, TLS13, asked, csr, new_key
from typer.testing import CliRunner, Result

from sordino.cli import ca
from sordino.cli.main import app
from sordino.core.errors import ContractError, TrustError
from sordino.core.trust import decode_token, private_pem
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.enroll import files, operators
from sordino.server.enroll.authority import issue_operator

HOSTS = ("--host", "fleet.example", "--host", "10.0.0.1")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["ca", *map(str, words)])


def good(*words: str | Path) -> str:
    ran = run(*words)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_authority_keeps_its_secrets_from_others(tmp_path: Path) -> None:
    shown = good("init", tmp_path / "ca", *HOSTS)
    authority = enroll.load_authority(tmp_path / "ca")
    assert authority.fleet in shown
    assert authority.sha256.hex() in shown
    modes = {path.name: mode(path) for path in (tmp_path / "ca").iterdir()}
    assert set(modes) == {
        *(files.KEY, files.CERTIFICATE, files.SERVER, files.REVOKED),
        *(operators.KEY, operators.AUTHORITY, operators.IN_FORCE, operators.FIRST),
    }
    assert modes[files.KEY] == modes[files.SERVER] == modes[operators.KEY] == 0o600
    assert modes[operators.FIRST] == 0o700
    assert mode(tmp_path / "ca" / operators.FIRST / operators.CREDENTIALS) == 0o600
    assert enroll.read_server_certificate(tmp_path / "ca").hosts == ["fleet.example", "10.0.0.1"]
    pem = (tmp_path / "ca" / files.REVOKED).read_bytes()
    assert x509.load_pem_x509_crl(pem).is_signature_valid(authority.key.public_key())
    again = run("init", tmp_path / "ca", *HOSTS)
    assert isinstance(again.exception, TrustError)
    assert enroll.load_authority(tmp_path / "ca").sha256 == authority.sha256


def test_a_bad_host_leaves_nothing_behind(tmp_path: Path) -> None:
    ran = run("init", tmp_path / "ca", "--host", "https://fleet.example")
    assert isinstance(ran.exception, TrustError)
    assert not (tmp_path / "ca").exists()


def test_a_passphrase_encrypts_the_key(tmp_path: Path) -> None:
    folder, secret = tmp_path / "ca", tmp_path / "passphrase"
    secret.write_text("correct horse\nsecond line\n", "utf-8")
    good("init", folder, *HOSTS, "--passphrase-file", secret)
    for name in (files.KEY, operators.KEY):
        assert b"ENCRYPTED" in (folder / name).read_bytes()
    assert enroll.load_authority(folder, b"correct horse")
    for passphrase, why in ((None, "needs its passphrase"), (b"wrong", "with this passphrase")):
        with pytest.raises(TrustError, match=why):
            enroll.load_authority(folder, passphrase)
    secret.write_text("\n", "utf-8")
    ran = run("renew-server", folder, "--passphrase-file", secret)
    assert isinstance(ran.exception, TrustError)


def test_a_token_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    good("init", tmp_path, *HOSTS)
    text = good("token", tmp_path, "--label", "kitchen", "--hours", "2").strip()
    token = decode_token(text)
    with ca.members(tmp_path, None) as store:
        record = store.token(token.token_id)
    assert record is not None
    assert record.verifier == token.verifier
    listed = good("list", tmp_path)
    assert f"token {token.token_id}\tkitchen\tunused" in listed
    assert text not in listed
    now, authority = ca._now(), enroll.load_authority(tmp_path)
    late = now + 121 * MINUTE
    with (
        ca.members(tmp_path, None) as store,
        pytest.raises(ContractError, match="token-expired"),
    ):
        enroll.enroll(store, authority, asked(text, csr(new_key())), now_unix_ms=late)


def test_devices_are_listed_and_revoked(tmp_path: Path) -> None:
    good("init", tmp_path, *HOSTS)
    text = good("token", tmp_path).strip()
    request = asked(text, csr(new_key()), "kitchen")
    authority = enroll.load_authority(tmp_path)
    with ca.members(tmp_path, None) as store:
        response = enroll.enroll(store, authority, request, now_unix_ms=ca._now())
    name = response.device_id
    assert f"{name}\tkitchen\tgood until" in good("list", tmp_path)
    assert f"used by {name}" in good("list", tmp_path)
    used = run("revoke", tmp_path, decode_token(text).token_id)
    assert isinstance(used.exception, TrustError)
    good("revoke", tmp_path, name, "--because", "stolen")
    assert "stolen" in good("list", tmp_path)
    pem = (tmp_path / files.REVOKED).read_bytes()
    serial = x509.load_der_x509_certificate(response.certificates[0]).serial_number
    revoked = x509.load_pem_x509_crl(pem).get_revoked_certificate_by_serial_number(serial)
    assert revoked is not None
    unknown = run("revoke", tmp_path, "d-0")
    assert isinstance(unknown.exception, ContractError)


def test_an_unused_token_is_withdrawn(tmp_path: Path) -> None:
    good("init", tmp_path, *HOSTS)
    token = decode_token(good("token", tmp_path).strip())
    good("revoke", tmp_path, token.token_id)
    assert f"{token.token_id}\t\texpired" in good("list", tmp_path)


def test_the_coordinators_certificate_is_renewed_for_the_same_names(tmp_path: Path) -> None:
    good("init", tmp_path, *HOSTS)
    first = enroll.read_server_certificate(tmp_path)
    good("renew-server", tmp_path)
    second = enroll.read_server_certificate(tmp_path)
    assert second.hosts == first.hosts
    assert second.certificate.public_key() != first.certificate.public_key()
    assert second.authority == first.authority
    assert mode(tmp_path / files.SERVER) == 0o600
    good("renew-server", tmp_path, "--host", "new.example")
    assert enroll.read_server_certificate(tmp_path).hosts == ["new.example"]
    for shown in (repr(second), str(second)):
        assert "PRIVATE" not in shown


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="sordino ca init makes it"):
        enroll.load_authority(tmp_path)
    good("init", tmp_path / "a", *HOSTS)
    good("init", tmp_path / "b", *HOSTS)
    mixed, other = tmp_path / "a", tmp_path / "b"
    whole = (mixed / files.SERVER).read_bytes()
    for spoilt in (
        whole[:-100],
        private_pem(new_key()) + whole[whole.index(b"-----BEGIN CERT") :],
        whole + (other / files.CERTIFICATE).read_bytes(),
        b"",
    ):
        (mixed / files.SERVER).write_bytes(spoilt)
        with pytest.raises(TrustError) as caught:
            enroll.read_server_certificate(mixed)
        assert "PRIVATE" not in str(caught.value)
    (mixed / files.CERTIFICATE).write_bytes((other / files.CERTIFICATE).read_bytes())
    with pytest.raises(TrustError, match="isn't the certificate"):
        enroll.load_authority(mixed)
    (other / files.KEY).chmod(0o644)
    with pytest.raises(TrustError, match="0644"):
        enroll.load_authority(other)


def test_a_mistyped_folder_is_left_alone(tmp_path: Path) -> None:
    for words in (("token",), ("list",), ("revoke", "d-0"), ("operator", "alice")):
        ran = run(words[0], tmp_path / "typo", *words[1:])
        assert isinstance(ran.exception, TrustError), words
    assert not (tmp_path / "typo").exists()


def test_members_are_changed_while_a_coordinator_serves(tmp_path: Path) -> None:
    good("init", tmp_path, *HOSTS)
    with fr.open_fleet(tmp_path) as fleet:  # it holds coordinator.lock, in another process
        command = [sys.executable, "-m", "sordino.cli.main", "ca", "token", str(tmp_path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        request, members = asked(ran.stdout.strip(), csr(new_key())), fr.Members(fleet)
        authority, now = enroll.load_authority(tmp_path), ca._now()
        name = enroll.enroll(members, authority, request, now_unix_ms=now).device_id
        good("revoke", tmp_path, name)
        device = members.device(name)
        assert device is not None
        assert device.revoked_at_unix_ms


# --- operators ---------------------------------------------------------------------------------


def shown_by(credentials: Path) -> dict[str, list[bytes]]:
    """What TLS tells of a connection with an operator's credentials."""
    pem = (credentials / operators.CREDENTIALS).read_bytes()
    return {
        "x509_pem_cert": [pem[pem.index(b"-----BEGIN CERT") :]],
        "ssl_tls_version": TLS13,
    }


def check(folder: Path, transport: dict[str, list[bytes]], late_ms: int = 0) -> str:
    """Who is let in, or the word of the refusal."""
    authority = files.read_certificate(folder / operators.AUTHORITY)
    now = ca._now() + late_ms
    try:
        return enroll.check_operator(transport, folder, authority, now_unix_ms=now)
    except ContractError as error:
        return error.reason


def test_an_operator_is_let_in_until_dismissed(tmp_path: Path) -> None:
    good("init", tmp_path, *HOSTS)
    first = shown_by(tmp_path / "operator")
    assert check(tmp_path, first) == "operator"
    good("operator", tmp_path, "alice", "--out", tmp_path / "hers")
    assert check(tmp_path, shown_by(tmp_path / "hers")) == "alice"
    assert "operator alice\t\tgood until" in good("list", tmp_path)
    good("operator", tmp_path, "operator")
    assert check(tmp_path, first) == "certificate-revoked"
    assert check(tmp_path, shown_by(tmp_path / "operator")) == "operator"
    good("revoke", tmp_path, "alice")
    assert check(tmp_path, shown_by(tmp_path / "hers")) == "certificate-revoked"
    assert "alice" not in good("list", tmp_path)
    assert isinstance(run("revoke", tmp_path, "../ca").exception, ContractError)
    assert (tmp_path / files.CERTIFICATE).exists()


def test_who_is_no_operator(tmp_path: Path) -> None:
    good("init", tmp_path / "a", *HOSTS)
    good("init", tmp_path / "b", *HOSTS)
    folder, now = tmp_path / "a", ca._now()
    ours = shown_by(folder / "operator")
    assert check(folder, shown_by(tmp_path / "b" / "operator")) == "wrong-authority"
    assert check(folder, ours | {"ssl_tls_version": [b"TLSv1.2"]}) == "old-tls"
    assert check(folder, {"ssl_tls_version": TLS13}) == "no-certificate"
    assert check(folder, ours, late_ms=366 * 24 * 60 * MINUTE) == "certificate-expired"
    key, fleet = new_key(), enroll.load_authority(folder)
    device = enroll.issue_device(
        fleet, key.public_key(), "d-1", now_unix_ms=now, lifetime_ms=60 * MINUTE
    )
    pem = device.public_bytes(Encoding.PEM)
    assert check(folder, ours | {"x509_pem_cert": [pem]}) == "wrong-authority"
    root = (folder / operators.AUTHORITY).read_bytes()
    assert check(folder, ours | {"x509_pem_cert": [root]}) == "not-permitted"
    # With the operators' key, but never issued here.
    authority = enroll.create_operators(folder, fleet.fleet, now_unix_ms=now)
    forged = issue_operator(authority, fleet.fleet, "operator", now_unix_ms=now).certificate
    pem = forged.public_bytes(Encoding.PEM)
    assert check(folder, ours | {"x509_pem_cert": [pem]}) == "certificate-revoked"


def test_names_and_folders_that_no_operator_gets(tmp_path: Path) -> None:
    good("init", tmp_path, *HOSTS)
    for name in ("d-12ab", "ab313188f9a21498", "Alice", "a/b", "..", "a" * 33, "ä"):
        assert isinstance(run("operator", tmp_path, name).exception, TrustError), name
    (tmp_path / "open").mkdir(mode=0o755)
    ran = run("operator", tmp_path, "alice", "--out", tmp_path / "open")
    assert isinstance(ran.exception, TrustError)
    assert [one.name for one in enroll.operators_in_force(tmp_path)] == ["operator"]
