"""The ledger's files: what was done to them is seen, and the key is never shown."""

import copy
import logging
import pickle
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from support.ledgers import clock, filled, make_plan

from sordino.core.errors import LedgerError
from sordino.privacy.ledger import (
    Commit,
    Ledger,
    Opened,
    Rekeyed,
    entries,
    export_ledgers,
    read_charges,
    read_ledger,
)
from sordino.privacy.ledger.keys import LedgerKey, load_key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.db"


def book_of(path, client="client-1"):
    return read_ledger(path)[client]


def states(path):
    return [entry.state for entry in book_of(path).entries]


# --- append-only, and files that are not what they were -------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET line = x'00' WHERE number = 1",
        "UPDATE entries SET number = 100 WHERE number = 3",
        "DELETE FROM entries",
        "DELETE FROM entries WHERE number = 3",
        "INSERT OR REPLACE INTO entries VALUES (3, x'00')",
        "REPLACE INTO entries VALUES (0, x'00')",
        "INSERT INTO entries VALUES (9, x'00')",
        "INSERT INTO entries VALUES (NULL, x'00')",
    ],
)
def test_the_table_refuses_anything_but_appending(path, statement):
    filled(path, 1)
    before = path.read_bytes()
    with (
        closing(sqlite3.connect(path)) as db,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        db.execute(statement)
    assert path.read_bytes() == before


def test_wal_and_full_sync(path):
    filled(path, 1)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    asked = []
    real = sqlite3.connect

    class Spy(sqlite3.Connection):
        def execute(self, statement, *values):
            asked.append(statement)
            return super().execute(statement, *values)

    sqlite3.connect = lambda *a, **k: real(*a, **k, factory=Spy)
    try:
        filled(path, 0).reserve(make_plan(), 5, "data")
    finally:
        sqlite3.connect = real
    assert asked.index("PRAGMA synchronous=FULL") < asked.index("BEGIN IMMEDIATE")


def tamper(path, statement, *values):
    with closing(sqlite3.connect(path)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute(statement, values)
        db.commit()


@pytest.mark.parametrize(
    ("statement", "entry"),
    [
        ("DELETE FROM entries WHERE number = 2", 2),
        ("UPDATE entries SET line = CAST(replace(line, '1.5', '9.5') AS BLOB) WHERE number = 4", 4),
        ("UPDATE entries SET line = x'7b7d' WHERE number = 5", 5),
    ],
)
def test_a_doctored_database_is_refused_and_the_entry_named(path, statement, entry):
    filled(path)
    tamper(path, statement)
    for opening in (lambda: Ledger(path, "client-1"), lambda: read_ledger(path)):
        with pytest.raises(LedgerError, match=rf"entry {entry}\b|line {entry + 1}\b"):
            opening()


def test_a_rewritten_chain_needs_the_key(path, tmp_path):
    """Everything hashed anew, by somebody else's key: neither replaced nor rekeyed."""
    ledger = filled(path, 1)
    forger = LedgerKey.generate()
    book = book_of(path)
    fields = {"client": "client-1", "time": clock().isoformat(), "index": 4, "prev": book.head}
    proof = forger.prove("client-1", book.public_key)
    for entry in (
        replace(book.entries[1], **fields, round=9),
        Rekeyed(**fields, public_key=forger.public, proof=proof),
    ):
        copied = tmp_path / entry.state
        shutil.copytree(path.parent, copied)
        line = entries.Signed(entry, forger.sign(entry.sha256)).line()
        tamper(copied / path.name, "INSERT INTO entries VALUES (4, ?)", line)
        with pytest.raises(LedgerError, match="signature"):
            Ledger(copied / path.name, "client-1")
    assert ledger.head.index == 3


def test_not_a_ledger(path, tmp_path):
    path.parent.mkdir()
    path.write_bytes(b"SQLite format 3\0" + b"junk" * 2000)
    with pytest.raises(LedgerError, match="can't"):
        Ledger(path, "client-1")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE t(x)")
        db.commit()
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger(other, "client-1")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(LedgerError, match="can't open"):
        Ledger(tmp_path / "folder.db", "client-1")
    with pytest.raises(LedgerError, match="can't read"):
        read_ledger(tmp_path / "absent.jsonl")


def test_a_lost_ledger_does_not_begin_again(path):
    filled(path)
    path.unlink()
    with pytest.raises(LedgerError, match="can't be forgotten"):
        Ledger(path, "client-1")
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="can't be forgotten"):
        Ledger(path, "client-1")


def test_a_lost_or_foreign_key(path, tmp_path):
    filled(path)
    key = path.with_name("ledger.db.key")
    saved = key.read_bytes()
    key.unlink()
    with pytest.raises(LedgerError, match="restore it"):
        Ledger(path, "client-1")
    filled(tmp_path / "other" / "ledger.db")
    shutil.copy(tmp_path / "other" / "ledger.db.key", key)
    with pytest.raises(LedgerError, match="not the key"):
        Ledger(path, "client-1")
    key.write_bytes(saved)
    Ledger(path, "client-1")


def test_an_older_copy_put_back_while_in_use(path, tmp_path):
    ledger = filled(path, 1)
    shutil.copy(path, tmp_path / "old")
    ledger.charge(make_plan(), 2, "data")
    shutil.copy(tmp_path / "old", path)
    with pytest.raises(LedgerError, match="replaced while it was in use"):
        ledger.charge(make_plan(), 3, "data")


# --- the key ------------------------------------------------------------------------------------


def test_the_key_is_never_shown(path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    ledger = filled(path)
    file = path.with_name("ledger.db.key")
    secret = load_key(file)
    raw = secret._private.private_bytes_raw().hex()
    body = "".join(file.read_text().splitlines()[1:-1])
    shown = repr(secret) + str(secret) + repr(vars(ledger)) + repr(ledger.head) + caplog.text
    shown += "".join(capfd.readouterr())
    for part in path.parent.iterdir():
        if part != file:
            shown += part.read_bytes().decode("latin-1")
    assert raw not in shown
    assert body not in shown
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(LedgerError, match="can't be copied"):
            copier(secret)


def test_a_key_that_others_can_read_is_refused(path):
    filled(path)
    path.with_name("ledger.db.key").chmod(0o640)
    with pytest.raises(LedgerError, match="read by others"):
        Ledger(path, "client-1")


def test_a_broken_key_is_refused_without_quoting_it(path):
    filled(path)
    key = path.with_name("ledger.db.key")
    key.write_text(key.read_text()[:70] + "hunter2")
    with pytest.raises(LedgerError) as refused:
        Ledger(path, "client-1")
    assert "hunter2" not in str(refused.value)


def test_rotation_is_signed_by_the_key_before(path):
    ledger = filled(path, 1)
    other = Ledger(path, "client-1")
    before = ledger.head.public_key
    after = ledger.rotate_key()
    assert after != before
    other.charge(make_plan(), 2, "data")  # whoever else has it open follows
    book = book_of(path)
    assert (book.public_key, book.keys) == (after, {before, after})
    assert load_key(path.with_name("ledger.db.key")).public == after
    assert not path.with_name("ledger.db.key.next").exists()
    assert Ledger(path, "client-1").head.public_key == after


def test_a_rotation_cut_short_is_finished_or_undone(path):
    class CutError(Exception):
        pass

    def cut(at):
        def hook(step):
            if step == at:
                raise CutError

        return hook

    filled(path, 1)
    before = book_of(path).public_key
    for step, keeps in (("rekeyed:written", True), ("rekeyed:durable", False)):
        with pytest.raises(CutError):
            Ledger(path, "client-1", at=cut(step)).rotate_key()
        assert path.with_name("ledger.db.key.next").exists()
        ledger = Ledger(path, "client-1")
        assert not path.with_name("ledger.db.key.next").exists()
        assert (ledger.head.public_key == before) is keeps
        ledger.retire(f"after {step}")


def test_an_opening_cut_short_begins_again(path):
    class CutError(Exception):
        pass

    def hook(step):
        raise CutError

    with pytest.raises(CutError):
        Ledger(path, "client-1", at=hook)
    assert isinstance(filled(path, 1) and book_of(path).entries[0], Opened)


# --- exports ------------------------------------------------------------------------------------


def test_export_of_several_clients(tmp_path):
    paths = [tmp_path / name / "ledger.db" for name in "ba"]
    for each in paths:
        filled(each, 2, client=each.parent.name)
    heads = export_ledgers(paths, tmp_path / "ledger.jsonl")
    exported = read_ledger(tmp_path / "ledger.jsonl")
    assert list(exported) == ["a", "b"]
    assert {c: len(charges) for c, charges in read_charges(tmp_path / "ledger.jsonl").items()} == {
        "a": 2,
        "b": 2,
    }
    assert [head.sha256 for head in heads] == [book.head for book in exported.values()]
    export_ledgers([tmp_path / "ledger.jsonl"], tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "ledger.jsonl").read_bytes()
    assert list(tmp_path.glob("*.part")) == []
    with pytest.raises(LedgerError, match="already in another"):
        export_ledgers([paths[0], paths[0]], tmp_path / "twice.jsonl")
    tamper(paths[0], "DELETE FROM entries WHERE number = 1")
    with pytest.raises(LedgerError, match="entry 1"):
        export_ledgers(paths, tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_commit_proves_itself(path):
    charge = filled(path, 0).charge(make_plan(), 1, "data")
    assert isinstance(charge.commit, Commit)
    assert charge.redeem()
    assert not charge.redeem()
