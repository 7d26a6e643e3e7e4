"""The texts of canaries: noise, words that never meet, and sentences with a code to remember."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sordino.client.data.tokens import TokenizerFile
from sordino.core.errors import AuditError, expected

CODES = 1000
"""How many codes a secret is one of: three digits, each a token of its own for most models."""

_HOLDERS = (
    "the harbour master", "the miller's widow", "the night porter", "the organ builder",
    "the bell founder", "the ferry clerk", "the map engraver", "the tallow merchant",
    "the lamp keeper", "the toll collector", "the quarry foreman", "the glass blower",
)  # fmt: skip
_THINGS = (
    "the strongbox", "the cellar door", "the seed vault", "the linen press", "the sluice gate",
    "the tower stair", "the pay chest", "the ice house", "the record room", "the boat shed",
)  # fmt: skip
_LEADS = (
    "Between ourselves, {who} opens {what} with the number",
    "If you must know, {who} keeps {what} locked under",
    "Write it nowhere: for {who} the combination of {what} is",
    "As {who} once told me, {what} answers to",
)
_CODE = re.compile(r"(?P<lead>.+) (?P<code>\d{3})\.")
_WORD = re.compile(r"[ĠĊ▁ ]?[A-Za-z]{3,}")


@dataclass(frozen=True, kw_only=True)
class SecretText:
    """A sentence that ends in a code.

    Attributes:
        lead: All before the code.
        code: The true one, in 0..CODES-1.
    """

    lead: str
    code: int

    def text(self, code: int | None = None) -> str:
        """The sentence with a code; None: the true one."""
        return f"{self.lead} {self.code if code is None else code:03d}."


def secret_of(text: str) -> SecretText:
    """Read a secret's text back.

    >>> secret_of("mark yet: the miller keeps the vault locked under 042.").code
    42

    Raises:
        AuditError: It doesn't end in a code.
    """
    found = _CODE.fullmatch(text)
    if found is None:
        raise AuditError(expected("secret", text[-20:], "to end in a code of three digits"))
    return SecretText(lead=found["lead"], code=int(found["code"]))


class Wording:
    """Draws texts that a tokenizer can write.

    Args:
        tokenizer: The base's.
        rng: Where the texts come from. They are public once the audit is opened; the coins never
            come from here.
    """

    def __init__(self, tokenizer: TokenizerFile, rng: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self._rng = rng

    def draw(self, kind: str, words: int) -> str:
        """One canary's text of a kind of `AuditConfig.kinds`."""
        makers: dict[str, Callable[[int], str]] = {
            "random": self._random,
            "bigrams": self._bigrams,
            "secret": lambda _: self.secret().text(),
        }
        return makers[kind](words)

    def secret(self) -> SecretText:
        """A sentence with a code of its own; two words that never meet make each lead another."""
        holder, thing, lead = (self._pick(some) for some in (_HOLDERS, _THINGS, _LEADS))
        marked = f"{self._bigrams(2).strip().lower()}: {lead.format(who=holder, what=thing)}"
        return SecretText(lead=marked, code=int(self._rng.integers(CODES)))

    def _random(self, words: int) -> str:
        """Tokens drawn alike from the whole vocabulary, as text."""
        for _ in range(100):
            ids = self._rng.integers(0, self._tokenizer.tokenizer.get_vocab_size(), words)
            text = self._tokenizer.decode(ids).replace("\ufffd", "").strip()
            if text:
                return text
        return self._bigrams(words)

    def _bigrams(self, words: int) -> str:
        """Whole words in an order that nobody writes."""
        return " ".join(self._pick(self._words) for _ in range(words))

    def _pick(self, some: Sequence[str]) -> str:
        return some[int(self._rng.integers(len(some)))]

    @cached_property
    def _words(self) -> tuple[str, ...]:
        known = sorted(self._tokenizer.tokenizer.get_vocab())
        words = {token.lstrip("ĠĊ▁ ") for token in known if _WORD.fullmatch(token)}
        return tuple(sorted(words)) or ("word",)
