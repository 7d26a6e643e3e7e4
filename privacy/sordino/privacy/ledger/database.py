"""The ledger's SQLite file: one table, append-only, WAL, `synchronous=FULL`, one writer at a time.

Nothing here knows what an entry says. A transaction that returned is on stable storage; one that
failed left nothing, but for a failed sync, after which the row may or may not be found: the ledger
then counts it, and nothing was done on its strength.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from sordino.core import durable
from sordino.core.errors import LedgerError, expected

MAGIC: Final = b"SQLite format 3\0"
_APPLICATION: Final = 0x534F5244  # "SORD"
_SCHEMA_VERSION: Final = 2
_WAIT_S: Final = 60.0  # how long a writer waits for the one before it

_SCHEMA: Final = (
    "CREATE TABLE entries(number INTEGER PRIMARY KEY, line BLOB NOT NULL) STRICT",
    "CREATE TRIGGER entries_update BEFORE UPDATE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER entries_delete BEFORE DELETE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    # Also against INSERT OR REPLACE, which deletes without the trigger above.
    "CREATE TRIGGER entries_insert BEFORE INSERT ON entries"
    " WHEN NEW.number IS NOT (SELECT coalesce(max(number) + 1, 0) FROM entries)"
    " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)


class Transaction:
    """An open write transaction: what is read in it can't change until it ends."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def make_schema(self) -> None:
        """Make the table and its triggers."""
        for statement in _SCHEMA:
            self._connection.execute(statement)

    def has_schema(self) -> bool:
        """Whether this is a ledger, and not an empty file.

        Raises:
            LedgerError: It is something else, or of another version.
        """
        return _has_schema(self._connection)

    def lines(self, first: int = 0) -> list[bytes]:
        """The rows from number `first` on."""
        return _lines(self._connection, first)

    def append(self, number: int, line: bytes) -> None:
        """Add a row."""
        self._connection.execute("INSERT INTO entries VALUES (?, ?)", (number, line))


@contextmanager
def write(path: Path) -> Iterator[Transaction]:
    """Hold the writer's lock for a block; commit durably at its end, or roll everything back.

    Raises:
        OSError: The file can't be made.
        sqlite3.Error: It can't be read or written, or another writer holds it for too long.
    """
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
        durable.sync_folder(path.parent)
    with closing(_connect(path)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise LedgerError(
                expected("journal_mode", mode, "wal", "keep the ledger on a local file system")
            )
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield Transaction(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def read(path: Path) -> list[bytes]:
    """All rows, of a ledger that may be in use, or on a disk that can't be written.

    Raises:
        LedgerError: The file is no ledger of this version.
        OSError: It can't be read.
        sqlite3.Error: It is damaged.
    """
    try:
        return _read(path)
    except sqlite3.OperationalError:
        # A reader of a WAL needs a shared-memory file beside it, and maybe can't make one.
        with tempfile.TemporaryDirectory() as folder:
            for suffix in ("", "-wal"):
                source = path.with_name(path.name + suffix)
                if source.exists():
                    shutil.copyfile(source, Path(folder) / f"copy{suffix}")
            return _read(Path(folder) / "copy")


def _read(path: Path) -> list[bytes]:
    with closing(_connect(path, "?mode=ro")) as connection:
        return _lines(connection, 0) if _has_schema(connection) else []


def _connect(path: Path, mode: str = "?mode=rw") -> sqlite3.Connection:
    return sqlite3.connect(
        path.absolute().as_uri() + mode, uri=True, timeout=_WAIT_S, isolation_level=None
    )


def _lines(connection: sqlite3.Connection, first: int) -> list[bytes]:
    rows = connection.execute(
        "SELECT number, line FROM entries WHERE number >= ? ORDER BY number", (first,)
    ).fetchall()
    return [bytes(line) for _, line in rows]


def _has_schema(connection: sqlite3.Connection) -> bool:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return False
    if (application, version) != (_APPLICATION, _SCHEMA_VERSION):
        raise LedgerError(f"not a ledger of version {_SCHEMA_VERSION}")
    return True
