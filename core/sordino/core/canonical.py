"""Canonical JSON: the one byte string that stands for a value, so that its hash names it.

Keys in order, no spaces, ASCII only, floats as the shortest decimal that reads back as the same
float64 (Python's `repr`), no NaN, no infinity. Bytes that another encoder would have written, even
if they mean the same, are refused: a hash of them would name something nobody agreed on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

MAX_BYTES = 1 << 16  # far above any plan or ledger entry; keeps hostile input small


def encode(value: Mapping[str, Any]) -> bytes:
    """Encode a JSON object.

    >>> encode({"b": 1, "a": 0.1})
    b'{"a":0.1,"b":1}'

    Raises:
        ValueError: A value is NaN, infinite, or not JSON.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except TypeError as error:
        raise ValueError(f"not JSON: {error}") from error
    return text.encode("ascii")


def decode(data: bytes, most: int = MAX_BYTES) -> dict[str, Any]:
    """Decode a JSON object of at most `most` bytes, accepting exactly what `encode` writes.

    Raises:
        ValueError: Not JSON, not an object, too long, or not the canonical encoding.
    """
    if len(data) > most:
        raise ValueError(f"longer than {most} bytes")
    try:
        value = json.loads(data.decode("ascii"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if encode(value) != data:
        raise ValueError("not the canonical encoding")
    return value


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
