"""How this project reads X.509: names of devices and fleets, keys, moments.

Keys are ECDSA on P-256 throughout: gRPC's TLS refuses Ed25519 client certificates, and the key
stores of phones hold P-256.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from sordino.core.errors import ContractError, TrustError, expected

LIFETIME_BEFORE_RENEWAL: Final = Fraction(2, 3)
"""A certificate is renewed from this part of its life on: the rest is for devices that are away."""

_FLEET = r"fleet-[0-9a-f]{24}\.invalid"
_DEVICE = r"[a-z0-9][a-z0-9-]{0,63}"
_URI = re.compile(rf"sordino://({_FLEET})/device/({_DEVICE})")
_OPERATORS = r"operators-[0-9a-f]{24}\.invalid"
_OPERATOR = r"[a-z][a-z0-9-]{0,31}"
_OPERATOR_URI = re.compile(rf"sordino://({_OPERATORS})/operator/({_OPERATOR})")
_LIKE_OTHERS = re.compile(r"d-[0-9a-f]+|[0-9a-f]{16}")  # as a device or a token is called


@dataclass(frozen=True, kw_only=True)
class DeviceName:
    """Whom a certificate names.

    Attributes:
        fleet: The authority's own name, a host that can't exist (RFC 2606).
        device_id: The device's name in that fleet.
    """

    fleet: str
    device_id: str


def device_uri(fleet: str, device_id: str) -> str:
    """The subject alternative name of a device's certificate.

    Its host is the fleet, so that a name constraint of the authority holds it (RFC 5280, 4.2.1.10).

    >>> device_uri("fleet-0123456789abcdef01234567.invalid", "d-1")
    'sordino://fleet-0123456789abcdef01234567.invalid/device/d-1'
    """
    uri = f"sordino://{fleet}/device/{device_id}"
    if not _URI.fullmatch(uri):
        required = f"like {_DEVICE} in a fleet like {_FLEET}"
        raise ContractError("bad-value", expected("device", uri, required))
    return uri


def device_of(certificate: x509.Certificate) -> DeviceName:
    """Whom a device's certificate names, by its only alternative name.

    Raises:
        ContractError: ``wrong-device``: it names no device, or anything besides one.
    """
    named = _URI.fullmatch(_only_uri(certificate))
    if named is None:
        raise ContractError("wrong-device", "the certificate names something else than one device")
    return DeviceName(fleet=named[1], device_id=named[2])


def operators_of(fleet: str) -> str:
    """The name of a fleet's operators' authority, which isn't the devices' own.

    >>> operators_of("fleet-0123456789abcdef01234567.invalid")
    'operators-0123456789abcdef01234567.invalid'
    """
    return f"operators-{fleet.removeprefix('fleet-')}"


def operator_uri(fleet: str, name: str) -> str:
    """The subject alternative name of an operator's certificate.

    >>> operator_uri("fleet-0123456789abcdef01234567.invalid", "alice")
    'sordino://operators-0123456789abcdef01234567.invalid/operator/alice'

    Raises:
        TrustError: An operator can't be called so.
    """
    uri = f"sordino://{operators_of(fleet)}/operator/{name}"
    if not _OPERATOR_URI.fullmatch(uri) or _LIKE_OTHERS.fullmatch(name):
        required = f"like {_OPERATOR}, and not as devices and tokens are called"
        raise TrustError(expected("operator", name, required))
    return uri


def operator_of(certificate: x509.Certificate) -> str:
    """Whom an operator's certificate names, by its only alternative name.

    Raises:
        ContractError: ``not-permitted``: it names no operator, or anything besides one.
    """
    named = _OPERATOR_URI.fullmatch(_only_uri(certificate))
    if named is None:
        raise ContractError("not-permitted", "the certificate names no operator")
    return named[2]


def fleet_of(authority: x509.Certificate) -> str:
    """The fleet's name: the common name of its authority.

    Raises:
        ContractError: ``wrong-authority``: it isn't an authority of a fleet.
    """
    names = authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    fleet = str(names[0].value) if len(names) == 1 else ""
    if not re.fullmatch(_FLEET, fleet):
        raise ContractError("wrong-authority", expected("fleet", fleet, f"like {_FLEET}"))
    return fleet


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority signed a certificate: issuer, signature, and that it may sign at all."""
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return constraints.ca


def p256(key: object) -> ec.EllipticCurvePublicKey:
    """A public key, if it is one that this project uses.

    Raises:
        ContractError: ``wrong-key``: another algorithm, or another curve.
    """
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ContractError("wrong-key", expected("key", curve, "ECDSA on P-256"))
    return key


def key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """A public key's name: SHA-256 of its SubjectPublicKeyInfo, 64 hexadecimal digits."""
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def public_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def unix_ms(moment: datetime) -> int:
    """A moment with its time zone as milliseconds since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def from_unix_ms(moment: int) -> datetime:
    """A moment in UTC, cut to the second, which is all that a certificate can say."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=moment // 1000)


def not_after_ms(certificate: x509.Certificate) -> int:
    """When a certificate ends."""
    return unix_ms(certificate.not_valid_after_utc)


def renew_after_ms(certificate: x509.Certificate) -> int:
    """From when on a certificate is to be renewed."""
    begin, end = unix_ms(certificate.not_valid_before_utc), not_after_ms(certificate)
    return begin + int((end - begin) * LIFETIME_BEFORE_RENEWAL)


def _only_uri(certificate: x509.Certificate) -> str:
    """The certificate's alternative name, if it is one URI; else nothing."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == len(list(names)) == 1 else ""
