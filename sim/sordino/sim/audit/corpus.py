"""The texts that an audit is about: users' records as the run cut them, and as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sordino.client.data.records import Record, Source, UserData
from sordino.client.data.source import open_source, select_users
from sordino.client.data.tokens import TokenizerFile, TokenRecord
from sordino.core.config import ExperimentConfig
from sordino.core.errors import AuditError


@dataclass(frozen=True)
class Corpus:
    """The records of a configuration's users.

    Attributes:
        config: Whose section `[data]` says which, and how they are cut.
        tokenizer: The base's.
    """

    config: ExperimentConfig
    tokenizer: TokenizerFile

    @cached_property
    def users(self) -> tuple[str, ...]:
        """The users that take part, in the order of a run's clients."""
        return select_users(self._source, self.config.data)

    def data(self, user: str) -> UserData:
        """A user's records, as a run cuts them."""
        return self._source.user(user)

    def texts(self, part: str, users: Sequence[str] | None = None) -> list[str]:
        """The texts of the users' records, ``train`` or ``held_out``, but for empty ones."""
        chosen = self.users if users is None else users
        found = texts_of({user: self.data(user) for user in chosen}, part)
        return [text for text in found if text.strip()]

    def encode(self, texts: Sequence[str]) -> tuple[TokenRecord, ...]:
        """Texts as a client would encode its records.

        Raises:
            AuditError: One has no token to learn.
        """
        records = [Record(text=text) for text in texts]
        encoded = self.tokenizer.encode_records(records, self.config.data.max_tokens)
        if encoded.dropped:
            raise AuditError(f"a text can't be scored: {encoded.dropped[0]}")
        return encoded.records

    def rng(self, purpose: str) -> np.random.Generator:
        """Randomness of the audit's own choices, from the run's seed: never of coins or noise."""
        return np.random.default_rng([self.config.seed, *purpose.encode()])

    @cached_property
    def _source(self) -> Source:
        return open_source(self.config.data)


def texts_of(data: Mapping[str, UserData], part: str) -> list[str]:
    """The plain texts of users' records; a prompt's and a chat's turns stand one after another."""
    found = []
    for user in data.values():
        for record in getattr(user, part):
            turns = "\n".join(turn.content for turn in record.messages)
            found.append(f"{record.prompt}{record.text}{turns}")
    return found
