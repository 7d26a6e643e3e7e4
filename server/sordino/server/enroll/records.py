"""What the coordinator remembers of tokens, devices, certificates and nonces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """A one-time token, without its secret.

    Attributes:
        token_id: Its public name, 16 hexadecimal digits.
        verifier: SHA-256 over the token, 32 bytes (`EnrolmentToken.verifier`).
        label: The device's name for people; empty: whatever the device says.
        expires_at_unix_ms: From then on it admits nobody.
        device_id: Whom it admitted; empty: nobody yet.
    """

    token_id: str
    verifier: bytes = field(repr=False)
    label: str
    expires_at_unix_ms: int
    device_id: str = ""


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """A member.

    Attributes:
        device_id: Its name in the fleet, for good.
        display_name: Its name for people.
        enrolled_at_unix_ms: When it became one.
        revoked_at_unix_ms: When it ceased to be one; 0: it is one.
        revoked_because: For people and the log.
    """

    device_id: str
    display_name: str
    enrolled_at_unix_ms: int
    revoked_at_unix_ms: int = 0
    revoked_because: str = ""


@dataclass(frozen=True, kw_only=True)
class CertificateRecord:
    """A certificate that was issued to a device.

    Attributes:
        serial: Its number, hexadecimal digits in lower case, without a prefix.
        device_id: To whom.
        key_sha256: Of its public key.
        der: The certificate.
        not_after_unix_ms: Its end.
        used: Whether a signed call came with it: before that, enrolment may be asked for again.
    """

    serial: str
    device_id: str
    key_sha256: str
    der: bytes = field(repr=False)
    not_after_unix_ms: int
    used: bool = False


class MembershipStore(Protocol):
    """Where membership is kept, durably: what a method returned from survives a crash.

    Each method is one transaction, safe to repeat, and may be called from any thread. Whatever is
    looked up by an unknown name is None or empty.
    """

    def add_token(self, token: TokenRecord) -> None:
        """Remember a token whose id is new."""

    def token(self, token_id: str) -> TokenRecord | None:
        """A token by its public name."""

    def tokens(self) -> Sequence[TokenRecord]:
        """All tokens, by id."""

    def withdraw_token(self, token_id: str, at_unix_ms: int) -> bool:
        """Let an unused token expire now, if it hasn't. False: there is none, or it was used."""

    def admit(self, token_id: str, device: DeviceRecord, certificate: CertificateRecord) -> bool:
        """Use up a token for a device: token, device and first certificate together, or nothing.

        Returns:
            False, with nothing changed, if the token was used before, by whomever.
        """

    def device(self, device_id: str) -> DeviceRecord | None:
        """A device, revoked ones too."""

    def devices(self) -> Sequence[DeviceRecord]:
        """All devices, by id."""

    def revoke_device(self, device_id: str, at_unix_ms: int, because: str) -> bool:
        """Revoke a device once; the first moment and reason stay. False: there is none."""

    def add_certificate(self, certificate: CertificateRecord) -> None:
        """Remember a further certificate of a device; the serial is new."""

    def certificate(self, serial: str) -> CertificateRecord | None:
        """A certificate by its number."""

    def certificates_of_key(self, key_sha256: str) -> Sequence[CertificateRecord]:
        """All certificates of a public key, oldest first."""

    def certificates_of_device(self, device_id: str) -> Sequence[CertificateRecord]:
        """All certificates of a device, oldest first."""

    def mark_used(self, serial: str) -> None:
        """Remember that a signed call came with a certificate."""

    def remember_nonce(
        self, device_id: str, nonce: bytes, statement_sha256: str, keep_until_unix_ms: int
    ) -> str | None:
        """Remember a device's nonce with its statement, unless it is remembered already.

        Returns:
            The statement's hash that was remembered with it, and still is; None: it was new.
        """

    def forget_nonces(self, now_unix_ms: int) -> int:
        """Forget what was to be kept until before now. Returns how many that were."""
