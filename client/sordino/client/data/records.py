"""What a user owns: records, in the order they came about."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


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
        held_out: The last records, never trained on.
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
            DataError: There is no such user.
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
    parts = ("sordino-dataset-1", source, user)
    # Each part with its length, so that no two pairs run together into the same bytes.
    canonical = b"".join(len(p).to_bytes(8, "big") + p for p in (t.encode() for t in parts))
    return hashlib.sha256(canonical).hexdigest()


def split(
    records: Sequence[Record], *, held_out: float, max_records: int = 0
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Split one user's records in time: the last part is held out.

    Where there are two records, each part has at least one.

    Args:
        records: In the order they came about.
        held_out: The part of them that is held out, in (0, 1).
        max_records: Take only the first so many; 0 takes all.
    """
    kept = tuple(records[:max_records] if max_records else records)
    count = min(len(kept) - 1, max(1, math.floor(held_out * len(kept) + 0.5)))
    cut = len(kept) - max(count, 0)
    return kept[:cut], kept[cut:]


def ordered_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Users with most records first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
