"""The book: what a client's entries amount to, and which entry may follow.

The state machine of one charge, the same for the device that writes and the auditor who replays:

    reserve ──> commit ──> released
        └─────────┴──────> abandoned (still charged)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from sordino.core.errors import LedgerError, expected
from sordino.privacy.ledger.entries import (
    GENESIS,
    WHOLE,
    Abandoned,
    Commit,
    Entry,
    Head,
    Opened,
    Rekeyed,
    Released,
    Reserve,
    Retired,
    Signed,
    check_values,
    parse_line,
)
from sordino.privacy.ledger.keys import proof_holds, signature_holds

_FROM: Final[dict[type[Entry], tuple[str, ...]]] = {
    Commit: ("reserve",),
    Released: ("commit",),
    Abandoned: ("reserve", "commit"),
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One charge, and how far it came.

    Attributes:
        reserve: What is charged. It counts in every state.
        state: `reserve`, `commit`, `released` or `abandoned`.
        commit: The entry after which data could be touched, if there is one.
        artefact: SHA-256 of the released bytes, or empty.
    """

    reserve: Reserve
    state: str = "reserve"
    commit: Commit | None = None
    artefact: str = ""

    @property
    def number(self) -> int:
        """What later entries call this charge: its `Reserve`'s index."""
        return self.reserve.index


class Book:
    """One client's entries, added one by one. A refused entry changes nothing."""

    def __init__(self) -> None:
        self.client = ""
        self.public_key = ""  # the one in force: it signs the next entry
        self.keys: set[str] = set()  # every one that was ever in force
        self.entries: list[Entry] = []
        self.charges: dict[int, Standing] = {}
        self.retired: set[tuple[str, str]] = set()
        self._rounds: dict[tuple[str, int], int] = {}

    @property
    def head(self) -> str:
        """Hash of the last entry, or 64 zeros."""
        return self.entries[-1].sha256 if self.entries else GENESIS

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self.entries)

    def hash_at(self, index: int) -> str:
        """Hash of an entry; empty where there is none."""
        return self.entries[index].sha256 if 0 <= index < self.count else ""

    @property
    def reserved(self) -> tuple[Reserve, ...]:
        """Everything that is charged, oldest first."""
        return tuple(standing.reserve for standing in self.charges.values())

    def find(self, run_id: str, round_number: int) -> Standing | None:
        """The charge of a run's round, if there is one."""
        number = self._rounds.get((run_id, round_number))
        return None if number is None else self.charges[number]

    def is_retired(self, dataset: str, block: str) -> bool:
        """Whether some of what a charge of this block would touch is retired."""
        return any(
            known == dataset and (old == block or WHOLE in (old, block))
            for known, old in self.retired
        )

    def head_to_keep(self) -> Head:
        """What another party should keep."""
        return Head(
            client=self.client,
            index=self.count - 1,
            sha256=self.head,
            public_key=self.public_key,
        )

    def check(self, entry: Entry) -> None:
        """Refuse an entry that can't be the next.

        Raises:
            LedgerError: Saying what was required.
        """
        check_values(entry)
        if entry.index != self.count:
            raise LedgerError(expected("index", entry.index, f"to be {self.count}"))
        if entry.prev != self.head:
            raise LedgerError("the chain is broken: prev is not the entry before")
        if isinstance(entry, Opened) != (self.count == 0):
            raise LedgerError("a ledger has exactly one opening, its first entry")
        if self.count and entry.client != self.client:
            raise LedgerError(expected("client", entry.client, f"to be {self.client}"))
        match entry:
            case Reserve():
                self._check_reserve(entry)
            case Commit() | Released() | Abandoned():
                self._check_step(entry)
            case Retired() if (entry.dataset, entry.block) in self.retired:
                raise LedgerError(f"block {entry.block} of {entry.dataset} was retired before")
            case Rekeyed():
                self._check_rekeyed(entry)
            case _:
                pass

    def add(self, entry: Entry) -> None:
        """Check an entry, then take it.

        Raises:
            LedgerError: It can't be the next.
        """
        self.check(entry)
        self.client = entry.client
        match entry:
            case Opened() | Rekeyed():
                self.public_key = entry.public_key
                self.keys.add(entry.public_key)
            case Reserve():
                self.charges[entry.index] = Standing(reserve=entry)
                self._rounds[(entry.run_id, entry.round)] = entry.index
            case Commit():
                self._move(entry.charge, state=entry.state, commit=entry)
            case Released():
                self._move(entry.charge, state=entry.state, artefact=entry.artefact)
            case Abandoned():
                self._move(entry.charge, state=entry.state)
            case Retired():
                self.retired.add((entry.dataset, entry.block))
        self.entries.append(entry)

    def check_signature(self, signed: Signed) -> None:
        """Refuse a next entry that the key in force didn't sign; before it is added.

        Raises:
            LedgerError: The signature doesn't hold.
        """
        entry = signed.entry
        key = entry.public_key if isinstance(entry, Opened) else self.public_key
        if not signature_holds(key, entry.sha256, signed.signature):
            raise LedgerError("the signature is not that of the ledger's key")

    def _check_reserve(self, entry: Reserve) -> None:
        if self.find(entry.run_id, entry.round):
            raise LedgerError(f"round {entry.round} of run {entry.run_id} is charged twice")
        if self.is_retired(entry.dataset, entry.block):
            raise LedgerError(f"block {entry.block} of {entry.dataset} is retired: it is spent")

    def _check_step(self, entry: Commit | Released | Abandoned) -> None:
        standing = self.charges.get(entry.charge)
        if standing is None:
            raise LedgerError(expected("charge", entry.charge, "to be an earlier reservation"))
        if standing.state not in _FROM[type(entry)]:
            raise LedgerError(
                f"charge {entry.charge} is in state {standing.state}: {entry.state} can't follow"
            )

    def _check_rekeyed(self, entry: Rekeyed) -> None:
        if not proof_holds(entry.public_key, self.client, self.public_key, entry.proof):
            raise LedgerError("the next key didn't sign for itself")

    def _move(self, number: int, **changes: object) -> None:
        self.charges[number] = replace(self.charges[number], **changes)  # type: ignore[arg-type]


def replay(lines: Iterable[bytes], book: Book, name: str) -> None:
    """Add lines to a book. Hashes and order of all are checked, and the signature of the last.

    The last signature vouches for the whole chain; those under a change of key are checked too,
    for they say whose it must be.

    Raises:
        LedgerError: Naming the entry.
    """
    pending: Signed | None = None
    for line in lines:
        if pending is not None:
            _take(pending, book, name, last=False)
        with naming(f"{name} entry {book.count}"):
            pending = parse_line(line)
    if pending is not None:
        _take(pending, book, name, last=True)


def _take(signed: Signed, book: Book, name: str, *, last: bool) -> None:
    with naming(f"{name} entry {book.count}"):
        if last or isinstance(signed.entry, Opened | Rekeyed):
            book.check_signature(signed)
        book.add(signed.entry)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the place before an error's words."""
    try:
        yield
    except LedgerError as error:
        raise LedgerError(f"{where}: {error}") from error
