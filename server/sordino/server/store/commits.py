"""Writers that wait for one another become durable together: one sync of the disk for all of them.

Each write transaction is a savepoint within a shared one. Whoever has written queues once more, and
the first whose turn comes again commits for all that went in between. Where nobody waits, that is
at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from sordino.core.errors import StoreError


class Turns:
    """A lock that is handed on in the order in which it was asked for."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:  # an interrupt: the turn must not go to nobody
            with self._mutex:
                handed = gate not in self._waiting
                if not handed:
                    self._waiting.remove(gate)
            if handed:
                self._next()
            raise

    def __exit__(self, *_: object) -> None:
        self._next()

    def _next(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class Shared:
    """A transaction in which several writers write, one after another, each holding the turn.

    Args:
        engine: Whose connection.
        begin: Begins a transaction for writing.
    """

    def __init__(self, engine: Engine, begin: Callable[[Connection], None]) -> None:
        self._connection = engine.connect()
        self._over = False
        self._failed: Exception | None = None
        try:
            begin(self._connection)
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def part(self) -> Iterator[Connection]:
        """One writer's part, undone by itself if it raises.

        Where the database has given up the whole transaction (its disk is full, say), all parts are
        lost, and their writers will know it.
        """
        savepoint = self._connection.begin_nested()
        try:
            yield self._connection
            savepoint.commit()
        except BaseException:
            try:
                savepoint.rollback()
            except SQLAlchemyError as error:
                self._failed = error
            raise

    def end(self) -> None:
        """Make all parts durable, or none; once."""
        if self._over:
            return
        self._over = True
        try:
            if self._failed is None and not self._is_open():
                self._failed = StoreError("the database ended the transaction")
            if self._failed is None:
                self._connection.commit()
        except SQLAlchemyError as error:
            self._failed = error
        finally:
            if self._failed is not None:
                self._connection.invalidate()  # nobody knows what its transaction is
            self._connection.close()

    def require_durable(self) -> None:
        """Whether the parts are durable.

        Raises:
            StoreError: They are not, and nothing of them was written.
        """
        if self._failed is not None:
            cause = getattr(self._failed, "orig", None) or self._failed
            raise StoreError(f"can't write the store: {cause}") from self._failed

    def _is_open(self) -> bool:
        """Whether there is a transaction to commit: SQLite's module commits nothing in silence."""
        driver = self._connection.connection.driver_connection
        return bool(getattr(driver, "in_transaction", True))
