"""Ed25519 public keys, but for the few under which a signature says nothing.

A point of small order satisfies the verification of one signature for a quarter of all messages, or
for every one, and nobody needs a private key to write that signature. RFC 8032 leaves it to the
caller to refuse such keys, and so do the libraries (Chalkias, Garillot, Nikolaenko 2020: "Taming
the many EdDSAs", section 3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_PRIME: Final = 2**255 - 19
_EIGHTH: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y of every point whose order divides 8; with each x of the two that share it.
_SMALL_ORDER: Final = frozenset({0, 1, _PRIME - 1, _EIGHTH, _PRIME - _EIGHTH})


@lru_cache(maxsize=1024)
def public_key(raw: str) -> Ed25519PublicKey:
    """The key of 64 hexadecimal digits.

    Raises:
        ValueError: It isn't a key, or one of small order in any of its encodings.

    >>> public_key("00" * 32)
    Traceback (most recent call last):
    ValueError: a key of small order: anybody can sign under it
    """
    data = bytes.fromhex(raw)
    y = int.from_bytes(data, "little") & (2**255 - 1)  # the highest bit is x's sign
    if y % _PRIME in _SMALL_ORDER:
        raise ValueError("a key of small order: anybody can sign under it")
    return Ed25519PublicKey.from_public_bytes(data)
