"""The ledger's signing key: Ed25519, made on the device, in a file that its owner alone reads.

The private part never leaves the file but into this object, which prints, pickles and compares as
nothing of it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NoReturn, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sordino.core import durable, ed25519
from sordino.core.errors import LedgerError

_ENTRY = b"sordino ledger entry v2\0"
_REKEY = b"sordino ledger rekey v2\0"


@final
class LedgerKey:
    """The holder's key. `public` names it; nothing shows the rest."""

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> LedgerKey:
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    def sign(self, sha256: str) -> str:
        """Sign an entry's hash: 128 hexadecimal digits."""
        return self._private.sign(_ENTRY + bytes.fromhex(sha256)).hex()

    def prove(self, client: str, before: str) -> str:
        """Show, for a rotation, that this key is at hand and meant to follow `before`."""
        return self._private.sign(_rekey_message(client, before)).hex()

    def save(self, path: Path) -> None:
        """Write the key to a file that must not be there yet, durably, with mode 0600.

        Raises:
            OSError: The file is there, or the disk refuses.
        """
        pem = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            durable.append(fd, pem)
        finally:
            os.close(fd)
        durable.sync_folder(path.parent)

    def __repr__(self) -> str:
        return f"LedgerKey(public={self.public})"

    def __reduce__(self) -> NoReturn:
        raise LedgerError("the ledger's key can't be copied: it stays in its file")


def load_key(path: Path) -> LedgerKey:
    """Read a key that nobody but its owner can read.

    Raises:
        LedgerError: Others may read the file, or it holds no Ed25519 key.
        OSError: It can't be read.
    """
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise LedgerError(f"{path} can be read by others: chmod 600 it, and rotate the key")
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:  # whose text might quote the file
        raise LedgerError(f"{path} holds no key that can be read") from error.with_traceback(None)
    if not isinstance(private, Ed25519PrivateKey):
        raise LedgerError(f"{path} holds no Ed25519 key")
    return LedgerKey(private)


def signature_holds(public_key: str, sha256: str, signature: str) -> bool:
    """Whether `signature` is the key's, over an entry's hash."""
    return _holds(public_key, signature, _ENTRY + bytes.fromhex(sha256))


def proof_holds(public_key: str, client: str, before: str, proof: str) -> bool:
    """Whether `proof` is the next key's word that it follows `before`."""
    return _holds(public_key, proof, _rekey_message(client, before))


def _holds(public_key: str, signature: str, message: bytes) -> bool:
    try:
        ed25519.public_key(public_key).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _rekey_message(client: str, before: str) -> bytes:
    return _REKEY + bytes.fromhex(before) + client.encode()
