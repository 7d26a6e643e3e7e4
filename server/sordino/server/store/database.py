"""The store over SQLAlchemy Core: SQLite by default, PostgreSQL through the same code.

A write transaction is named, is the only one, and is on stable storage when its block ends. What is
read in it can't change before. Those that wait for one another are synced together (`commits`). On
SQLite that is WAL, `synchronous=FULL` and BEGIN IMMEDIATE; on PostgreSQL `synchronous_commit=on`
and an advisory lock that every writer takes first.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from sordino.core import durable
from sordino.core.errors import StoreError, expected
from sordino.server.store.commits import Shared, Turns
from sordino.server.store.migrations import migrate
from sordino.server.store.schema import TABLES

Hook = Callable[[str], None]
"""Told the name of each step as it is reached: `open-round:written`, `open-round:durable`, .."""

RowT = TypeVar("RowT")

_WAIT_S: Final = 60.0  # how long a writer waits for the one before it
_WRITER: Final = 0x534F5244494E4F  # "SORDINO": PostgreSQL's advisory lock of the writer


def no_hook(step: str) -> None:
    """The hook that does nothing."""


class Reader(Protocol):
    """A consistent view of all rows. Columns are named by the records' fields."""

    def find(self, kind: type[RowT], /, *key: str | int) -> RowT | None:
        """The row of a key, if there is one."""
        ...

    def all(
        self,
        kind: type[RowT],
        /,
        *,
        order: str = "",
        after: int | None = None,
        limit: int | None = None,
        **equals: object,
    ) -> list[RowT]:
        """The rows whose columns have these values (or one of a tuple of values), by key.

        Args:
            kind: Which table.
            order: Sort by this column; with ``-`` before it, the largest first.
            after: Only those whose `order` column is above.
            limit: At most so many.
            equals: Columns and their values.
        """
        ...

    def count(self, kind: type[Any], /, **equals: object) -> int:
        """How many rows `all` would give."""
        ...

    def total(self, kind: type[Any], column: str, /, **equals: object) -> int:
        """The sum of a column over these rows."""
        ...

    def largest(self, kind: type[Any], column: str, /, **equals: object) -> int:
        """The largest value of a column over these rows, or 0."""
        ...


class Writer(Reader, Protocol):
    """The open write transaction. There is one at a time."""

    def add(self, row: RowT) -> RowT:
        """Add a row.

        Raises:
            StoreError: Its key is taken, or the schema forbids it.
        """
        ...

    def change(self, row: RowT, **changes: object) -> RowT:
        """Change columns of a row, and give it as it then is.

        Raises:
            StoreError: It isn't there, or the schema forbids it.
        """
        ...

    def remove(
        self, kind: type[Any], /, *, below: tuple[str, int] | None = None, **equals: object
    ) -> int:
        """Remove the rows with these values, and that column below that bound; say how many."""
        ...


class Store(Protocol):
    """What the coordinator needs of a database. Any thread may call it."""

    def read(self) -> AbstractContextManager[Reader]:
        """Look, without holding up any writer."""
        ...

    def write(self, name: str) -> AbstractContextManager[Writer]:
        """A named transaction: durable when the block ends, undone if it raises.

        Raises:
            StoreError: The database can't be read or written, or another writer took too long.
        """
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


class SqlStore:
    """The store in an SQL database; made, or brought to the present schema, when it is opened.

    Args:
        where: A file for SQLite, or a URL such as ``postgresql+psycopg://user@host/name``.
        at: Told each step as it is reached.

    Raises:
        StoreError: The database can't be opened, or is of a later version.
    """

    def __init__(self, where: Path | str, *, at: Hook = no_hook) -> None:
        self._at = at
        self._turns = Turns()
        self._shared: Shared | None = None
        self.where = str(where).rsplit("@", maxsplit=1)[-1]  # without a password
        with _errors("open", self.where):
            self._engine = _sqlite(where) if isinstance(where, Path) else _postgres(where)
        with self._writing("migrate") as connection:
            migrate(connection)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """See `Store.read`."""
        with _errors("read", self.where), self._engine.connect() as connection:
            yield _Rows(connection)

    @contextmanager
    def write(self, name: str) -> Iterator[Writer]:
        """See `Store.write`."""
        with self._writing(name) as connection:
            yield _Rows(connection)

    def close(self) -> None:
        """See `Store.close`."""
        self._engine.dispose()

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of an SQLite store to a new file, while it is in use.

        Raises:
            StoreError: It isn't SQLite (use pg_dump), or the file is there or can't be written.
        """
        if self._engine.dialect.name != "sqlite":
            raise StoreError(expected("store", self.where, "SQLite", "copy it with pg_dump"))
        with _errors("copy", self.where), self._engine.connect() as connection:
            connection.rollback()
            connection.connection.driver_connection.execute(  # type: ignore[union-attr]
                "VACUUM INTO ?", (str(path),)
            )
        durable.sync_folder(path.parent)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Connection]:
        with _errors("write", self.where):
            with self._turns:
                shared = self._shared = self._shared or Shared(self._engine, _begin_writing)
                try:
                    with shared.part() as connection:
                        yield connection
                        self._at(f"{name}:written")
                except BaseException:
                    self._end(shared)
                    raise
            with self._turns:  # after whoever waited: what they wrote is synced with ours
                self._end(shared)
            shared.require_durable()
            self._at(f"{name}:durable")

    def _end(self, shared: Shared) -> None:
        """End a shared transaction, if it hasn't; the next writer begins another."""
        if self._shared is shared:
            self._shared = None
        shared.end()


class _Rows:
    """Reader and Writer over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(self, kind: type[RowT], /, *key: str | int) -> RowT | None:
        names = (column.name for column in TABLES[kind].primary_key.columns)
        equals: dict[str, Any] = dict(zip(names, key, strict=True))
        found = self.all(kind, **equals)
        return found[0] if found else None

    def all(
        self,
        kind: type[RowT],
        /,
        *,
        order: str = "",
        after: int | None = None,
        limit: int | None = None,
        **equals: object,
    ) -> list[RowT]:
        table = TABLES[kind]
        query = select(table).where(*_where(kind, equals)).limit(limit)
        if order:
            column = table.c[order.removeprefix("-")]
            query = query.order_by(column.desc() if order.startswith("-") else column)
            if after is not None:
                query = query.where(column > after)
        query = query.order_by(*table.primary_key.columns)
        return [kind(**row) for row in self._connection.execute(query).mappings()]

    def count(self, kind: type[Any], /, **equals: object) -> int:
        query = select(func.count()).select_from(TABLES[kind]).where(*_where(kind, equals))
        return int(self._connection.execute(query).scalar_one())

    def total(self, kind: type[Any], column: str, /, **equals: object) -> int:
        return self._one(kind, func.sum(TABLES[kind].c[column]), equals)

    def largest(self, kind: type[Any], column: str, /, **equals: object) -> int:
        return self._one(kind, func.max(TABLES[kind].c[column]), equals)

    def add(self, row: RowT) -> RowT:
        self._connection.execute(insert(TABLES[type(row)]).values(asdict(row)))  # type: ignore[call-overload]
        return row

    def change(self, row: RowT, **changes: object) -> RowT:
        table = TABLES[type(row)]
        key = {column.name: getattr(row, column.name) for column in table.primary_key.columns}
        statement = update(table).where(*_where(type(row), key)).values(changes)
        if self._connection.execute(statement).rowcount != 1:
            raise StoreError(f"{table.name} has no row {key}")
        return replace(row, **changes)  # type: ignore[type-var]

    def remove(
        self, kind: type[Any], /, *, below: tuple[str, int] | None = None, **equals: object
    ) -> int:
        table = TABLES[kind]
        conditions = _where(kind, equals)
        if below is not None:
            conditions.append(table.c[below[0]] < below[1])
        if not conditions:
            raise StoreError(f"expected a condition, or all of {table.name} would go")
        statement = delete(table).where(*conditions)
        return int(self._connection.execute(statement).rowcount)

    def _one(self, kind: type[Any], what: Any, equals: Mapping[str, object]) -> int:
        query = select(what).where(*_where(kind, equals))
        return int(self._connection.execute(query).scalar() or 0)


def _where(kind: type[Any], equals: Mapping[str, object]) -> list[Any]:
    columns = TABLES[kind].c
    return [
        columns[name].in_(value) if isinstance(value, tuple) else columns[name] == value
        for name, value in equals.items()
    ]


def _sqlite(path: Path) -> Engine:
    durable.make_folder(path.parent)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
        durable.sync_folder(path.parent)
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path.absolute())),
        connect_args={"timeout": _WAIT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # this module begins transactions itself
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            todo = "keep the store on a local file system"
            raise StoreError(expected("journal_mode", mode, "wal", todo))
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get("sordino_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _postgres(url: str) -> Engine:
    if not url.startswith("postgresql+psycopg://"):
        raise StoreError(
            expected("store", url.rsplit("@", maxsplit=1)[-1], "a postgresql+psycopg:// URL")
        )
    try:
        return create_engine(url, isolation_level="REPEATABLE READ", pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise StoreError("PostgreSQL needs psycopg: install sordino[postgres]") from error


def _begin_writing(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.execution_options(sordino_writing=True)
        connection.begin()
        return
    # Not a snapshot from before the lock: each statement sees what the last writer committed.
    connection.execution_options(isolation_level="READ COMMITTED")
    connection.begin()
    connection.execute(text(f"SET LOCAL lock_timeout = {int(_WAIT_S * 1000)}"))
    connection.execute(text("SET LOCAL synchronous_commit = on"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITER})


@contextmanager
def _errors(verb: str, where: object) -> Iterator[None]:
    """Turn what a disk or a database says into a `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"can't {verb} the store {where}: {error.strerror}") from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        raise StoreError(f"can't {verb} the store {where}: {cause}") from error
