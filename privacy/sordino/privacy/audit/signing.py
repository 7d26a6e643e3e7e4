"""The auditor's key: Ed25519, in a file that its owner alone reads; it signs bundles."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sordino.core import durable, ed25519
from sordino.core.errors import AuditError, expected
from sordino.core.trust import SECRET_MODE, read_secret

_DOMAIN: Final = b"sordino audit bundle v1\0"
_PUBLIC: Final = re.compile(r"[0-9a-f]{64}")


def make_auditor_key(path: Path) -> str:
    """Make a key in a file that must not be there yet, mode 0600.

    Returns:
        The public key, 64 hexadecimal digits: what others hold bundles against.

    Raises:
        AuditError: The file is there, or can't be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        durable.make_folder(path.parent)
        fd = os.open(path, flags, SECRET_MODE)
        try:
            durable.append(fd, pem)
        finally:
            os.close(fd)
        durable.sync_folder(path.parent)
    except OSError as error:
        raise AuditError(f"can't write the auditor's key {path}: {error.strerror}") from error
    return key.public_key().public_bytes_raw().hex()


def public_key_of(path: Path) -> str:
    """The public half of the key in a file.

    Raises:
        AuditError: It holds no Ed25519 key.
        TrustError: It can't be read, or others can read it too.
    """
    return _load(path).public_key().public_bytes_raw().hex()


def sign(path: Path, message: bytes) -> str:
    """Sign a bundle's manifest with the key in a file: 128 hexadecimal digits.

    Raises:
        AuditError: It holds no Ed25519 key.
        TrustError: It can't be read, or others can read it too.
    """
    return _load(path).sign(_DOMAIN + message).hex()


def signature_holds(public_key: str, message: bytes, signature: str) -> bool:
    """Whether a signature is the key's, over a bundle's manifest."""
    try:
        key = ed25519.public_key(public_key)
        key.verify(bytes.fromhex(signature), _DOMAIN + message)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_public_key(public_key: str) -> None:
    """Refuse what can't be a public key.

    Raises:
        AuditError: Naming it.
    """
    if not _PUBLIC.fullmatch(public_key):
        raise AuditError(expected("the auditor's key", public_key, "64 hexadecimal digits"))


def _load(path: Path) -> Ed25519PrivateKey:
    pem = read_secret(path, made_by="sordino audit --key")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:  # whose text might quote the file
        raise AuditError(f"{path} holds no key that can be read") from error.with_traceback(None)
    if not isinstance(key, Ed25519PrivateKey):
        raise AuditError(f"{path} holds no Ed25519 key")
    return key
