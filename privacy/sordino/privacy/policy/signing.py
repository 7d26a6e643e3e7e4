"""The owner's signature under a policy: Ed25519, over the file's very bytes, in a file beside it.

The device holds the owner's public key and nothing more: it can't sign itself a looser policy.
"""

from __future__ import annotations

import os
import re
import stat
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
from sordino.core.errors import PolicyError, expected
from sordino.privacy.policy.rules import Policy, parse_policy

SUFFIX: Final = ".sig"
_DOMAIN: Final = b"sordino policy v1\0"
_PUBLIC = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_MOST_BYTES: Final = 1 << 18


def make_owner_key(path: Path) -> str:
    """Make the owner's key in a file that must not be there yet, mode 0600.

    Returns:
        The public key, 64 hexadecimal digits, which is what a device is given.

    Raises:
        PolicyError: The file is there, or can't be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            durable.append(fd, pem)
        finally:
            os.close(fd)
    except OSError as error:
        raise PolicyError(f"can't write the owner's key {path}: {error.strerror}") from error
    return key.public_key().public_bytes_raw().hex()


def sign_policy(path: Path, key_path: Path) -> str:
    """Sign a policy file as it is; the signature goes beside it, `<name>.sig`.

    Returns:
        The public key.

    Raises:
        PolicyError: The policy isn't one, the key can't be read, or others can read it.
    """
    data = _read(path)
    parse_policy(data)  # an owner doesn't sign what no device would take
    key = _owner_key(key_path)
    signature = key.sign(_DOMAIN + data).hex()
    try:
        durable.write_whole(_beside(path), signature.encode() + b"\n")
    except OSError as error:
        raise PolicyError(f"can't write {_beside(path)}: {error.strerror}") from error
    return key.public_key().public_bytes_raw().hex()


def load_policy(path: Path, public_key: str) -> Policy:
    """Read a policy that its owner signed. The signature is checked before anything is parsed.

    Raises:
        PolicyError: It can't be read, isn't signed by that key, or holds something impossible.
            There is no falling back: a device with a broken policy doesn't work.
    """
    if not _PUBLIC.fullmatch(public_key):
        raise PolicyError(expected("the owner's key", public_key, "64 hexadecimal digits"))
    data = _read(path)
    signature = _read(_beside(path)).decode("ascii", "replace").strip()
    if not _SIGNATURE.fullmatch(signature):
        raise PolicyError(f"{_beside(path)} holds no signature")
    try:
        key = ed25519.public_key(public_key)
        key.verify(bytes.fromhex(signature), _DOMAIN + data)
    except (InvalidSignature, ValueError) as error:
        raise PolicyError(f"{path} is not signed by the owner's key {public_key[:12]}") from error
    return parse_policy(data)


def read_unsigned(path: Path) -> Policy:
    """Read a policy without its signature, to show it or to try a plan on it; never to obey it.

    Raises:
        PolicyError: It can't be read, or holds something impossible.
    """
    return parse_policy(_read(path))


def _owner_key(path: Path) -> Ed25519PrivateKey:
    try:
        mode, pem = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise PolicyError(f"can't read the owner's key {path}: {error.strerror}") from error
    if mode & 0o077:
        raise PolicyError(f"{path} can be read by others: chmod 600 it, or make another key")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:  # whose text might quote the file
        raise PolicyError(f"{path} holds no key that can be read") from error.with_traceback(None)
    if not isinstance(key, Ed25519PrivateKey):
        raise PolicyError(f"{path} holds no Ed25519 key")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"can't read {path}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise PolicyError(f"{path} is longer than {_MOST_BYTES} bytes")
    return data


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
