"""The fleet's own certificate authority: one P-256 key, and all that it ever signs.

It signs certificates of devices, of the coordinator, and lists of revoked ones. What it can sign is
limited in its own certificate too: no further authority (path length 0), and of URIs only those
of its own fleet. Operators have an authority beside it, which signs their certificates alone. What
a certificate says is decided here; a request gives nothing but its key.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sordino.core.contract import MAX_CLOCK_SKEW_MS
from sordino.core.errors import TrustError, expected
from sordino.core.trust import device_uri, fleet_of, from_unix_ms, operator_uri, operators_of

DAY_MS: Final = 86_400_000
AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 90
OPERATOR_DAYS: Final = 365
LIST_DAYS: Final = 7
"""How long a revocation list calls itself current. The coordinator itself needs none."""

_SHA256 = hashes.SHA256()


@dataclass(frozen=True, kw_only=True)
class Authority:
    """The authority's certificate and its private key, which isn't shown.

    Attributes:
        certificate: Self-signed.
        key: ECDSA, P-256.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def fleet(self) -> str:
        """The fleet's name, which its certificate carries; operators' have another."""
        return fleet_of(self.certificate)

    @property
    def sha256(self) -> bytes:
        """The fingerprint that tokens carry: SHA-256 of the certificate in DER."""
        return self.certificate.fingerprint(_SHA256)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate with its private key, which isn't shown."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def new_authority(*, now_unix_ms: int, days: int = AUTHORITY_DAYS) -> Authority:
    """Make a fleet's authority, with a key from the operating system's randomness."""
    return _self_signed(f"fleet-{secrets.token_hex(12)}.invalid", now_unix_ms, days)


def new_operators(fleet: str, *, now_unix_ms: int, days: int = AUTHORITY_DAYS) -> Authority:
    """Make the authority of a fleet's operators: it can't sign a device's certificate."""
    return _self_signed(operators_of(fleet), now_unix_ms, days)


def issue_device(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    device_id: str,
    *,
    now_unix_ms: int,
    lifetime_ms: int,
) -> x509.Certificate:
    """Certify a device's key: for TLS clients, under one name, and for nothing else.

    Args:
        authority: Who signs.
        key: The device's, P-256.
        device_id: Its name in the fleet.
        now_unix_ms: The coordinator's clock. The certificate begins 10 minutes before, for clocks
            that are behind.
        lifetime_ms: From now to its end, cut to the authority's own.
    """
    uri = x509.UniformResourceIdentifier(device_uri(authority.fleet, device_id))
    return _leaf(
        authority,
        _begun(key, device_id, now_unix_ms, lifetime_ms, authority),
        x509.SubjectAlternativeName([uri]),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )


def issue_operator(
    operators: Authority, fleet: str, name: str, *, now_unix_ms: int, days: int = OPERATOR_DAYS
) -> Issued:
    """Make a key and a certificate for an operator, or a program of theirs.

    Args:
        operators: The operators' authority.
        fleet: Of which fleet.
        name: The operator's.
        now_unix_ms: As in `issue_device`.
        days: Its life.

    Raises:
        TrustError: An operator can't be called so.
    """
    uri = x509.UniformResourceIdentifier(operator_uri(fleet, name))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _leaf(
        operators,
        _begun(key.public_key(), name, now_unix_ms, days * DAY_MS, operators),
        x509.SubjectAlternativeName([uri]),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    return Issued(certificate=certificate, key=key)


def issue_server(
    authority: Authority, hosts: Sequence[str], *, now_unix_ms: int, days: int = SERVER_DAYS
) -> Issued:
    """Make a key and a certificate for the coordinator.

    Args:
        authority: Who signs.
        hosts: The names and addresses by which devices call it.
        now_unix_ms: As in `issue_device`.
        days: Its life.

    Raises:
        TrustError: No host, or one that isn't a name or an address.
    """
    if not hosts:
        todo = "name each name and address by which devices call the coordinator"
        raise TrustError(expected("hosts", list(hosts), "at least one", todo))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _leaf(
        authority,
        _begun(key.public_key(), "coordinator", now_unix_ms, days * DAY_MS, authority),
        x509.SubjectAlternativeName([_host(host) for host in hosts]),
        ExtendedKeyUsageOID.SERVER_AUTH,
    )
    return Issued(certificate=certificate, key=key)


def revocation_list(
    authority: Authority, revoked: Iterable[tuple[str, int]], *, now_unix_ms: int
) -> x509.CertificateRevocationList:
    """Sign a list of revoked certificates, for a TLS proxy or an auditor.

    The coordinator doesn't read it: it looks each call's certificate up in its store.

    Args:
        authority: Who signs.
        revoked: Serials, hexadecimal, with the moment of each.
        now_unix_ms: The coordinator's clock.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(from_unix_ms(now_unix_ms))
        .next_update(from_unix_ms(now_unix_ms + LIST_DAYS * DAY_MS))
        .add_extension(x509.CRLNumber(now_unix_ms), critical=False)
        .add_extension(_issuer_key(authority), critical=False)
    )
    for serial, at_unix_ms in sorted(revoked):
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16))
        entry = entry.revocation_date(from_unix_ms(at_unix_ms))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, _SHA256)


def _self_signed(name: str, now_unix_ms: int, days: int) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    only_own = x509.NameConstraints([x509.UniformResourceIdentifier(name)], None)
    certificate = (
        _begun(key.public_key(), name, now_unix_ms, days * DAY_MS)
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(only_own, critical=True)
        .sign(key, _SHA256)
    )
    return Authority(certificate=certificate, key=key)


def _begun(
    key: ec.EllipticCurvePublicKey,
    name: str,
    now_unix_ms: int,
    lifetime_ms: int,
    authority: Authority | None = None,
) -> x509.CertificateBuilder:
    begin = from_unix_ms(now_unix_ms - MAX_CLOCK_SKEW_MS)
    end = from_unix_ms(now_unix_ms + lifetime_ms)
    if authority is not None:
        begin = max(begin, authority.certificate.not_valid_before_utc)
        end = min(end, authority.certificate.not_valid_after_utc)
        if end - begin < timedelta(milliseconds=2 * MAX_CLOCK_SKEW_MS):
            good = authority.certificate
            required = f"{good.not_valid_before_utc:%F} to {good.not_valid_after_utc:%F}"
            raise TrustError(
                f"the fleet's authority is good from {required}, and now is "
                f"{from_unix_ms(now_unix_ms):%F}: set the clock, or make a new fleet"
            )
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _leaf(
    authority: Authority,
    begun: x509.CertificateBuilder,
    names: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
) -> x509.Certificate:
    return (
        begun.issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        .add_extension(names, critical=False)
        .add_extension(_issuer_key(authority), critical=False)
        .sign(authority.key, _SHA256)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_key(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    good = host.isascii() and len(host) <= 253 and all(_is_label(label) for label in labels)
    if not good or labels[-1].isdigit():
        raise TrustError(expected("host", host, "a DNS name or an IP address, without a port"))
    return x509.DNSName(".".join(labels))


def _is_label(label: str) -> bool:
    inner = label.replace("-", "")
    return (
        0 < len(label) < 64 and inner.isalnum() and not label.startswith("-") and label[-1] != "-"
    )
