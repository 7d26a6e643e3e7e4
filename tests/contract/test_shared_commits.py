"""Writers that wait become durable together, and one that fails is undone alone."""

import threading

import pytest
from sqlalchemy import event
from support.devices import until

from sordino.core.errors import StoreError
from sordino.server.store import Device, Nonce, SqlStore
from sordino.server.store.commits import Turns


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request, tmp_path):
    sqlite = request.param == "sqlite"
    made = SqlStore(tmp_path / "x.db" if sqlite else request.getfixturevalue("databases")())
    with made.write("begin") as tx:
        tx.add(Device(device_id="d", name="", enrolled_ms=1))
    yield made
    made.close()


def nonce(name):
    return Nonce(device_id="d", nonce=name, statement_sha256="x", expires_ms=1)


def names(store):
    with store.read() as rows:
        return {row.nonce for row in rows.all(Nonce)}


def together(store, *bodies):
    """Let these bodies be parts of one transaction: the first holds until the others wait."""
    outcomes = {}

    def write(name, body):
        try:
            with store.write(name) as tx:
                if name == "0":
                    until(lambda: len(store._turns._waiting) == len(bodies) - 1)
                tx.add(nonce(name))
                body(tx)
            outcomes[name] = "durable" if name in names(store) else "not to be read"
        except (StoreError, ZeroDivisionError) as error:
            outcomes[name] = type(error).__name__

    threads = []
    for place, body in enumerate(bodies):
        threads.append(threading.Thread(target=write, args=(str(place), body)))
        threads[-1].start()
        if place == 0:
            until(lambda: store._turns._taken)
        else:
            until(lambda: len(store._turns._waiting) == len(threads) - 1 or not store._turns._taken)
    for thread in threads:
        thread.join()
    return [outcomes[str(place)] for place in range(len(bodies))]


def nothing(tx):
    pass


def fail(tx):
    raise ZeroDivisionError


def test_those_that_wait_are_synced_once(store):
    syncs = []
    event.listen(store._engine, "commit", lambda _: syncs.append(1))
    assert together(store, *[nothing] * 8) == ["durable"] * 8
    assert len(syncs) == 1
    with store.write("alone") as tx:
        tx.add(nonce("alone"))
    assert len(syncs) == 2


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_that_raises_is_undone_alone(store, failing):
    bodies = [fail if place == failing else nothing for place in range(3)]
    ended = together(store, *bodies)
    assert ended == ["ZeroDivisionError" if body is fail else "durable" for body in bodies]
    assert names(store) == {str(place) for place in range(3) if place != failing}


def test_a_row_that_the_schema_refuses_is_undone_alone(store):
    ended = together(store, nothing, lambda tx: tx.add(nonce("0")), nothing)
    assert ended == ["durable", "StoreError", "durable"]
    assert names(store) == {"0", "2"}


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_commit_that_fails_is_told_to_all(store):
    def orphan(tx):
        tx._connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        tx.add(Nonce(device_id="nobody", nonce="o", statement_sha256="x", expires_ms=1))

    assert together(store, nothing, orphan, nothing) == ["StoreError"] * 3
    assert names(store) == set()
    assert together(store, nothing, nothing) == ["durable"] * 2


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_transaction_that_the_database_gave_up_is_lost_for_all(store):
    def full(tx):  # as SQLite does when its disk is full
        tx._connection.exec_driver_sql("ROLLBACK")
        raise ZeroDivisionError

    def unnoticed(tx):
        tx._connection.exec_driver_sql("ROLLBACK")

    for lost in (full, unnoticed):
        ended = together(store, nothing, lost, nothing)
        assert ended[0] == "StoreError"
        assert ended[1] != "durable"
        assert names(store) == ({"2"} if ended[2] == "durable" else set())
        with store.write("mend") as tx:
            tx.remove(Nonce, device_id="d")
    assert together(store, nothing, nothing) == ["durable"] * 2


def test_turns_go_in_order():
    turns, order = Turns(), []

    def take(number):
        with turns:
            order.append(number)

    with turns:
        threads = []
        for number in range(20):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            until(lambda: len(turns._waiting) == len(threads))
    for thread in threads:
        thread.join()
    assert order == list(range(20))
