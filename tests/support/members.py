"""A fleet in memory: a store of members, an authority, and devices that enrolled with it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sordino.client import identity
from sordino.core.trust import encode_token, public_pem
from sordino.protos.v1 import fleet_pb2
from sordino.server import enroll
from sordino.server.enroll import Authority, CertificateRecord, DeviceRecord, TokenRecord

NOW = 1_780_000_000_000
MINUTE = 60_000
DAY = 86_400_000
TLS13 = [b"TLSv1.3"]


@dataclass
class MemoryMembers:
    """`MembershipStore` without the durability. `writes` names each change, in order."""

    writes: list[str] = field(default_factory=list)
    _tokens: dict[str, TokenRecord] = field(default_factory=dict)
    _devices: dict[str, DeviceRecord] = field(default_factory=dict)
    _certificates: dict[str, CertificateRecord] = field(default_factory=dict)
    _nonces: dict[tuple[str, bytes], tuple[str, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_token(self, token: TokenRecord) -> None:
        self.writes.append("add_token")
        assert self._tokens.setdefault(token.token_id, token) is token

    def token(self, token_id: str) -> TokenRecord | None:
        return self._tokens.get(token_id)

    def tokens(self) -> Sequence[TokenRecord]:
        return [self._tokens[name] for name in sorted(self._tokens)]

    def withdraw_token(self, token_id: str, at_unix_ms: int) -> bool:
        token = self._tokens.get(token_id)
        if token is None or token.device_id:
            return False
        self.writes.append("withdraw_token")
        ends = min(token.expires_at_unix_ms, at_unix_ms)
        self._tokens[token_id] = replace(token, expires_at_unix_ms=ends)
        return True

    def admit(self, token_id: str, device: DeviceRecord, certificate: CertificateRecord) -> bool:
        with self._lock:
            token = self._tokens[token_id]
            if token.device_id:
                return False
            self.writes.append("admit")
            self._tokens[token_id] = replace(token, device_id=device.device_id)
            self._devices[device.device_id] = device
            self._certificates[certificate.serial] = certificate
            return True

    def device(self, device_id: str) -> DeviceRecord | None:
        return self._devices.get(device_id)

    def devices(self) -> Sequence[DeviceRecord]:
        return [self._devices[name] for name in sorted(self._devices)]

    def revoke_device(self, device_id: str, at_unix_ms: int, because: str) -> bool:
        device = self._devices.get(device_id)
        if device is None:
            return False
        if not device.revoked_at_unix_ms:
            self.writes.append("revoke_device")
            self._devices[device_id] = replace(
                device, revoked_at_unix_ms=at_unix_ms, revoked_because=because
            )
        return True

    def add_certificate(self, certificate: CertificateRecord) -> None:
        self.writes.append("add_certificate")
        assert self._certificates.setdefault(certificate.serial, certificate) is certificate

    def certificate(self, serial: str) -> CertificateRecord | None:
        return self._certificates.get(serial)

    def certificates_of_key(self, key_sha256: str) -> Sequence[CertificateRecord]:
        return [one for one in self._certificates.values() if one.key_sha256 == key_sha256]

    def certificates_of_device(self, device_id: str) -> Sequence[CertificateRecord]:
        return [one for one in self._certificates.values() if one.device_id == device_id]

    def mark_used(self, serial: str) -> None:
        self.writes.append("mark_used")
        self._certificates[serial] = replace(self._certificates[serial], used=True)

    def remember_nonce(
        self, device_id: str, nonce: bytes, statement_sha256: str, keep_until_unix_ms: int
    ) -> str | None:
        with self._lock:
            before = self._nonces.get((device_id, nonce))
            if before is None:
                self.writes.append("remember_nonce")
                self._nonces[device_id, nonce] = (statement_sha256, keep_until_unix_ms)
            return before[0] if before else None

    def forget_nonces(self, now_unix_ms: int) -> int:
        over = [name for name, (_, until) in self._nonces.items() if until < now_unix_ms]
        for name in over:
            del self._nonces[name]
        return len(over)


def new_fleet(now_unix_ms: int = NOW) -> tuple[Authority, MemoryMembers]:
    return enroll.new_authority(now_unix_ms=now_unix_ms), MemoryMembers()


def new_token(authority: Authority, store: MemoryMembers, now: int = NOW, **terms: str) -> str:
    return encode_token(enroll.make_token(store, authority, now_unix_ms=now, **terms))


def join(
    folder: Path, authority: Authority, store: MemoryMembers, now: int = NOW
) -> identity.Identity:
    """Enrol a device, without a network between."""
    token = new_token(authority, store, now)
    request = identity.enrolment_request(folder, token)
    response = enroll.enroll(store, authority, request, now_unix_ms=now)
    return identity.accept_enrolment(folder, token, response)


def transport(certificate: x509.Certificate | None) -> dict[str, list[bytes]]:
    """What gRPC tells of a connection over TLS 1.3 with this certificate."""
    shown = {"x509_pem_cert": [public_pem(certificate)]} if certificate else {}
    return {"ssl_tls_version": TLS13, **shown}


def csr(
    key: object, *extensions: x509.ExtensionType, algorithm: object | None = hashes.SHA256()
) -> bytes:
    """A certificate request that may ask for anything."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def asked(token: str, request: bytes, name: str = "") -> fleet_pb2.EnrollRequest:
    return fleet_pb2.EnrollRequest(token=token, certificate_request=request, display_name=name)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def forged(
    authority: Authority, made: x509.Certificate, key: ec.EllipticCurvePublicKey, uri: str
) -> x509.Certificate:
    """What somebody with the authority's key can make of a certificate: another key and name."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(made.subject)
        .issuer_name(made.issuer)
        .public_key(key)
        .serial_number(made.serial_number)
        .not_valid_before(made.not_valid_before_utc)
        .not_valid_after(made.not_valid_after_utc)
    )
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    for extension in made.extensions:
        ours = isinstance(extension.value, x509.SubjectAlternativeName)
        builder = builder.add_extension(names if ours else extension.value, extension.critical)
    return builder.sign(authority.key, hashes.SHA256())
