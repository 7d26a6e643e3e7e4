"""Whose connection a call came by, as of now.

TLS checks a certificate once, when a connection begins, and knows of no revocation. So each call's
certificate is looked at anew; a stolen device is out with its next call, not its next connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from sordino.core.errors import ContractError
from sordino.core.trust import device_of, fleet_of, is_issued_by, not_after_ms, p256
from sordino.server.enroll.records import MembershipStore


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A member in good standing.

    Attributes:
        device_id: Its name in the fleet.
        serial: Its certificate's number, hexadecimal.
        key: Its certificate's key: what must have signed its requests.
        used: Whether a signed call came with the certificate before.
    """

    device_id: str
    serial: str
    key: ec.EllipticCurvePublicKey
    used: bool


def check_peer(
    pem: bytes | None,
    *,
    authorities: Sequence[x509.Certificate],
    store: MembershipStore,
    now_unix_ms: int,
) -> Peer:
    """Hold a connection's certificate against the authority, the clock and the store.

    Args:
        pem: The certificate that the other side showed, as TLS hands it on; None: it showed none.
        authorities: Whose certificates are taken.
        store: Which of them were issued, and revoked.
        now_unix_ms: The coordinator's clock. There is no grace after a certificate's end: the
            device was told to renew by the same clock, long before.

    Raises:
        ContractError: ``no-certificate``, ``wrong-authority``, ``not-permitted`` (not for TLS
            clients), ``wrong-device`` (it names none, or not the one that it was issued to),
            ``certificate-expired``, ``unknown-device`` (the authority's signature, but not in the
            store) or ``certificate-revoked``.
    """
    certificate = read_peer(pem)
    issuer = next((one for one in authorities if is_issued_by(certificate, one)), None)
    if issuer is None:
        raise ContractError("wrong-authority", "the certificate isn't from this fleet's authority")
    if not _is_for_clients(certificate):
        raise ContractError("not-permitted", "the certificate isn't a device's")
    name = device_of(certificate)
    if name.fleet != fleet_of(issuer):
        raise ContractError("wrong-device", "the certificate names a device of another fleet")
    if not_after_ms(certificate) <= now_unix_ms:
        ended = certificate.not_valid_after_utc.isoformat()
        raise ContractError("certificate-expired", f"the certificate ended on {ended}: enrol anew")
    serial = f"{certificate.serial_number:x}"
    issued, device = store.certificate(serial), store.device(name.device_id)
    if issued is None or device is None or issued.der != certificate.public_bytes(Encoding.DER):
        raise ContractError("unknown-device", f"no such certificate was issued: {serial}")
    if issued.device_id != name.device_id:
        raise ContractError("wrong-device", "the certificate was issued to another device")
    if device.revoked_at_unix_ms:
        raise ContractError("certificate-revoked", f"{device.device_id} isn't a member any more")
    return Peer(
        device_id=device.device_id,
        serial=serial,
        key=p256(certificate.public_key()),
        used=issued.used,
    )


def read_peer(pem: bytes | None) -> x509.Certificate:
    """The certificate of a connection.

    Raises:
        ContractError: ``no-certificate``: there is none, or none that can be read.
    """
    if not pem:
        raise ContractError("no-certificate", "the connection has no client certificate")
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ContractError("no-certificate", "the client's certificate can't be read") from error


def _is_for_clients(certificate: x509.Certificate) -> bool:
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH] and not basic.ca
