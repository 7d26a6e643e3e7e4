"""`sordino ca`: a fleet's own certificate authority and its members."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sordino.core.errors import TrustError

if TYPE_CHECKING:
    from sordino.server.enroll import Authority, MembershipStore

app = typer.Typer(help="A fleet's certificate authority and its members.", no_args_is_help=True)

FOLDER = typer.Argument(help="The authority's folder: whoever reads it can admit devices.")
PASSPHRASE = typer.Option(None, help="A file whose first line encrypts the authority's key.")


@app.command()
def init(
    folder: Path = FOLDER,
    host: list[str] = typer.Option(
        ..., "--host", help="A name or address by which devices call the coordinator; repeatable."
    ),
    passphrase_file: Path | None = PASSPHRASE,
) -> None:
    """Make a fleet's authority, and the coordinator's first certificate."""
    from sordino.server import enroll

    now = _now()
    authority = enroll.new_authority(now_unix_ms=now)
    issued = enroll.issue_server(authority, host, now_unix_ms=now)
    enroll.create_folder(folder, authority, _passphrase(passphrase_file))
    enroll.write_server_certificate(folder, authority, issued)
    enroll.write_revocation_list(folder, authority, [], now_unix_ms=now)
    typer.echo(f"fleet:       {authority.fleet}")
    typer.echo(f"fingerprint: {authority.sha256.hex()}")
    typer.echo(f"coordinator: {', '.join(host)}, until {issued.certificate.not_valid_after_utc:%F}")


@app.command()
def token(
    folder: Path = FOLDER,
    label: str = typer.Option("", help="The only device name that it may be used under."),
    hours: int = typer.Option(24, min=1, max=720, help="How long it is good."),
    passphrase_file: Path | None = PASSPHRASE,
) -> None:
    """Print a one-time token for one device. It isn't shown again: only its hash is kept."""
    from sordino.core.trust import encode_token
    from sordino.server import enroll

    made = enroll.make_token(
        members(folder),
        _authority(folder, passphrase_file),
        now_unix_ms=_now(),
        label=label,
        terms=enroll.Terms(token_ms=hours * 3_600_000),
    )
    typer.echo(encode_token(made))
    typer.echo(f"token {made.token_id}, good for one device and {hours} h", err=True)


@app.command(name="list")
def list_(folder: Path = FOLDER) -> None:
    """List devices with the ends of their certificates, and tokens."""
    store, now = members(folder), _now()
    for device in store.devices():
        ends = [one.not_after_unix_ms for one in store.certificates_of_device(device.device_id)]
        state = f"good until {_day(max(ends))}" if ends else "without a certificate"
        if device.revoked_at_unix_ms:
            state = f"revoked on {_day(device.revoked_at_unix_ms)}: {device.revoked_because}"
        elif ends and max(ends) <= now:
            state = f"ended on {_day(max(ends))}"
        typer.echo(f"{device.device_id}\t{device.display_name}\t{state}")
    for one in store.tokens():
        state = f"used by {one.device_id}" if one.device_id else "unused"
        if not one.device_id and one.expires_at_unix_ms <= now:
            state = "expired"
        typer.echo(f"token {one.token_id}\t{one.label}\t{state}")


@app.command()
def revoke(
    folder: Path = FOLDER,
    name: str = typer.Argument(help="A device's name, or an unused token's."),
    because: str = typer.Option("revoked by the operator", help="For people and the log."),
    passphrase_file: Path | None = PASSPHRASE,
) -> None:
    """Revoke a device, from its next call on, for good; or withdraw an unused token."""
    from sordino.server import enroll
    from sordino.server.enroll.membership import revoked_serials

    store, now = members(folder), _now()
    if store.token(name) is not None:
        if not store.withdraw_token(name, now):
            raise TrustError(f"token {name} was used: revoke its device")
        typer.echo(f"token {name} admits nobody any more")
        return
    authority = _authority(folder, passphrase_file)
    enroll.revoke(store, name, now_unix_ms=now, because=because)
    enroll.write_revocation_list(folder, authority, revoked_serials(store), now_unix_ms=now)
    typer.echo(f"{name} is revoked")


@app.command()
def renew_server(
    folder: Path = FOLDER,
    host: list[str] = typer.Option([], "--host", help="Other names than now; repeatable."),
    passphrase_file: Path | None = PASSPHRASE,
) -> None:
    """Give the coordinator a new key and certificate. A running one takes them up by itself."""
    from sordino.server import enroll

    authority = _authority(folder, passphrase_file)
    hosts = host or enroll.read_server_certificate(folder).hosts
    issued = enroll.issue_server(authority, hosts, now_unix_ms=_now())
    enroll.write_server_certificate(folder, authority, issued)
    ends = issued.certificate.not_valid_after_utc
    typer.echo(f"coordinator: {', '.join(hosts)}, until {ends:%F}")


def members(folder: Path) -> MembershipStore:
    """Where the coordinator of this authority keeps its members.

    Raises:
        TrustError: Always, as yet: the coordinator's durable store isn't joined to this.
    """
    raise TrustError(
        f"can't open the members of {folder}: this version of the coordinator keeps none yet"
    )


def _authority(folder: Path, passphrase_file: Path | None) -> Authority:
    from sordino.server.enroll import load_authority

    return load_authority(folder, _passphrase(passphrase_file))


def _passphrase(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        first = file.read_bytes().partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise TrustError(f"can't read {file}: {error.strerror}") from error
    if not first:
        raise TrustError(f"the first line of {file} is empty: write the passphrase there")
    return first


def _now() -> int:
    return time.time_ns() // 1_000_000


def _day(moment: int) -> str:
    from sordino.core.trust import from_unix_ms

    return f"{from_unix_ms(moment):%F}"
