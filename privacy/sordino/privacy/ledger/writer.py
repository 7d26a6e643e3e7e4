"""The holder's pen: key and database found or made together, and entries appended in order."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sordino.core import durable
from sordino.core.errors import LedgerError, expected
from sordino.privacy.ledger import database
from sordino.privacy.ledger.book import Book, replay
from sordino.privacy.ledger.entries import Entry, Opened, Rekeyed, Signed, parse_line
from sordino.privacy.ledger.keys import LedgerKey, load_key

Hook = Callable[[str], None]
"""Told the name of each step as it is reached: `commit:written`, `commit:durable`, .."""

AnEntry = TypeVar("AnEntry", bound=Entry)


class Page:
    """One transaction: the book as it is now, and what is added to it."""

    def __init__(self, db: database.Transaction, book: Book, key: LedgerKey, stamp: Stamp) -> None:
        self.book = book
        self.added = ""  # the state that was appended last
        self._db = db
        self._key = key
        self._stamp = stamp

    def next(self, cls: type[AnEntry], **values: Any) -> AnEntry:
        """The entry that would come next; it isn't added yet.

        Raises:
            LedgerError: It can't be next, or is none that could be read again.
        """
        entry = cls(**self._stamp(self.book), **values)
        try:
            self._line(entry)
        except ValueError as error:  # a NaN, or no JSON at all
            raise LedgerError(f"an entry can't say this: {error}") from error
        self.book.check(entry)
        return entry

    def append(self, entry: Entry) -> None:
        """Sign an entry and write it into the transaction."""
        line = self._line(entry)
        self.book.add(entry)
        self._db.append(entry.index, line)
        self.added = entry.state

    def _line(self, entry: Entry) -> bytes:
        line = Signed(entry, self._key.sign(entry.sha256)).line()
        if parse_line(line).entry != entry:  # what is written must be what is read
            raise LedgerError(f"entry {entry.index} would not be read as it is written")
        return line


Stamp = Callable[[Book], dict[str, Any]]


class Pen:
    """Key and database of one holder. Several processes may share them: writers wait in line.

    Raises:
        LedgerError: They can't be read or written, are damaged, or one of the two is missing.
    """

    def __init__(
        self, path: Path, client_id: str, *, now: Callable[[], datetime], at: Hook
    ) -> None:
        self.path = path
        self.client_id = client_id
        self.at = at
        self._now = now
        self._book = Book()
        self._thread = threading.RLock()
        self._key_path, self._draft_path = beside(path, ".key"), beside(path, ".key.next")
        with errors("open", path):
            durable.make_folder(path.parent)
            with durable.locked(beside(path, ".lock")):
                self._find_or_make()
                self._settle_keys()

    @contextmanager
    def page(self, verb: str) -> Iterator[Page]:
        """One transaction: durable when the block is left, or as if it had never been."""
        with self._thread, errors(verb, self.path):
            try:
                with database.write(self.path) as db:
                    book = self._load(db)
                    page = Page(db, book, self._key_of(book), self._stamp)
                    yield page
                    if page.added:
                        self.at(f"{page.added}:written")
            except BaseException:
                self._book = Book()  # it may hold what was rolled back: it is read anew
                raise
            if page.added:
                self.at(f"{page.added}:durable")

    def rotate(self) -> str:
        """Replace the key; the old one signs the new one in. Returns the new public key."""
        with errors("write", self.path), durable.locked(beside(self.path, ".lock")):
            self._settle_keys()
            draft = LedgerKey.generate()
            draft.save(self._draft_path)
            with self.page("write") as page:
                proof = draft.prove(self.client_id, page.book.public_key)
                page.append(page.next(Rekeyed, public_key=draft.public, proof=proof))
            self._settle_keys()
        return draft.public

    def _find_or_make(self) -> None:
        """Under the lock. The key becomes the key only once the database is there with it."""
        if not self._key_path.exists() and not self._draft_path.exists():
            if self.path.exists() and database.read(self.path):
                raise LedgerError(
                    f"{self.path} is here and its key {self._key_path} is not: restore it"
                )
            LedgerKey.generate().save(self._draft_path)
        with database.write(self.path) as db:
            if db.has_schema():
                return
            if self._key_path.exists():
                raise LedgerError(
                    f"the ledger of {self._key_path} is gone: restore {self.path} from a backup; "
                    "what it charged can't be forgotten"
                )
            db.make_schema()
            key = load_key(self._draft_path)
            page = Page(db, Book(), key, self._stamp)
            page.append(page.next(Opened, public_key=key.public))
            self.at("opened:written")
        self.at("opened:durable")

    def _settle_keys(self) -> None:
        """Finish or undo what a crash cut short: the ledger's last word on its key holds."""
        with self.page("read") as page:
            in_force = page.book.public_key
        if not self._draft_path.exists():
            return
        if load_key(self._draft_path).public == in_force:
            self._draft_path.replace(self._key_path)
        else:
            self._draft_path.unlink()
        durable.sync_folder(self.path.parent)

    def _key_of(self, book: Book) -> LedgerKey:
        for path in (self._key_path, self._draft_path):  # the second: amid a rotation
            if path.exists():
                key = load_key(path)
                if key.public == book.public_key:
                    return key
        raise LedgerError(f"{self._key_path} is not the key of {self.path}: restore the right one")

    def _stamp(self, book: Book) -> dict[str, Any]:
        return {
            "client": self.client_id,
            "index": book.count,
            "time": self._now().astimezone(UTC).isoformat(timespec="seconds"),
            "prev": book.head,
        }

    def _load(self, db: database.Transaction) -> Book:
        """The book as the database has it; of what was read before, only the head is compared."""
        book = self._book
        if not db.has_schema():
            raise LedgerError(f"{self.path} is empty: restore it from a backup")
        lines = db.lines(max(book.count - 1, 0))
        if book.count:
            if not lines or parse_line(lines[0]).entry.sha256 != book.head:
                raise LedgerError(f"{self.path} was replaced while it was in use")
            lines = lines[1:]
        replay(lines, book, str(self.path))
        if book.client != self.client_id:
            raise LedgerError(
                f"{self.path}: {expected('client', book.client, f'to be {self.client_id}')}"
            )
        return book


@contextmanager
def errors(verb: str, path: Path) -> Iterator[None]:
    """Turn what a disk or a database says into a `LedgerError`."""
    try:
        yield
    except OSError as error:
        raise LedgerError(f"can't {verb} the ledger {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise LedgerError(f"can't {verb} the ledger {path}: {error}") from error


def beside(path: Path, suffix: str) -> Path:
    """A file of the ledger's own, next to it."""
    return path.with_name(path.name + suffix)
