"""Canaries and their coins, committed to before training and opened after it.

Two sides make a coin. The auditor draws a nonce of 32 bytes for each canary and publishes one hash
each, over nonce and canary. Whoever would train on a canary draws a contribution of 32 bytes for it
and publishes its hash, before any nonce is told. The coin is a bit of a hash over both: neither
side could choose it alone, and the auditor, who doesn't know the contributions, doesn't know the
coins either until the scores are sealed.

After the run both are opened, and everybody can check that these were the canaries and these their
coins. What no file can show is that the hashes were published beforehand: who wants to believe that
keeps the `root`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sordino.core.errors import AuditError, expected
from sordino.privacy.audit.checks import same_length

NONCE_BYTES: Final = 32
_CANARY: Final = b"sordino audit canary v1\0"
_CONTRIBUTION: Final = b"sordino audit contribution v1\0"
_COIN: Final = b"sordino audit coin v1\0"
_ROOT: Final = b"sordino audit commitments v1\0"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A canary and the nonce that hid it: secret until the run is over, so neither is printed.

    Attributes:
        canary: The record, or a canary client's records, as one text.
        nonce: 32 random bytes as lower-case hexadecimal digits.
    """

    canary: str = field(repr=False)
    nonce: str = field(repr=False)

    def __post_init__(self) -> None:
        _bytes32("nonce", self.nonce)


@dataclass(frozen=True, kw_only=True)
class Commitments:
    """What is published before training: a hash for each canary, and one for its contribution."""

    canaries: tuple[str, ...]
    contributions: tuple[str, ...]

    def __post_init__(self) -> None:
        same_length(canaries=self.canaries, contributions=self.contributions)
        for sha256 in (*self.canaries, *self.contributions):
            _bytes32("commitment", sha256)

    @property
    def root(self) -> str:
        """One hash that names all of them, for a plan, a ledger or a page."""
        parts = [bytes.fromhex(sha256) for sha256 in (*self.canaries, *self.contributions)]
        return hashlib.sha256(_ROOT + b"".join(parts)).hexdigest()


def draw_openings(
    canaries: Sequence[str], random: Callable[[int], bytes] = secrets.token_bytes
) -> tuple[Opening, ...]:
    """The auditor's side: a nonce for each canary.

    Args:
        canaries: All different: the same text twice would be one canary with two coins.
        random: Where nonces come from; another than the operating system's only in simulations.

    Raises:
        AuditError: There is no canary, or two are the same.
    """
    if not canaries or len(set(canaries)) < len(canaries):
        raise AuditError(expected("canaries", len(canaries), "different from each other, >= 1"))
    return tuple(Opening(canary=text, nonce=random(NONCE_BYTES).hex()) for text in canaries)


def draw_contributions(
    count: int, random: Callable[[int], bytes] = secrets.token_bytes
) -> tuple[str, ...]:
    """The other side: 32 random bytes a canary, as hexadecimal digits."""
    return tuple(random(NONCE_BYTES).hex() for _ in range(count))


def canary_commitment(opening: Opening) -> str:
    """The hash to publish for a canary."""
    return _hash(_CANARY, opening.nonce, opening.canary.encode())


def contribution_commitment(contribution: str) -> str:
    """The hash to publish for a contribution."""
    return _hash(_CONTRIBUTION, _bytes32("contribution", contribution))


def commit(openings: Sequence[Opening], contributions: Sequence[str]) -> Commitments:
    """What there is to publish, where one hand holds both sides: in a simulation."""
    return Commitments(
        canaries=tuple(map(canary_commitment, openings)),
        contributions=tuple(map(contribution_commitment, contributions)),
    )


def coins(openings: Sequence[Opening], contributions: Sequence[str]) -> NDArray[np.bool_]:
    """Each canary's coin, in or out, from both sides' randomness.

    Raises:
        AuditError: Not one contribution a canary.
    """
    same_length(openings=openings, contributions=contributions)
    tossed = [
        _hash(_COIN, opening.nonce, bytes.fromhex(_bytes32("contribution", contribution)))
        for opening, contribution in zip(openings, contributions, strict=True)
    ]
    return np.array([int(digest[:2], 16) & 1 for digest in tossed], dtype=np.bool_)


def check_openings(
    published: Commitments, openings: Sequence[Opening], contributions: Sequence[str]
) -> NDArray[np.bool_]:
    """Hold what was opened against what was published; returns the coins.

    Raises:
        AuditError: Something else was committed to; which, is said.
    """
    same_length(published=published.canaries, openings=openings, contributions=contributions)
    found = commit(openings, contributions)
    _same("canary", published.canaries, found.canaries)
    _same("contribution", published.contributions, found.contributions)
    if len({opening.canary for opening in openings}) < len(openings):
        raise AuditError("expected every canary once: the same text can't have two coins")
    return coins(openings, contributions)


def _same(what: str, published: Sequence[str], opened: Sequence[str]) -> None:
    for place, (before, after) in enumerate(zip(published, opened, strict=True)):
        if before != after:
            raise AuditError(f"{what} {place} is not the one that was committed to: {before[:12]}")


def _hash(domain: bytes, nonce: str, value: bytes = b"") -> str:
    return hashlib.sha256(domain + bytes.fromhex(nonce) + value).hexdigest()


def _bytes32(name: str, value: str) -> str:
    digits = isinstance(value, str) and set(value) <= set("0123456789abcdef")
    if not digits or len(value) != 2 * NONCE_BYTES:
        raise AuditError(f"expected {name} to be {NONCE_BYTES} bytes as lower-case hex digits")
    return value
