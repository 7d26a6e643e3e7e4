"""What every store must do: SQLite here, and PostgreSQL where it is (marker `slow`)."""

import sqlite3
import threading
from dataclasses import fields

import pytest
from sqlalchemy import inspect
from support import fleets
from support.fleets import RUN, Clock, Powers, answer, rows_of

from sordino.core.errors import StoreError
from sordino.server.store import (
    ArtefactRow,
    Device,
    Event,
    Nonce,
    Round,
    Run,
    SqlStore,
    Task,
)
from sordino.server.store.migrations import MIGRATIONS, migrate
from sordino.server.store.schema import KEYS, TABLES

BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(params=BACKENDS)
def where(request, tmp_path):
    """A place for one store: a file, or a new database's URL."""
    if request.param == "sqlite":
        return tmp_path / "store.db"
    return request.getfixturevalue("databases")()


@pytest.fixture
def store(where):
    made = SqlStore(where)
    yield made
    made.close()


def device(device_id, **changes):
    return Device(**{"device_id": device_id, "name": "x", "enrolled_ms": 1, **changes})


def add(store, *rows):
    add_each(store, rows)


def add_each(store, rows):
    with store.write("test") as tx:
        for row in rows:
            tx.add(row)


def test_the_schema_has_the_records_fields(store):
    inspector = inspect(store._engine)
    for kind, (table, key) in KEYS.items():
        assert {column["name"] for column in inspector.get_columns(table)} == {
            field.name for field in fields(kind)
        }
        assert tuple(inspector.get_pk_constraint(table)["constrained_columns"]) == key
        assert TABLES[kind].name == table


def test_rows_come_back_as_they_were(store):
    rows = [device("a"), device("ß", name="né\n", failures=2**40), device("c", state="left")]
    add(store, *rows)
    with store.read() as reader:
        assert reader.find(Device, "ß") == rows[1]
        assert reader.find(Device, "none") is None
        assert reader.all(Device, state=("active", "left"), order="-failures", limit=1) == [rows[1]]
        assert reader.all(Device, state=()) == []
        assert reader.all(Device, order="enrolled_ms", after=1) == []
        assert reader.count(Device, state="active") == 2
        assert reader.total(Device, "failures") == reader.largest(Device, "failures") == 2**40
        assert reader.total(Device, "failures", state="none") == 0


def test_changes_and_removals(store):
    add(store, device("a"), device("b"))
    add(
        store,
        *[Nonce(device_id="a", nonce=str(n), statement_sha256="", expires_ms=n) for n in range(5)],
    )
    with store.write("test") as tx:
        assert tx.change(tx.find(Device, "a"), failures=3) == device("a", failures=3)
        assert tx.remove(Nonce, below=("expires_ms", 3)) == 3
        assert tx.remove(Nonce, device_id="b") == 0
        with pytest.raises(StoreError, match="no row"):
            tx.change(device("c"), failures=1)
        with pytest.raises(StoreError, match="condition"):
            tx.remove(Nonce)
    with store.read() as reader:
        assert reader.find(Device, "a").failures == 3
        assert reader.count(Nonce) == 2


def test_a_block_that_raises_leaves_nothing(store):
    def rows():
        yield device("a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_each(store, rows())
    with store.read() as reader:
        assert reader.count(Device) == 0


@pytest.mark.parametrize(
    "row",
    [
        device("a"),
        device("b", state="dancing"),
        Nonce(device_id="nobody", nonce="", statement_sha256="", expires_ms=1),
        ArtefactRow(sha256="ab", size=0, kind="plan", made_ms=1),
        Round(run_id="nobody", round=1),
        Task(task_id="t", run_id="nobody", round=1, device_id="a", deadline_ms=1),
    ],
    ids=["twice", "unknown-word", "nobody's", "no-bytes", "no-run", "no-round"],
)
def test_what_the_schema_forbids(store, row):
    add(store, device("a"))
    with pytest.raises(StoreError):
        add(store, row)
    with store.read() as reader:
        assert reader.count(Device) == 1


def test_a_run_has_one_unfinished_round(store):
    plan = ArtefactRow(sha256="ab", size=1, kind="plan", made_ms=1)
    run = Run(
        run_id="r",
        state="running",
        settings="",
        trust="none",
        plan="ab",
        base="ab",
        manifest="ab",
        rounds_planned=1,
        cohort=1,
        min_updates=1,
        timeout_ms=1,
        max_answer_bytes=1,
        started_ms=1,
    )
    add(store, plan, run, Round(run_id="r", round=1, state="published"), Round(run_id="r", round=2))
    with pytest.raises(StoreError):
        add(store, Round(run_id="r", round=3))


def test_events_are_append_only(store):
    add(store, Event(number=1, at_ms=1, kind="x"))
    with pytest.raises(StoreError, match="append-only"), store.write("test") as tx:
        tx.change(Event(number=1, at_ms=1, kind="x"), kind="y")
    with pytest.raises(StoreError, match="append-only"), store.write("test") as tx:
        tx.remove(Event, number=1)
    with store.read() as reader:
        assert [event.kind for event in reader.all(Event)] == ["x"]


def test_writers_wait_for_one_another_and_readers_for_nobody(where):
    stores = [SqlStore(where), SqlStore(where)]
    add(stores[0], device("a"))

    def work(store):
        for _ in range(10):
            with store.write("test") as tx:
                row = tx.find(Device, "a")
                tx.change(row, failures=row.failures + 1)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores * 2]
    with stores[0].write("test") as tx:
        for thread in threads:
            thread.start()
        tx.change(tx.find(Device, "a"), name="held")
        with stores[1].read() as reader:
            assert reader.find(Device, "a") == device("a")
    for thread in threads:
        thread.join()
    with stores[0].read() as reader:
        assert reader.find(Device, "a").failures == 40
    for store in stores:
        store.close()


def test_a_reader_sees_one_moment(store):
    add(store, device("a"))
    with store.read() as reader:
        assert reader.count(Device) == 1
        add(store, device("b"))
        assert reader.count(Device) == 1


def test_steps_are_told_around_the_commit(where):
    steps = []
    store = SqlStore(where, at=steps.append)
    add(store, device("a"))
    assert steps == ["migrate:written", "migrate:durable", "test:written", "test:durable"]
    with pytest.raises(StoreError):
        add(store, device("a"))
    assert len(steps) == 4
    store.close()


def test_it_migrates_once_and_refuses_a_later_schema(where):
    SqlStore(where).close()
    store = SqlStore(where)
    with store._engine.connect() as connection:
        assert migrate(connection) == len(MIGRATIONS)
        with pytest.raises(StoreError, match="newer sordino"):
            migrate(connection, to=len(MIGRATIONS) - 1)
    store.close()


def test_a_run_on_it(where, tmp_path):
    url = where if isinstance(where, str) else None
    work, clock = Powers(), Clock()
    for number in (1, 2):
        with fleets.fleet(tmp_path, devices=3, clock=clock, url=url) as made:
            if number == 1:
                fleets.start(made, tmp_path, rounds=2)
            fleets.advance(made, work, RUN)
            for task in rows_of(made, Task, run_id=RUN, round=number):
                answer(made, work, task.device_id)
            fleets.advance(made, work, RUN)
            assert fleets.adapter(made)[-1] == [number, 7]


# --- SQLite alone --------------------------------------------------------------------------------


def test_sqlite_is_durable_and_for_its_owner_only(tmp_path):
    store = SqlStore(tmp_path / "new" / "store.db")
    assert (tmp_path / "new" / "store.db").stat().st_mode & 0o777 == 0o600
    with store._engine.connect() as connection:
        ask = lambda name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()  # noqa: E731
        assert (ask("journal_mode"), ask("synchronous"), ask("foreign_keys")) == ("wal", 2, 1)
    store.close()


def test_a_copy_of_a_store_in_use(tmp_path):
    store = SqlStore(tmp_path / "store.db")
    add(store, device("a"))
    store.copy_to(tmp_path / "copy.db")
    with pytest.raises(StoreError):
        store.copy_to(tmp_path / "copy.db")
    copy = SqlStore(tmp_path / "copy.db")
    with copy.read() as reader:
        assert reader.all(Device) == [device("a")]
    copy.close()
    store.close()


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello, this is not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        SqlStore(tmp_path / "text")
    with pytest.raises(StoreError, match="postgresql") as refused:
        SqlStore("mysql://user:secret@host/db")
    assert "secret" not in str(refused.value)


def test_a_full_disk_refuses_and_leaves_nothing(tmp_path):
    store = SqlStore(tmp_path / "store.db")
    with store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        add(store, *[device(f"d{n}", capabilities="x" * 1000) for n in range(50)])
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("SELECT count(*) FROM devices").fetchone() == (0,)
    store.close()
