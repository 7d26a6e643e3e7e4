"""A ChaCha20 keystream that forgets its past: each read replaces the key with fresh keystream.

Fast key erasure: a read takes 32 bytes more than were asked for, and those are the next key. So a
key never serves twice, no counter can wrap, and whoever gets hold of the state can't go back to
what was drawn before.
"""

from __future__ import annotations

import sys
import threading
from functools import cache
from typing import Final, NoReturn, final

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from sordino.core.errors import PlanError

KEY_BYTES: Final = 32

_NONCE: Final = bytes(16)  # block counter and nonce; every key is used for one read only
_ZEROS: Final = bytes(1 << 18)
# RFC 8439, appendix A.1, test vector 1: the all-zero key.
_KNOWN: Final = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")


@final
class Keystream:
    """Independent uniform bits under one key. Neither copied nor pickled; safe for threads."""

    def __init__(self, key: bytes | bytearray) -> None:
        """Start under `key`, 32 bytes; a bytearray is taken over and overwritten."""
        if len(key) != KEY_BYTES:
            raise PlanError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        check_cipher()
        self._key = bytearray(key)
        if isinstance(key, bytearray):
            key[:] = bytes(KEY_BYTES)
        self._lock = threading.Lock()

    def fill(self, words: NDArray[np.uint64]) -> None:
        """Overwrite a contiguous array with fresh words.

        Raises:
            PlanError: The cipher failed; the array's contents must not be used.
        """
        out = words.view(np.uint8).data
        following = bytearray(KEY_BYTES)
        with self._lock:
            cipher = _encryptor(self._key)
            done = cipher.update_into(_ZEROS[:KEY_BYTES], following)
            for start in range(0, len(out), len(_ZEROS)):
                part = out[start : start + len(_ZEROS)]
                done += cipher.update_into(_ZEROS[: len(part)], part)
            if done != KEY_BYTES + len(out) or following == self._key:
                words.fill(0)
                raise PlanError("the stream cipher failed: no noise can be drawn")
            self._key[:] = following
        if sys.byteorder == "big":  # the cipher's bytes are little-endian words
            words.byteswap(inplace=True)

    def words(self, size: int) -> NDArray[np.uint64]:
        """`size` fresh words."""
        fresh = np.empty(size, np.uint64)
        self.fill(fresh)
        return fresh

    def __reduce__(self) -> NoReturn:
        raise PlanError("a keystream can't be copied: it would repeat")


@cache
def check_cipher() -> None:
    """Encrypt the standard's test vector, once a process.

    Raises:
        PlanError: There is no ChaCha20 here, or it is wrong. Nothing weaker takes its place.
    """
    try:
        stream = _encryptor(bytearray(KEY_BYTES)).update(bytes(len(_KNOWN)))
    except UnsupportedAlgorithm as error:
        raise PlanError(f"this machine's cryptography has no ChaCha20: {error}") from error
    if stream != _KNOWN:
        raise PlanError("this machine's ChaCha20 fails the test vector of RFC 8439")


def _encryptor(key: bytearray):  # type: ignore[no-untyped-def]
    return Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
