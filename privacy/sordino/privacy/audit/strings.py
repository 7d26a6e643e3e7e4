"""Text as the measures on strings compare it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def bare(text: str) -> str:
    """Letters and digits alone: a secret that is spelled out or broken by a line is still told."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation and without what Unicode writes in several ways."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold())


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence (Hyyrö 2004: a row of the table is one integer)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(first)) - 1
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()
