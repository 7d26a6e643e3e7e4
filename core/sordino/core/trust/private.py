"""Private keys and the files that hold them. No error quotes what such a file holds."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sordino.core.errors import TrustError

SECRET_MODE: Final = 0o600


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS#8 PEM, not encrypted: for a file of mode 0600, and for TLS."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_secret(path: Path, *, made_by: str) -> bytes:
    """Read a file that nobody but its owner can read.

    Args:
        path: The file.
        made_by: What makes it, for the message if it isn't there.

    Raises:
        TrustError: It can't be read, or others can read it too.
    """
    try:
        data, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise TrustError(f"can't read {path} ({error.strerror}): {made_by} makes it") from error
    if mode & 0o077:
        raise TrustError(
            f"expected mode 0600 of {path}, got {mode:04o}: others may have read the key; "
            "chmod 600 it, and replace the key"
        )
    return data


def load_private_key(
    data: bytes, path: Path, passphrase: bytes | None = None
) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in PEM.

    Args:
        data: What a file holds.
        path: Which one, for messages.
        passphrase: What encrypted it; None: nothing did.

    Raises:
        TrustError: It holds another kind of key or none, or the passphrase is wrong, missing, or
            one too many.
    """
    try:
        key = load_pem_private_key(data, password=passphrase)
    except TypeError as error:  # encrypted and no passphrase, or the other way round
        word = "needs its" if passphrase is None else "isn't encrypted: leave out the"
        raise TrustError(f"{path} {word} passphrase") from error.with_traceback(None)
    except ValueError as error:  # whose text might quote the file
        wrong = "with this passphrase" if passphrase else "that can be read"
        raise TrustError(f"{path} holds no key {wrong}") from error.with_traceback(None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError(f"{path} holds no P-256 key")
    return key
