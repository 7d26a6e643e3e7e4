"""Who a device is to its fleet: its key, its certificate, and the authority that it believes.

| file, in the device's state folder | what | mode |
|---|---|---|
| `identity.json` | key, certificates, authorities: in one file, to be replaced at once | 0600 |
| `identity.key.next` | a key that was asked a certificate for, until that is at hand | 0600 |

The key is made here and never leaves these files. It is durable before anything is asked with it,
so that after a crash the same request can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sordino.core import durable
from sordino.core.contract import MAX_CLOCK_SKEW_MS
from sordino.core.errors import ContractError, TrustError
from sordino.core.trust import (
    SECRET_MODE,
    decode_token,
    device_of,
    fleet_of,
    is_issued_by,
    load_private_key,
    not_after_ms,
    private_pem,
    public_pem,
    read_secret,
)
from sordino.protos.v1 import fleet_pb2

IDENTITY: Final = "identity.json"
NEXT_KEY: Final = "identity.key.next"
_JOIN = "sordino join"
_VERSION = 1
_FIELDS = {"version", "key", "certificates", "authorities", "renew_after_unix_ms"}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A device's standing in its fleet. The key isn't shown.

    Attributes:
        device_id: Its name, which its certificate carries.
        key: What signs its requests and opens its connections: ECDSA, P-256.
        certificates: Its own first, then those between it and an authority.
        authorities: Whom it believes.
        renew_after_unix_ms: From when on it asks for the next certificate.
    """

    device_id: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificates: tuple[x509.Certificate, ...]
    authorities: tuple[x509.Certificate, ...]
    renew_after_unix_ms: int

    @property
    def not_after_unix_ms(self) -> int:
        """The certificate's end."""
        return not_after_ms(self.certificates[0])

    def is_due(self, now_unix_ms: int) -> bool:
        """Whether it is time to renew, by the coordinator's clock as `Hello` told it."""
        return now_unix_ms >= self.renew_after_unix_ms


def enrolment_request(
    folder: Path, token: str, *, display_name: str = ""
) -> fleet_pb2.EnrollRequest:
    """Ask to become a member, with a key that is made now, or was for an earlier attempt.

    Args:
        folder: The device's state.
        token: As the operator gave it.
        display_name: A name for people.

    Raises:
        ContractError: ``bad-token``: it isn't one, which is seen before anything is sent.
        TrustError: The device is a member already.
    """
    decode_token(token)
    if (folder / IDENTITY).exists():
        raise TrustError(f"{folder / IDENTITY} is there: the device is enrolled already")
    request = _request(_next_key(folder))
    return fleet_pb2.EnrollRequest(
        token=token, certificate_request=request, display_name=display_name
    )


def accept_enrolment(folder: Path, token: str, response: fleet_pb2.EnrollResponse) -> Identity:
    """Hold the answer against the token and the key that asked, and keep it durably.

    Raises:
        ContractError: ``wrong-authority``, ``wrong-key`` or ``wrong-device``: nothing is kept.
    """
    authorities = _parse(response.authorities)
    pinned = decode_token(token).authority_sha256
    if pinned not in {one.fingerprint(hashes.SHA256()) for one in authorities}:
        raise ContractError("wrong-authority", "the answer leaves out the token's authority")
    return _accept(
        folder, response, authorities=authorities, key=_next_key(folder), name=response.device_id
    )


def renewal_request(folder: Path, present: Identity) -> fleet_pb2.RenewRequest:
    """Ask for the next certificate, with the next key."""
    if _next_key(folder).public_key() == present.key.public_key():
        (folder / NEXT_KEY).unlink()  # left by a crash after it had become the present one
    return fleet_pb2.RenewRequest(certificate_request=_request(_next_key(folder)))


def accept_renewal(folder: Path, present: Identity, response: fleet_pb2.RenewResponse) -> Identity:
    """Hold the next certificate against its request, and let it take the present one's place.

    The authorities may be others: it is the present one's coordinator that names them.

    Raises:
        ContractError: As `accept_enrolment`.
    """
    return _accept(
        folder,
        response,
        authorities=_parse(response.authorities),
        key=_next_key(folder),
        name=present.device_id,
    )


def load_identity(folder: Path, *, now_unix_ms: int) -> Identity:
    """Read what enrolment kept.

    Args:
        folder: The device's state.
        now_unix_ms: The device's own clock; it may be up to 10 minutes ahead before a certificate
            counts as ended. The coordinator's clock, which decides, has no such grace.

    Raises:
        TrustError: It isn't there, can be read by others, isn't whole, or has ended. What it holds
            isn't quoted.
    """
    path = folder / IDENTITY
    identity = _decode(read_secret(path, made_by=_JOIN), path)
    if now_unix_ms > identity.not_after_unix_ms + MAX_CLOCK_SKEW_MS:
        ended = identity.certificates[0].not_valid_after_utc.isoformat()
        raise TrustError(
            f"the certificate in {path} ended on {ended}, by this device's clock: set the clock, "
            "or move the file away and join with a new token"
        )
    return identity


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """TLS as this device, with a coordinator of its own authorities and nobody else."""
    return grpc.ssl_channel_credentials(
        root_certificates=b"".join(map(public_pem, identity.authorities)),
        private_key=private_pem(identity.key),
        certificate_chain=b"".join(map(public_pem, identity.certificates)),
    )


def enrolment_credentials(authority: x509.Certificate) -> grpc.ChannelCredentials:
    """TLS for `Enroll`, with the coordinator whose authority the token names."""
    return grpc.ssl_channel_credentials(root_certificates=public_pem(authority))


def _accept(
    folder: Path,
    response: fleet_pb2.EnrollResponse | fleet_pb2.RenewResponse,
    *,
    authorities: tuple[x509.Certificate, ...],
    key: ec.EllipticCurvePrivateKey,
    name: str,
) -> Identity:
    identity = Identity(
        device_id=name,
        key=key,
        certificates=_parse(response.certificates),
        authorities=authorities,
        renew_after_unix_ms=response.renew_after_unix_ms,
    )
    _check(identity)
    durable.write_whole(folder / IDENTITY, _encode(identity), mode=SECRET_MODE)
    (folder / NEXT_KEY).unlink()
    return identity


def _check(identity: Identity) -> None:
    """Whether the parts belong together.

    Raises:
        ContractError: ``wrong-authority``, ``wrong-key`` or ``wrong-device``.
    """
    links = all(is_issued_by(*pair) for pair in pairwise(identity.certificates))
    last = identity.certificates[-1]
    issuer = next((one for one in identity.authorities if is_issued_by(last, one)), None)
    if not links or issuer is None:
        raise ContractError("wrong-authority", "the certificate isn't from the fleet's authority")
    own = identity.certificates[0]
    if own.public_key() != identity.key.public_key():
        raise ContractError("wrong-key", "the certificate is for another key")
    found = device_of(own)
    if (found.device_id, found.fleet) != (identity.device_id, fleet_of(issuer)):
        raise ContractError("wrong-device", f"the certificate is for {found.device_id!r}")


def _encode(identity: Identity) -> str:
    fields = {
        "version": _VERSION,
        "key": private_pem(identity.key).decode(),
        "certificates": [public_pem(one).decode() for one in identity.certificates],
        "authorities": [public_pem(one).decode() for one in identity.authorities],
        "renew_after_unix_ms": identity.renew_after_unix_ms,
    }
    return json.dumps(fields, indent=1) + "\n"


def _decode(data: bytes, path: Path) -> Identity:
    try:
        fields = json.loads(data)
        if set(fields) != _FIELDS or fields["version"] != _VERSION:
            raise ValueError
        certificates = tuple(
            x509.load_pem_x509_certificate(p.encode()) for p in fields["certificates"]
        )
        identity = Identity(
            device_id=device_of(certificates[0]).device_id,
            key=load_private_key(fields["key"].encode(), path),
            certificates=certificates,
            authorities=tuple(
                x509.load_pem_x509_certificate(p.encode()) for p in fields["authorities"]
            ),
            renew_after_unix_ms=int(fields["renew_after_unix_ms"]),
        )
        _check(identity)
    except (ValueError, TypeError, LookupError, AttributeError, ContractError) as error:
        # whose text might quote the file
        todo = "restore it, or move it away and join with a new token"
        raise TrustError(f"{path} isn't a whole identity: {todo}") from error.with_traceback(None)
    return identity


def _parse(ders: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    try:
        parsed = tuple(x509.load_der_x509_certificate(der) for der in ders)
    except ValueError as error:
        raise ContractError("malformed", "the answer's certificates can't be read") from error
    if not parsed:
        raise ContractError("missing-field", "the answer holds no certificate")
    return parsed


def _next_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The key to ask a certificate for, durable before it is used."""
    path = folder / NEXT_KEY
    if path.exists():
        return load_private_key(read_secret(path, made_by=_JOIN), path)
    key = ec.generate_private_key(ec.SECP256R1())
    durable.write_whole(path, private_pem(key), mode=SECRET_MODE)
    return key


def _request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS #10 request that says nothing but the key: the coordinator decides the rest."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
