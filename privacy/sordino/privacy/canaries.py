"""Canaries in the protocol: committed to before training, inserted by coins nobody could choose.

    auditor                                        client, whose owner agreed
    draws canaries and a nonce for each
    publishes a hash of each          ─────────▶   draws a contribution to each coin
                                      ◀─────────   publishes a hash of each
    hands over its canaries, opened   ─────────▶   checks them, tosses their coins, inserts some
              … the run …
    seals the scores                  ─────────▶   opens its contributions
    tosses the same coins; anybody checks everything against what was published

A coin is a bit of a hash over the auditor's nonce and the client's contribution
(`audit.commitments`). Each was fixed before the other was known: neither side can choose a coin,
and one honest side makes it fair. The contributions stay with the client until the scores are
sealed, so the guesses are made before a look. No client learns another's coins.

Everything here is data and hashes; files and training are the caller's.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sordino.core import canonical
from sordino.core.errors import AuditError, expected
from sordino.privacy.audit import commitments
from sordino.privacy.audit.commitments import Commitments, Opening
from sordino.privacy.audit.guessing import Guessing

_KINDS: Final = ("random", "bigrams", "secret", "exposed")
Purpose = Literal["bound", "exposure"]
Random = Callable[[int], bytes]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """What is inserted if its coin says so.

    Attributes:
        client: Whose records it may join.
        kind: ``random``, ``bigrams`` or ``secret``: one record, for the bound on ε; ``exposed``: a
            secret for exposure, perhaps repeated.
        text: The record's words.
        repetitions: How often it is inserted.
    """

    client: str
    kind: str
    text: str
    repetitions: int = 1

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise AuditError(expected("canary.kind", self.kind, f"one of {', '.join(_KINDS)}"))
        if not self.client or not self.text:
            raise AuditError(expected("canary", (self.client, self.text), "with client and text"))
        if self.repetitions < 1 or (self.repetitions > 1 and self.kind != "exposed"):
            required = "1, or more for an exposed secret: a bound is for one record"
            raise AuditError(expected("canary.repetitions", self.repetitions, required))

    @property
    def purpose(self) -> Purpose:
        """Which measure it is for: ε of one unit, or how well a repeated secret is known."""
        return "exposure" if self.kind == "exposed" else "bound"

    def encoded(self) -> str:
        """The one text that is committed to."""
        return canonical.encode(asdict(self)).decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Canary:
        """Read what `encoded` wrote.

        Raises:
            AuditError: It isn't that.
        """
        try:
            return cls(**canonical.decode(text.encode("ascii")))
        except (ValueError, TypeError) as error:
            raise AuditError(f"an opened canary can't be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Published:
    """What everybody may see before training begins.

    Attributes:
        run_id: The run that it is for.
        rules: How many guesses will be made, fixed before there is anything to look at.
        canaries: By client, a hash of each canary.
        contributions: By client, the hashes of its contributions, one a canary; without them a
            client takes no part.
    """

    run_id: str
    rules: tuple[Guessing, ...]
    canaries: Mapping[str, tuple[str, ...]]
    contributions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """One hash that names all of it."""
        return canonical.sha256_hex(canonical.encode(self.table()))

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "kind": "sordino.canaries",
            "version": 1,
            "run_id": self.run_id,
            "rules": [asdict(rule) for rule in self.rules],
            "canaries": {client: list(own) for client, own in self.canaries.items()},
            "contributions": {client: list(own) for client, own in self.contributions.items()},
        }

    def to_json(self) -> str:
        """As a file."""
        return json.dumps(self.table(), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Published:
        """Read what `table` gave.

        Raises:
            AuditError: It isn't that.
        """
        try:
            if (table["kind"], table["version"]) != ("sordino.canaries", 1):
                raise AuditError(expected("kind", table["kind"], "sordino.canaries, version 1"))
            return cls(
                run_id=str(table["run_id"]),
                rules=tuple(Guessing(**rule) for rule in table["rules"]),
                canaries=_hashes(table["canaries"]),
                contributions=_hashes(table["contributions"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise AuditError(f"these are no published canaries: {error!r}") from error


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What is told after the run, by client: canaries with their nonces, and contributions."""

    canaries: Mapping[str, tuple[Opening, ...]] = field(repr=False)
    contributions: Mapping[str, tuple[str, ...]] = field(repr=False)


def draw(
    canaries: Sequence[Canary], random: Random = secrets.token_bytes
) -> dict[str, tuple[Opening, ...]]:
    """The auditor's first step: a nonce for each canary, by client. Secret until it is opened.

    Raises:
        AuditError: Two canaries are the same.
    """
    by_client: dict[str, list[str]] = {}
    for canary in canaries:
        by_client.setdefault(canary.client, []).append(canary.encoded())
    return {c: commitments.draw_openings(own, random) for c, own in by_client.items()}


def publish(
    run_id: str, rules: Sequence[Guessing], drawn: Mapping[str, Sequence[Opening]]
) -> Published:
    """The auditor's second step: what is told of them before anybody contributes."""
    hashes = {c: tuple(map(commitments.canary_commitment, own)) for c, own in drawn.items()}
    return Published(run_id=run_id, rules=tuple(rules), canaries=hashes)


def contribute(
    published: Published, client: str, random: Random = secrets.token_bytes
) -> tuple[Published, tuple[str, ...]]:
    """The client's first step: its contribution to each of its coins.

    Returns:
        What is published from then on, with the contributions' hashes; and the contributions,
        which the client keeps to itself until the scores are sealed.

    Raises:
        AuditError: There is no canary for it, or it has contributed before: a second draw would be
            a choice.
    """
    if client not in published.canaries or client in published.contributions:
        raise AuditError(expected("client", client, "one with canaries that hasn't contributed"))
    drawn = commitments.draw_contributions(len(published.canaries[client]), random)
    hashes = tuple(map(commitments.contribution_commitment, drawn))
    told = {**published.contributions, client: hashes}
    return replace(published, contributions=told), drawn


def place(
    published: Published, client: str, openings: Sequence[Opening], contributions: Sequence[str]
) -> tuple[Canary, ...]:
    """The client's second step: check the canaries that it was handed, and toss their coins.

    Returns:
        Those that take part; the client tells nobody which before the scores are sealed.

    Raises:
        AuditError: They aren't those that were published, one is another client's, or the
            contributions aren't those that were.
    """
    coins = _check(published, client, openings, contributions)
    canaries = [Canary.decode(opening.canary) for opening in openings]
    if wrong := [canary.client for canary in canaries if canary.client != client]:
        raise AuditError(f"a canary of {wrong[0]!r} was handed to {client!r}")
    return tuple(canary for canary, coin in zip(canaries, coins, strict=True) if coin)


def open_all(published: Published, opened: Opened) -> tuple[list[Canary], NDArray[np.bool_]]:
    """The last step, anybody's: hold what was opened against what was published.

    Returns:
        The canaries of the clients that took part, in the order of their clients, and their coins.

    Raises:
        AuditError: Something else was committed to; which, is said.
    """
    canaries: list[Canary] = []
    coins: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    for client in taking_part(published):
        try:
            openings, contributions = opened.canaries[client], opened.contributions[client]
        except KeyError as error:
            raise AuditError(f"client {client!r} was committed to and not opened") from error
        coins.append(_check(published, client, openings, contributions))
        canaries += [Canary.decode(opening.canary) for opening in openings]
    return canaries, np.concatenate(coins)


def taking_part(published: Published) -> list[str]:
    """The clients that contributed, in order."""
    return sorted(set(published.contributions) & set(published.canaries))


def _check(
    published: Published, client: str, openings: Sequence[Opening], contributions: Sequence[str]
) -> NDArray[np.bool_]:
    if client not in published.canaries or client not in published.contributions:
        raise AuditError(f"nothing was committed to for client {client!r}, or it didn't contribute")
    bound = Commitments(
        canaries=published.canaries[client], contributions=published.contributions[client]
    )
    try:
        return commitments.check_openings(bound, openings, contributions)
    except AuditError as error:
        raise AuditError(f"client {client!r}: {error}") from error


def _hashes(table: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {str(client): tuple(map(str, own)) for client, own in table.items()}
