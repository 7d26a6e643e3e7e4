"""`sordino ca`: a fleet's own certificate authorities, its members and its operators.

Members are kept in the coordinator's store, which is opened beside a coordinator that serves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sordino.core.errors import TrustError

if TYPE_CHECKING:
    from sordino.server.enroll import Authority, MembershipStore
    from sordino.server.fleet_rounds import Fleet

app = typer.Typer(help="A fleet's certificate authority and its members.", no_args_is_help=True)

FOLDER = typer.Argument(help="The fleet's folder: whoever reads it can admit devices.")
STORE = typer.Option(
    None,
    envvar="SORDINO_STORE",
    help="The store's postgresql+psycopg:// URL; none: the folder's own file.",
)
PASSPHRASE = typer.Option(None, help="A file whose first line encrypts the authority's key.")


@app.command()
def init(
    folder: Path = FOLDER,
    host: list[str] = typer.Option(
        ..., "--host", help="A name or address by which devices call the coordinator; repeatable."
    ),
    passphrase_file: Path | None = PASSPHRASE,
) -> None:
    """Make a fleet's authority, the coordinator's first certificate, and a first operator."""
    from sordino.server import enroll
    from sordino.server.enroll.operators import FIRST

    now = _now()
    authority = enroll.new_authority(now_unix_ms=now)
    issued = enroll.issue_server(authority, host, now_unix_ms=now)
    enroll.create_folder(folder, authority, read_passphrase(passphrase_file))
    enroll.write_server_certificate(folder, authority, issued)
    enroll.write_revocation_list(folder, authority, [], now_unix_ms=now)
    _admit(folder, FIRST, folder / FIRST, passphrase_file)
    typer.echo(f"fleet:       {authority.fleet}")
    typer.echo(f"fingerprint: {authority.sha256.hex()}")
    typer.echo(f"coordinator: {', '.join(host)}, until {issued.certificate.not_valid_after_utc:%F}")
    typer.echo(f"operator:    {folder / FIRST}")


@app.command()
def token(
    folder: Path = FOLDER,
    label: str = typer.Option("", help="The only device name that it may be used under."),
    hours: int = typer.Option(24, min=1, max=720, help="How long it is good."),
    passphrase_file: Path | None = PASSPHRASE,
    store: str | None = STORE,
) -> None:
    """Print a one-time token for one device. It isn't shown again: only its hash is kept."""
    from sordino.core.trust import encode_token
    from sordino.server import enroll

    authority = _authority(folder, passphrase_file)
    with members(folder, store) as kept:
        made = enroll.make_token(
            kept,
            authority,
            now_unix_ms=_now(),
            label=label,
            terms=enroll.Terms(token_ms=hours * 3_600_000),
        )
    typer.echo(encode_token(made))
    typer.echo(f"token {made.token_id}, good for one device and {hours} h", err=True)


@app.command(name="list")
def list_(folder: Path = FOLDER, store: str | None = STORE) -> None:
    """List devices with the ends of their certificates, tokens, and operators."""
    from sordino.server import enroll

    now = _now()
    with members(folder, store) as kept:
        for device in kept.devices():
            held = kept.certificates_of_device(device.device_id)
            state = _standing([one.not_after_unix_ms for one in held], now)
            if device.revoked_at_unix_ms:
                state = f"revoked on {_day(device.revoked_at_unix_ms)}: {device.revoked_because}"
            typer.echo(f"{device.device_id}\t{device.display_name}\t{state}")
        for one in kept.tokens():
            state = f"used by {one.device_id}" if one.device_id else "unused"
            if not one.device_id and one.expires_at_unix_ms <= now:
                state = "expired"
            typer.echo(f"token {one.token_id}\t{one.label}\t{state}")
    for operator in enroll.operators_in_force(folder):
        typer.echo(f"operator {operator.name}\t\t{_standing([operator.not_after_unix_ms], now)}")


@app.command()
def revoke(
    folder: Path = FOLDER,
    name: str = typer.Argument(help="A device's name, an unused token's, or an operator's."),
    because: str = typer.Option("revoked by the operator", help="For people and the log."),
    passphrase_file: Path | None = PASSPHRASE,
    store: str | None = STORE,
) -> None:
    """Revoke a device or an operator from the next call on, or withdraw an unused token."""
    from sordino.server import enroll
    from sordino.server.enroll.membership import revoked_serials

    if enroll.dismiss_operator(folder, name):
        typer.echo(f"operator {name} is let in no more")
        return
    now = _now()
    with members(folder, store) as kept:
        if kept.token(name) is not None:
            if not kept.withdraw_token(name, now):
                raise TrustError(f"token {name} was used: revoke its device")
            typer.echo(f"token {name} admits nobody any more")
            return
        authority = _authority(folder, passphrase_file)
        enroll.revoke(kept, name, now_unix_ms=now, because=because)
        enroll.write_revocation_list(folder, authority, revoked_serials(kept), now_unix_ms=now)
    typer.echo(f"{name} is revoked")


@app.command()
def operator(
    folder: Path = FOLDER,
    name: str = typer.Argument(help="The operator's, or a program's of theirs."),
    out: Path | None = typer.Option(
        None, help="Folder for the key and certificate; none: operator-NAME in the fleet's folder."
    ),
    passphrase_file: Path | None = PASSPHRASE,
) -> None:
    """Issue an operator's key and certificate; an earlier one of the same name ends with it."""
    from sordino.server.enroll.operators import FIRST

    target = out or folder / (FIRST if name == FIRST else f"{FIRST}-{name}")
    ends = _admit(folder, name, target, passphrase_file)
    typer.echo(f"operator:    {target}, until {_day(ends)}")


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


@contextmanager
def members(folder: Path, store: str | None) -> Iterator[MembershipStore]:
    """Where the coordinator of this folder keeps its members; errors as of `opened`."""
    from sordino.server.fleet_rounds import Members

    with opened(folder, store) as fleet:
        yield Members(fleet)


@contextmanager
def opened(folder: Path, store: str | None) -> Iterator[Fleet]:
    """The store of this folder's coordinator, whether that serves or not.

    Raises:
        TrustError: The folder is no fleet's.
        StoreError: The store can't be used.
    """
    from sordino.server.enroll.files import CERTIFICATE, read_certificate
    from sordino.server.fleet_rounds import open_beside

    read_certificate(folder / CERTIFICATE)  # a folder that was mistyped isn't made a fleet's
    with open_beside(folder, url=store) as fleet:
        yield fleet


def _admit(folder: Path, name: str, out: Path, passphrase_file: Path | None) -> int:
    """Issue an operator's certificate, and give its end."""
    from sordino.server import enroll

    now, passphrase = _now(), read_passphrase(passphrase_file)
    fleet = enroll.load_authority(folder, passphrase).fleet
    operators = enroll.create_operators(folder, fleet, passphrase, now_unix_ms=now)
    made = enroll.admit_operator(folder, operators, fleet, name, out, now_unix_ms=now)
    return made.not_after_unix_ms


def _authority(folder: Path, passphrase_file: Path | None) -> Authority:
    from sordino.server.enroll import load_authority

    return load_authority(folder, read_passphrase(passphrase_file))


def read_passphrase(file: Path | None) -> bytes | None:
    """The first line of a file; None without one.

    Raises:
        TrustError: It can't be read, or is empty.
    """
    if file is None:
        return None
    try:
        first = file.read_bytes().partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise TrustError(f"can't read {file}: {error.strerror}") from error
    if not first:
        raise TrustError(f"the first line of {file} is empty: write the passphrase there")
    return first


def _standing(ends: list[int], now: int) -> str:
    """How whoever holds certificates with these ends stands."""
    if not ends:
        return "without a certificate"
    word = "ended on" if max(ends) <= now else "good until"
    return f"{word} {_day(max(ends))}"


def _now() -> int:
    return time.time_ns() // 1_000_000


def _day(moment: int) -> str:
    from sordino.core.trust import from_unix_ms

    return f"{from_unix_ms(moment):%F}"
