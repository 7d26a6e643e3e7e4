"""What a user owns: records, and which of them are trained on, held out, or left out.

That is decided for each record by itself, from nothing but its own words. Were it decided by a
record's place among the others, one more record could move another across a cut. In the sum of a
step that is a replacement, which costs 2C where a plan accounts C.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

_PLACES: Final = 2**64


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One unit of a user's data: what adding or removing *a record* means in a guarantee.

    Attributes:
        text: The words that are learned. Empty for a chat.
        prompt: Words before `text` that are read and not learned.
        messages: The turns of a chat, of which the assistant's are learned.
    """

    text: str = ""
    prompt: str = ""
    messages: tuple[Turn, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UserData:
    """One user's records.

    Attributes:
        user: The user's name in the source.
        dataset_id: What the user's privacy budget is kept under; see `dataset_id`.
        train: Records to train on.
        held_out: Records that are never trained on. Either part may be empty.
    """

    user: str
    dataset_id: str
    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


class Source(Protocol):
    """Users and their records, wherever they come from."""

    @property
    def label(self) -> str:
        """What a report calls this source."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader should know: what was skipped, and how much of it."""

    def users(self) -> Mapping[str, int]:
        """How many records each user has; the most first, then by name."""

    def user(self, name: str) -> UserData:
        """One user's records.

        Raises:
            DataError: There can be no such user.
        """


def dataset_id(source: str, user: str) -> str:
    """The name under which a user's privacy budget is kept.

    It depends on the source's identity and the user, and on purpose not on the content: records
    that are edited, added or moved to another folder must not start a fresh budget. Two sources of
    one identity share a budget, which overstates what was spent and never understates it.

    >>> dataset_id("diary", "ann") == dataset_id("diary", "ann")
    True
    >>> dataset_id("diary", "ann") == dataset_id("diary", "bob")
    False
    """
    return _digest("sordino-dataset-1", source, user).hex()


def split(
    records: Iterable[Record], *, held_out: float, share: float = 1.0
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Which of a user's records are trained on and which are held out, in the order given.

    Each record is placed by itself (`place`). So adding or removing one record changes the two
    parts, taken together, by that record alone; equal records are on one side. A record stays where
    it is for good: whatever else is added or removed, whatever the file is called, and on every
    device. A larger `held_out` moves records to the held-out part and none back, and a larger
    `share` only adds records. How many fall on either side is left to chance.

    Args:
        records: A user's records.
        held_out: The chance of a record to be held out, in (0, 1).
        share: The chance of a record to take part at all, in (0, 1].

    Returns:
        The records to train on, and those that are held out. Either may be empty.
    """
    train, held = list[Record](), list[Record]()
    for record in records:
        if place("share", record) < share * _PLACES:
            (held if place("held-out", record) < held_out * _PLACES else train).append(record)
    return tuple(train), tuple(held)


def place(choice: str, record: Record) -> int:
    """Where a record lies in [0, 2^64) for one choice: the first digits of SHA-256 over it.

    There is no key: the guarantee asks that a record's place not depend on other records, not that
    it be secret, and a key is one more thing that could change and move every record at once.

    >>> place("held-out", Record(text="To be")) == place("held-out", Record(text="To be"))
    True
    >>> place("held-out", Record(text="To be")) == place("share", Record(text="To be"))
    False
    """
    turns = (part for turn in record.messages for part in (turn.role, turn.content))
    digest = _digest("sordino-place-1", choice, record.prompt, record.text, *turns)
    return int.from_bytes(digest[:8], "big")


def ordered_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Users with most records first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _digest(*parts: str) -> bytes:
    # Each part with its length, so that no two lists run together into the same bytes.
    encoded = (part.encode() for part in parts)
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in encoded)).digest()
