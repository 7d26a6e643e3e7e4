"""Becoming a member, staying one, and ceasing to be one.

Everything is checked before anything is written; a refused request has changed nothing. What is
written is one transaction of the store.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.serialization import Encoding

from sordino.core.errors import ContractError, TrustError, expected
from sordino.core.trust import (
    EnrolmentToken,
    decode_token,
    key_sha256,
    not_after_ms,
    p256,
    renew_after_ms,
)
from sordino.protos.v1 import fleet_pb2
from sordino.server.enroll.authority import DAY_MS, Authority, issue_device
from sordino.server.enroll.peers import Peer
from sordino.server.enroll.records import (
    CertificateRecord,
    DeviceRecord,
    MembershipStore,
    TokenRecord,
)

MAX_CERTIFICATES: Final = 8
"""How many certificates of a device may be good at once: a renewal, and some that went wrong."""
_MOST_LABEL = 64
_NOBODY = bytes(32)  # the verifier of no token


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Lifetimes.

    Attributes:
        certificate_days: Of a device's certificate. It is renewed after two thirds; a device that
            is away for the rest must enrol anew.
        token_ms: Of a token.
    """

    certificate_days: int = 30
    token_ms: int = DAY_MS

    def __post_init__(self) -> None:
        for field, most in (("certificate_days", 366), ("token_ms", 30 * DAY_MS)):
            if not 0 < getattr(self, field) <= most:
                raise TrustError(expected(field, getattr(self, field), f"in 1..{most}"))


def make_token(
    store: MembershipStore,
    authority: Authority,
    *,
    now_unix_ms: int,
    label: str = "",
    terms: Terms | None = None,
) -> EnrolmentToken:
    """Make a one-time token. What is returned is shown once; the store gets only its hash.

    Args:
        store: Where it is remembered.
        authority: Whose fingerprint it carries.
        now_unix_ms: The coordinator's clock.
        label: The only device name that it may be used under; empty: any.
        terms: Lifetimes.
    """
    if len(label.encode()) > _MOST_LABEL or not label.isprintable():
        required = f"printable, at most {_MOST_LABEL} bytes"
        raise TrustError(expected("label", label, required))
    token = EnrolmentToken.generate(authority.sha256)
    store.add_token(
        TokenRecord(
            token_id=token.token_id,
            verifier=token.verifier,
            label=label,
            expires_at_unix_ms=now_unix_ms + (terms or Terms()).token_ms,
        )
    )
    return token


def enroll(
    store: MembershipStore,
    authority: Authority,
    request: fleet_pb2.EnrollRequest,
    *,
    now_unix_ms: int,
    terms: Terms | None = None,
) -> fleet_pb2.EnrollResponse:
    """Make a device a member: its token is used up, its key certified.

    The same token with the same key gives the same answer until that certificate is used.

    Args:
        store: Where membership is kept.
        authority: Who certifies.
        request: Checked by the gate.
        now_unix_ms: The coordinator's clock.
        terms: Lifetimes.

    Raises:
        ContractError: ``bad-token`` (garbled, or never made here), ``wrong-authority`` (another
            fleet's), ``token-expired``, ``token-used``, ``not-permitted`` (another device's name),
            ``malformed``, ``bad-signature`` or ``wrong-key`` (of the certificate request).
    """
    token = _known_token(store, authority, request.token)
    key = read_request(request.certificate_request)
    name = key_sha256(key)
    if token.device_id:
        return _same_again(store, authority, token, name)
    if now_unix_ms >= token.expires_at_unix_ms:
        raise ContractError("token-expired", "the token's time is over: ask for another one")
    if token.label and request.display_name not in {"", token.label}:
        required = f"= {token.label!r}, for which the token was made"
        raise ContractError("not-permitted", expected("name", request.display_name, required))
    if store.certificates_of_key(name):
        raise ContractError("wrong-key", "the key was enrolled before: make a new one")
    device_id = f"d-{secrets.token_hex(8)}"
    device = DeviceRecord(
        device_id=device_id,
        display_name=request.display_name or token.label or device_id,
        enrolled_at_unix_ms=now_unix_ms,
    )
    certificate = _issue(authority, key, device_id, now_unix_ms, terms)
    if not store.admit(token.token_id, device, certificate):
        # Somebody was faster with the same token; if it was the device itself, this is its answer.
        return _same_again(store, authority, store.token(token.token_id) or token, name)
    return _enrolled(authority, certificate)


def renew(
    store: MembershipStore,
    authority: Authority,
    peer: Peer,
    request: fleet_pb2.RenewRequest,
    *,
    now_unix_ms: int,
    terms: Terms | None = None,
) -> fleet_pb2.RenewResponse:
    """Give a member its next certificate; the present one stays good until its end.

    A key whose newest certificate isn't due for renewal gets that one again.

    Args:
        store: Where membership is kept.
        authority: Who certifies.
        peer: Who asks, by the certificate of its connection.
        request: Checked by the gate.
        now_unix_ms: The coordinator's clock.
        terms: Lifetimes.

    Raises:
        ContractError: ``wrong-key`` (weak, or another device's), ``malformed`` or
            ``bad-signature`` (of the certificate request), ``quota-full``.
    """
    key = read_request(request.certificate_request)
    same_key = store.certificates_of_key(key_sha256(key))
    if any(certificate.device_id != peer.device_id for certificate in same_key):
        raise ContractError("wrong-key", "the key is another device's: make a new one")
    if same_key and now_unix_ms < renew_after_ms(_parsed(same_key[-1])):
        return _renewed(authority, same_key[-1])
    theirs = store.certificates_of_device(peer.device_id)
    if sum(now_unix_ms < one.not_after_unix_ms for one in theirs) >= MAX_CERTIFICATES:
        required = f"< {MAX_CERTIFICATES}"
        raise ContractError("quota-full", expected("certificates", MAX_CERTIFICATES, required))
    certificate = _issue(authority, key, peer.device_id, now_unix_ms, terms)
    store.add_certificate(certificate)
    return _renewed(authority, certificate)


def revoke(store: MembershipStore, device_id: str, *, now_unix_ms: int, because: str) -> None:
    """Revoke a device, from its next call on, whatever certificates it has. Final; idempotent.

    Raises:
        ContractError: ``unknown-device``.
    """
    if not store.revoke_device(device_id, now_unix_ms, because):
        raise ContractError("unknown-device", f"there is no device {device_id!r}")


def revoked_serials(store: MembershipStore) -> list[tuple[str, int]]:
    """What a list of revoked certificates holds: all of each revoked device."""
    return [
        (certificate.serial, device.revoked_at_unix_ms)
        for device in store.devices()
        if device.revoked_at_unix_ms
        for certificate in store.certificates_of_device(device.device_id)
    ]


def read_request(der: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a PKCS #10 request, whose holder signed it. Nothing else in it is looked at.

    Names, extensions and attributes that it asks for never reach a certificate.

    Raises:
        ContractError: ``malformed``, ``wrong-key`` (not P-256) or ``bad-signature`` (not by this
            key, or not with SHA-256).
    """
    try:
        request = x509.load_der_x509_csr(der)
    except ValueError as error:
        raise ContractError("malformed", "not a certificate request") from error
    try:
        key = p256(request.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ContractError("wrong-key", "the request's key can't be read") from error
    try:
        holds = request.is_signature_valid
        algorithm = request.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ContractError("bad-signature", "the request's signature can't be read") from error
    if not holds or not isinstance(algorithm, hashes.SHA256):
        raise ContractError("bad-signature", "the request isn't signed by its key with SHA-256")
    return key


def _known_token(store: MembershipStore, authority: Authority, text: str) -> TokenRecord:
    token = decode_token(text)
    if not bytes_eq(token.authority_sha256, authority.sha256):
        raise ContractError("wrong-authority", "the token was made for another fleet")
    # Looked up by a hash of the secret, then compared in constant time: the time that this takes
    # tells nothing of any other token.
    record = store.token(token.token_id)
    if not bytes_eq(token.verifier, record.verifier if record else _NOBODY) or record is None:
        raise ContractError("bad-token", "there is no such token: ask for another one")
    return record


def _same_again(
    store: MembershipStore, authority: Authority, token: TokenRecord, key: str
) -> fleet_pb2.EnrollResponse:
    """The answer that a used token gave, to the device that it admitted, if it didn't get it."""
    first = next(iter(store.certificates_of_device(token.device_id)), None)
    device = store.device(token.device_id)
    member = device is not None and not device.revoked_at_unix_ms
    if not member or first is None or first.used or first.key_sha256 != key:
        raise ContractError("token-used", "the token was used: ask for another one")
    return _enrolled(authority, first)


def _issue(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    device_id: str,
    now_unix_ms: int,
    terms: Terms | None,
) -> CertificateRecord:
    lifetime_ms = (terms or Terms()).certificate_days * DAY_MS
    issued = issue_device(
        authority, key, device_id, now_unix_ms=now_unix_ms, lifetime_ms=lifetime_ms
    )
    return CertificateRecord(
        serial=f"{issued.serial_number:x}",
        device_id=device_id,
        key_sha256=key_sha256(key),
        der=issued.public_bytes(Encoding.DER),
        not_after_unix_ms=not_after_ms(issued),
    )


def _enrolled(authority: Authority, record: CertificateRecord) -> fleet_pb2.EnrollResponse:
    return fleet_pb2.EnrollResponse(
        device_id=record.device_id,
        certificates=[record.der],
        authorities=[authority.certificate.public_bytes(Encoding.DER)],
        renew_after_unix_ms=renew_after_ms(_parsed(record)),
        not_after_unix_ms=record.not_after_unix_ms,
    )


def _renewed(authority: Authority, record: CertificateRecord) -> fleet_pb2.RenewResponse:
    return fleet_pb2.RenewResponse(
        certificates=[record.der],
        authorities=[authority.certificate.public_bytes(Encoding.DER)],
        renew_after_unix_ms=renew_after_ms(_parsed(record)),
        not_after_unix_ms=record.not_after_unix_ms,
    )


def _parsed(record: CertificateRecord) -> x509.Certificate:
    return x509.load_der_x509_certificate(record.der)
