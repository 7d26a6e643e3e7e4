"""Operators: an authority of their own beside the fleet's, and who of them is in force.

| in the fleet's folder | what | mode |
|---|---|---|
| `operators.key`, `operators.pem` | their authority, as `ca.key` and `ca.pem` | as theirs |
| `operators/NAME.pem` | the one certificate of an operator that the coordinator takes | public |

| in an operator's folder (0700) | what | mode |
|---|---|---|
| `operator.pem` | key and certificate | 0600 |
| `fleet.pem` | the fleet's authority: whom to believe to be the coordinator | public |

A certificate opens the service only while its very bytes are in `operators/`: issuing another one
under the same name, or deleting the file, ends it with the next call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sordino.core import durable
from sordino.core.errors import ContractError, TrustError
from sordino.core.trust import (
    SECRET_MODE,
    is_issued_by,
    not_after_ms,
    operator_of,
    operators_of,
    private_pem,
    public_pem,
)
from sordino.server.enroll.authority import Authority, issue_operator, new_operators
from sordino.server.enroll.calls import TLS13, Transport
from sordino.server.enroll.files import (
    CERTIFICATE,
    read_authority,
    read_certificate,
    write_authority,
)
from sordino.server.enroll.peers import read_peer

KEY: Final = "operators.key"
AUTHORITY: Final = "operators.pem"
IN_FORCE: Final = "operators"
CREDENTIALS: Final = "operator.pem"
FLEET: Final = "fleet.pem"
FIRST: Final = "operator"
"""Name of the operator that `sordino ca init` makes, and of the folder of its credentials."""


@dataclass(frozen=True, kw_only=True)
class OperatorRecord:
    """An operator in force."""

    name: str
    not_after_unix_ms: int


def create_operators(
    folder: Path, fleet: str, passphrase: bytes | None = None, *, now_unix_ms: int
) -> Authority:
    """The operators' authority of a fleet's folder, made if there is none yet.

    Raises:
        TrustError: As `load_authority`, or its files are another fleet's.
    """
    paths = folder / KEY, folder / AUTHORITY
    if not any(path.exists() for path in paths):
        write_authority(*paths, new_operators(fleet, now_unix_ms=now_unix_ms), passphrase)
    authority = read_authority(*paths, passphrase)
    if authority.certificate.subject.rfc4514_string() != f"CN={operators_of(fleet)}":
        raise TrustError(f"{folder / AUTHORITY} isn't the operators' authority of {fleet}")
    return authority


def admit_operator(
    folder: Path, operators: Authority, fleet: str, name: str, out: Path, *, now_unix_ms: int
) -> OperatorRecord:
    """Issue an operator's certificate; one that was issued under the name before ends with it.

    Args:
        folder: The fleet's.
        operators: Who signs.
        fleet: The fleet's name.
        name: The operator's.
        out: The folder for the credentials, for its owner only; made if need be.
        now_unix_ms: The clock.

    Raises:
        TrustError: An operator can't be called so, or others may read `out`.
    """
    issued = issue_operator(operators, fleet, name, now_unix_ms=now_unix_ms)
    durable.make_folder(out.parent)
    out.mkdir(mode=0o700, exist_ok=True)
    if out.stat().st_mode & 0o077:
        raise TrustError(f"expected mode 0700 of {out}: chmod 700 it, or choose another folder")
    pem = private_pem(issued.key) + public_pem(issued.certificate)
    durable.write_whole(out / CREDENTIALS, pem, mode=SECRET_MODE)
    durable.write_whole(out / FLEET, (folder / CERTIFICATE).read_bytes())
    durable.write_whole(_in_force(folder, name), public_pem(issued.certificate))
    return OperatorRecord(name=name, not_after_unix_ms=not_after_ms(issued.certificate))


def operators_in_force(folder: Path) -> list[OperatorRecord]:
    """The operators whose certificates the coordinator takes, by name."""
    return [
        OperatorRecord(name=path.stem, not_after_unix_ms=not_after_ms(read_certificate(path)))
        for path in sorted((folder / IN_FORCE).glob("*.pem"))
    ]


def dismiss_operator(folder: Path, name: str) -> bool:
    """Take no call of an operator any more. False: there is none of that name in force."""
    path = _in_force(folder, name)
    if path.parent != folder / IN_FORCE or not path.exists():
        return False
    path.unlink()
    durable.sync_folder(path.parent)
    return True


def check_operator(
    transport: Transport, folder: Path, authority: x509.Certificate, *, now_unix_ms: int
) -> str:
    """Whose connection a call came by, as of now.

    Args:
        transport: What TLS knows of it.
        folder: The fleet's.
        authority: The operators'.
        now_unix_ms: The coordinator's clock.

    Returns:
        The operator's name.

    Raises:
        ContractError: ``old-tls``, ``no-certificate``, ``wrong-authority``, ``not-permitted``,
            ``certificate-expired`` or ``certificate-revoked``.
    """
    if tuple(transport.get("ssl_tls_version", ())) != TLS13:
        raise ContractError("old-tls", "expected TLS 1.3")
    certificate = read_peer(next(iter(transport.get("x509_pem_cert", ())), None))
    if not is_issued_by(certificate, authority):
        raise ContractError("wrong-authority", "the certificate isn't from the operators'")
    name = operator_of(certificate)
    if not_after_ms(certificate) <= now_unix_ms:
        raise ContractError("certificate-expired", f"issue another: sordino ca operator {name}")
    try:
        taken = read_certificate(_in_force(folder, name))
    except TrustError:
        taken = None
    der = certificate.public_bytes(Encoding.DER)
    if taken is None or taken.public_bytes(Encoding.DER) != der:
        raise ContractError("certificate-revoked", f"this certificate of {name} isn't in force")
    return name


def _in_force(folder: Path, name: str) -> Path:
    return folder / IN_FORCE / f"{name}.pem"
