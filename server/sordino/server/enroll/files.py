"""The authority's folder: what `sordino ca` writes and `sordino serve` reads.

| file | what | mode |
|---|---|---|
| `ca.key` | the authority's private key, encrypted if a passphrase was given | 0600 |
| `ca.pem` | its certificate, public | |
| `server.pem` | the coordinator's key, its certificate, the authority's: replaced at once | 0600 |
| `crl.pem` | the last list of revoked certificates, public | |

What concerns operators is in `operators`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from sordino.core import durable
from sordino.core.errors import TrustError, expected
from sordino.core.trust import (
    SECRET_MODE,
    fleet_of,
    is_issued_by,
    load_private_key,
    private_pem,
    public_pem,
    read_secret,
)
from sordino.server.enroll.authority import Authority, Issued, revocation_list

KEY: Final = "ca.key"
CERTIFICATE: Final = "ca.pem"
SERVER: Final = "server.pem"
REVOKED: Final = "crl.pem"
_INIT = "sordino ca init"


@dataclass(frozen=True, kw_only=True)
class ServerCertificate:
    """What a listener shows: a key, which isn't shown here, and its chain.

    Attributes:
        key_pem: PKCS#8.
        chain_pem: The coordinator's certificate, then the authority's, which a device that enrols
            looks for by its fingerprint.
        certificate: The first of the chain.
        authority: The last.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    certificate: x509.Certificate
    authority: x509.Certificate

    @property
    def hosts(self) -> list[str]:
        """The names and addresses that it is good for."""
        found = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return [str(name.value) for name in found.value]


def create_folder(folder: Path, authority: Authority, passphrase: bytes | None = None) -> None:
    """Write a new authority where there is none. The key is durable before the certificate.

    Raises:
        TrustError: There is one.
    """
    write_authority(folder / KEY, folder / CERTIFICATE, authority, passphrase)


def load_authority(folder: Path, passphrase: bytes | None = None) -> Authority:
    """Read the authority that `create_folder` wrote.

    Raises:
        TrustError: A file is missing, can be read by others, needs another passphrase, or isn't
            what it should be. What it holds isn't quoted.
    """
    authority = read_authority(folder / KEY, folder / CERTIFICATE, passphrase)
    fleet_of(authority.certificate)
    return authority


def write_authority(
    key_file: Path, certificate_file: Path, authority: Authority, passphrase: bytes | None
) -> None:
    """Write an authority's two files where there are none, the key first.

    Raises:
        TrustError: One is there.
    """
    for path in (key_file, certificate_file):
        if path.exists():
            todo = "choose another folder; overwriting it would cut off its fleet"
            raise TrustError(f"{path} is there already: {todo}")
    if passphrase is None:
        pem = private_pem(authority.key)
    else:
        lock = BestAvailableEncryption(passphrase)
        pem = authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    durable.write_whole(key_file, pem, mode=SECRET_MODE)
    durable.write_whole(certificate_file, public_pem(authority.certificate))


def read_authority(key_file: Path, certificate_file: Path, passphrase: bytes | None) -> Authority:
    """Read what `write_authority` wrote; errors as of `load_authority`."""
    key = load_private_key(read_secret(key_file, made_by=_INIT), key_file, passphrase)
    certificate = read_certificate(certificate_file)
    if certificate.public_key() != key.public_key():
        raise TrustError(f"{certificate_file} isn't the certificate of {key_file}")
    return Authority(certificate=certificate, key=key)


def read_certificate(path: Path) -> x509.Certificate:
    """The only certificate of a public file.

    Raises:
        TrustError: It can't be read, or doesn't hold one certificate.
    """
    found = _certificates(_read(path), path)
    if len(found) != 1:
        raise TrustError(expected(f"certificates in {path}", len(found), "= 1"))
    return found[0]


def write_server_certificate(folder: Path, authority: Authority, issued: Issued) -> None:
    """Replace the coordinator's certificate; a running one shows it from the next handshake on."""
    parts = (
        private_pem(issued.key),
        public_pem(issued.certificate),
        public_pem(authority.certificate),
    )
    durable.write_whole(folder / SERVER, b"".join(parts), mode=SECRET_MODE)


def read_server_certificate(folder: Path) -> ServerCertificate:
    """Read what `write_server_certificate` wrote.

    Raises:
        TrustError: As `load_authority`, or the parts don't belong together.
    """
    path = folder / SERVER
    data = read_secret(path, made_by=_INIT)
    key = load_private_key(data, path)
    chain = _certificates(data, path)
    if len(chain) != 2 or not is_issued_by(*chain) or chain[0].public_key() != key.public_key():
        raise TrustError(f"the parts of {path} don't belong together: sordino ca renew-server")
    return ServerCertificate(
        key_pem=private_pem(key),
        chain_pem=b"".join(map(public_pem, chain)),
        certificate=chain[0],
        authority=chain[1],
    )


def write_revocation_list(
    folder: Path, authority: Authority, revoked: Iterable[tuple[str, int]], *, now_unix_ms: int
) -> None:
    """Replace the list of revoked certificates; arguments as in `revocation_list`."""
    made = revocation_list(authority, revoked, now_unix_ms=now_unix_ms)
    durable.write_whole(folder / REVOKED, made.public_bytes(Encoding.PEM))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrustError(
            f"can't read {path} ({error.strerror}): sordino ca init makes it"
        ) from error


def _certificates(data: bytes, path: Path) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise TrustError(f"{path} holds no certificate") from error.with_traceback(None)
