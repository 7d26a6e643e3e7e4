"""The one-time token by which a device enrols, as text that a person carries to it.

It holds a secret, by which the coordinator knows the device, and the fingerprint of the fleet's
authority, by which the device knows the coordinator: a first contact that is led astray fails
before the secret is sent.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from sordino.core.errors import ContractError

VERSION: Final = 1
SECRET_BYTES: Final = 18
FINGERPRINT_BYTES: Final = 32
_CHECKSUM_BYTES = 4
# 1 + 32 + 18 + 4 = 55 bytes are 88 letters of base32, with no bit left over: one text a token.
_LETTERS = 88
_GROUP = 8
_TEXT = re.compile(rf"[A-Z2-7]{{{_LETTERS}}}")


@dataclass(frozen=True, kw_only=True)
class EnrolmentToken:
    """A token, taken apart. It prints as its public id.

    Attributes:
        authority_sha256: SHA-256 of the authority's certificate in DER, 32 bytes.
        secret: 18 bytes from the operating system's randomness.
    """

    authority_sha256: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if (len(self.authority_sha256), len(self.secret)) != (FINGERPRINT_BYTES, SECRET_BYTES):
            raise ContractError("bad-token", "a fingerprint has 32 bytes and a secret 18")

    @classmethod
    def generate(cls, authority_sha256: bytes) -> EnrolmentToken:
        """Draw a new secret of 144 bits."""
        return cls(authority_sha256=authority_sha256, secret=secrets.token_bytes(SECRET_BYTES))

    @property
    def token_id(self) -> str:
        """Its name for lists and logs, 16 hexadecimal digits; it tells nothing of the secret."""
        return hashlib.sha256(b"sordino enrolment id v1\0" + self.secret).hexdigest()[:16]

    @property
    def verifier(self) -> bytes:
        """What the coordinator keeps in the token's place, 32 bytes.

        Plain SHA-256 will do: a slow hash makes up for a secret that can be guessed, and nobody
        guesses 144 random bits.
        """
        return hashlib.sha256(b"sordino enrolment verifier v1\0" + _payload(self)).digest()

    def __repr__(self) -> str:
        return f"EnrolmentToken(token_id={self.token_id!r})"


def encode_token(token: EnrolmentToken) -> str:
    """Write a token as text: base32 of version, fingerprint, secret and checksum, in groups."""
    payload = _payload(token)
    letters = base64.b32encode(payload + _checksum(payload)).decode()
    return "-".join(letters[at : at + _GROUP] for at in range(0, _LETTERS, _GROUP))


def decode_token(text: str) -> EnrolmentToken:
    """Read a token. Case, spaces and hyphens don't matter; every letter does.

    Raises:
        ContractError: ``bad-token``: its length, letters, checksum or version isn't a token's. The
            text isn't repeated in the message.
    """
    letters = re.sub(r"[\s-]", "", text).upper()
    if not _TEXT.fullmatch(letters):
        raise ContractError(
            "bad-token",
            f"a token has {_LETTERS} letters A-Z and digits 2-7, hyphens aside: copy all of it",
        )
    data = base64.b32decode(letters)
    payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum != _checksum(payload):
        raise ContractError("bad-token", "the token's checksum is wrong: copy all of it again")
    if payload[0] != VERSION:
        raise ContractError("bad-token", f"the token is of version {payload[0]}, not {VERSION}")
    return EnrolmentToken(
        authority_sha256=payload[1 : 1 + FINGERPRINT_BYTES],
        secret=payload[1 + FINGERPRINT_BYTES :],
    )


def _payload(token: EnrolmentToken) -> bytes:
    return bytes([VERSION]) + token.authority_sha256 + token.secret


def _checksum(payload: bytes) -> bytes:
    """Against slips of the hand; whoever knows the format can make one."""
    return hashlib.sha256(b"sordino enrolment checksum v1\0" + payload).digest()[:_CHECKSUM_BYTES]
