"""Believing an export without believing its sender: every hash, signature, state, cap, artefact.

Works on the file alone, with no access to the device. What a file can't show by itself, a tail that
was cut or an older copy put in its place, shows against a head that another party kept.

ε comes from an `Accountant` that the caller brings: this package keeps events, not figures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sordino.core.errors import LedgerError, SordinoError
from sordino.privacy.ledger.book import Book
from sordino.privacy.ledger.charges import Limit
from sordino.privacy.ledger.entries import Opened, Reserve, against, parse_line
from sordino.privacy.ledger.export import KeptHead, read_lines
from sordino.privacy.ledger.writer import errors

_NAMED_BY_HASH = re.compile(r"(?:^|[.-])([0-9a-f]{64})(?:[.]|$)")


class Accountant(Protocol):
    """What turns charges into a figure."""

    def check(self, entry: Reserve) -> None:
        """Raise a `SordinoError` if the charge's event is none that can be accounted."""
        ...

    def epsilon(self, charges: Sequence[Reserve], unit: str) -> float:
        """Upper bound on one unit's ε of these charges together; infinite: not bounded."""
        ...


@dataclass(frozen=True, kw_only=True)
class Defect:
    """Something that an honest, whole ledger doesn't have."""

    what: str
    client: str = ""
    entry: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = [f"line {self.line}"] if self.line else []
        place += [f"client {self.client}"] if self.client else []
        place += [f"entry {self.entry}"] if self.entry is not None else []
        return f"{', '.join(place)}: {self.what}" if place else self.what


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one key of a ledger has spent, by replay.

    For the unit user, `dataset` and `block` are empty: its charges add over all of the device.
    `protected` counts the charges whose own promise is to this unit.
    """

    client: str
    unit: str
    dataset: str
    block: str
    charges: int
    protected: int
    epsilon: float


@dataclass(kw_only=True)
class Verdict:
    """What a verification found.

    Attributes:
        books: Each client's entries as far as they could be believed.
        budgets: What was spent, by key.
        artefacts: How many released artefacts were found in the folder, and hold.
        absent: How many aren't there.
        heads: How many kept heads it was held against.
        defects: Everything wrong. A client's lines after its first broken one aren't looked at.
    """

    books: dict[str, Book] = field(default_factory=dict)
    budgets: list[Budget] = field(default_factory=list)
    artefacts: int = 0
    absent: int = 0
    heads: int = 0
    defects: list[Defect] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.defects


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What to hold an export against.

    Attributes:
        accountant: Recomputes ε.
        heads: Heads that another party kept.
        limits: Caps by the hash of the policy that they come from, replayed charge by charge for
            the charges that name it; under the empty name: for all others.
        max_epsilon: A cap on the ε of every key that some charge protects, at the accountant's δ.
        artefacts: A folder of what was released.
        all_artefacts: Whether every released artefact must be in it.
    """

    accountant: Accountant
    heads: Sequence[KeptHead] = ()
    limits: Mapping[str, Limit] = field(default_factory=dict)
    max_epsilon: float | None = None
    artefacts: Path | None = None
    all_artefacts: bool = False


def verify_export(path: Path, checks: Checks) -> Verdict:
    """Verify an export, or a ledger itself, and say everything that is wrong with it.

    Raises:
        LedgerError: The file, or the folder of artefacts, can't be read at all.
    """
    verdict = Verdict()
    try:
        lines = read_lines(path)
    except LedgerError as error:
        if path.is_file():
            verdict.defects.append(Defect(what=str(error)))
            return verdict
        raise
    replay_lines(lines, verdict)
    if not verdict.books and not verdict.defects:
        verdict.defects.append(Defect(what="there is no entry: an empty file proves nothing"))
    for client, book in verdict.books.items():
        _account(client, book, checks, verdict)
    for head in checks.heads:
        verdict.heads += 1
        _compare_head(head, verdict)
    if checks.artefacts is not None:
        with errors("read the artefacts of", checks.artefacts):
            _check_artefacts(checks.artefacts, checks.all_artefacts, verdict)
    return verdict


def replay_lines(lines: Iterable[bytes], verdict: Verdict, first: int = 1) -> None:
    """Add lines to a verdict, one by one: encoding, hash, chain, signature, order of states.

    After a broken line, everything up to the next opening is left out: it hangs from the break.
    """
    current = next(reversed(verdict.books), None)
    broken = False
    for number, line in enumerate(lines, start=first):
        book = verdict.books.get(current) if current is not None else None
        client, place = current or "", book.count if book is not None else None
        try:
            signed = parse_line(line)
            opening = isinstance(signed.entry, Opened)
            if broken and not opening:
                continue
            client, place = signed.entry.client, signed.entry.index
            if opening and client != current:
                book = _begin(client, current, verdict)
            if book is None:
                raise LedgerError("a ledger begins with its opening")
            book.check_signature(signed)
            book.add(signed.entry)
            verdict.books[client] = book
            current, broken = client, False
        except LedgerError as error:
            if not broken:
                what = str(error)
                verdict.defects.append(Defect(what=what, client=client, entry=place, line=number))
            broken = True


def _begin(client: str, current: str | None, verdict: Verdict) -> Book:
    if client in verdict.books or (current is not None and client < current):
        raise LedgerError(f"client {client} is out of order: an export goes by client")
    return Book()


def _account(client: str, book: Book, checks: Checks, verdict: Verdict) -> None:
    sound: list[Reserve] = []
    for entry in book.reserved:
        try:
            checks.accountant.check(entry)
            limit = checks.limits.get(entry.policy_sha256, checks.limits.get(""))
            if limit is not None:
                limit.would_allow(sound, entry)
        except SordinoError as error:
            verdict.defects.append(Defect(what=str(error), client=client, entry=entry.index))
            continue
        sound.append(entry)
    blocks = {(entry.dataset, entry.block): entry for entry in sound}
    for (dataset, block), entry in blocks.items():
        own = against(sound, entry, "record")
        _add_up(own, ("record", dataset, block), client, checks, verdict)
    if sound:
        _add_up(sound, ("user", "", ""), client, checks, verdict)


def _add_up(
    charges: Sequence[Reserve],
    key: tuple[str, str, str],
    client: str,
    checks: Checks,
    verdict: Verdict,
) -> None:
    unit, dataset, block = key
    budget = Budget(
        client=client,
        unit=unit,
        dataset=dataset,
        block=block,
        charges=len(charges),
        protected=sum(entry.unit == unit for entry in charges),
        epsilon=checks.accountant.epsilon(charges, unit),
    )
    verdict.budgets.append(budget)
    cap = checks.max_epsilon
    if cap is not None and budget.protected and budget.epsilon > cap:
        over = _first_over(charges, unit, cap, checks.accountant)
        where = " ".join(part for part in key if part)
        what = f"epsilon {budget.epsilon} of {where} passes the cap {cap}"
        verdict.defects.append(Defect(what=what, client=client, entry=over.index))


def _first_over(
    charges: Sequence[Reserve], unit: str, cap: float, accountant: Accountant
) -> Reserve:
    """The first charge with which ε passes the cap: ε never falls as charges are added."""
    low, high = 0, len(charges)  # within the cap, and past it
    while high - low > 1:
        middle = (low + high) // 2
        if accountant.epsilon(charges[:middle], unit) > cap:
            high = middle
        else:
            low = middle
    return charges[high - 1]


def _compare_head(head: KeptHead, verdict: Verdict) -> None:
    books = [
        book for client, book in verdict.books.items() if not head.client or client == head.client
    ]
    short = head.sha256[:12]
    if any(book.hash_at(head.index) == head.sha256 for book in books):
        if head.public_key and all(head.public_key not in book.keys for book in books):
            what = f"the kept head {short} was signed by another key, {head.public_key[:12]}"
            verdict.defects.append(Defect(what=what, client=head.client, entry=head.index))
        return
    if not books:
        what = f"the kept head {short} is of a client that the export leaves out"
    elif all(book.count <= head.index for book in books):
        what = f"rolled back: the kept head {short} is not there, the tail was cut"
    else:
        what = f"rewritten: another entry stands where the kept head {short} stood"
    verdict.defects.append(Defect(what=what, client=head.client, entry=head.index))


def _check_artefacts(folder: Path, all_artefacts: bool, verdict: Verdict) -> None:
    released = {
        standing.artefact: (client, standing.number)
        for client, book in verdict.books.items()
        for standing in book.charges.values()
        if standing.artefact
    }
    found = set()
    for file, named in _artefacts(folder):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        name = file.relative_to(folder)
        if digest in released:
            found.add(digest)
        elif named in released:
            client, number = released[named]
            what = f"the released artefact {name} is not what was released: it hashes to {digest}"
            verdict.defects.append(Defect(what=what, client=client, entry=number))
        else:
            verdict.defects.append(Defect(what=f"no entry releases {name} ({digest})"))
    absent = sorted(set(released) - found)
    verdict.artefacts, verdict.absent = len(found), len(absent)
    for digest in absent if all_artefacts else ():
        client, number = released[digest]
        what = f"the released artefact {digest} is missing from {folder}"
        verdict.defects.append(Defect(what=what, client=client, entry=number))


def _artefacts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that say they are updates, with the hash in their name if there is one.

    What begins with a dot is a draft that a crash left: it was never sent.
    """
    for file in sorted(folder.rglob("*")):
        named = _NAMED_BY_HASH.search(file.name)
        is_update = named is not None or file.suffix == ".update"
        if is_update and file.is_file() and not file.name.startswith("."):
            yield file, named[1] if named else ""
