"""The device's ledger: durable before use, in one order, never forgetting."""

import sqlite3
import stat
from contextlib import closing

import pytest
from support.ledgers import RefusedError, UserPlan, at_most, clock, digest, filled, make_plan

from sordino.core import canonical
from sordino.core.errors import LedgerError
from sordino.privacy.ledger import (
    GENESIS,
    Ledger,
    Limit,
    Released,
    Retired,
    against,
    entries,
    read_charges,
    read_ledger,
)
from sordino.privacy.ledger.keys import signature_holds


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.db"


def book_of(path, client="client-1"):
    return read_ledger(path)[client]


def states(path):
    return [entry.state for entry in book_of(path).entries]


# --- entries ------------------------------------------------------------------------------------


def test_a_charge_says_all_that_accounting_needs(path):
    plan = make_plan()
    charge = filled(path, 0).charge(plan, 7, "data", block="2030-W01")
    opened, reserve, commit = book_of(path).entries
    assert reserve.body() == {
        "kind": "sordino.ledger",
        "version": 2,
        "state": "reserve",
        "client": "client-1",
        "index": 1,
        "time": "2030-01-02T03:04:05+00:00",
        "run_id": "run-1",
        "round": 7,
        "dataset": "data",
        "block": "2030-W01",
        "unit": "record",
        "neighbouring": "add-or-remove-one",
        "event": plan.event_fields(),
        "plan_sha256": plan.sha256,
        "policy_sha256": "",
        "prev": opened.sha256,
    }
    assert (charge.entry, charge.commit, charge.number) == (reserve, commit, 1)
    assert (commit.charge, commit.prev, opened.prev) == (1, reserve.sha256, GENESIS)


def test_an_entrys_encoding_is_pinned():
    """Ledgers outlive the code: these bytes are a promise."""
    entry = Released(client="c", index=3, time="2030-01-02T03:04:05+00:00", prev="0" * 64,
                     charge=1, artefact="a" * 64)  # fmt: skip
    line = entries.Signed(entry, "b" * 128).line()
    assert line == (
        b'{"artefact":"' + b"a" * 64 + b'","charge":1,"client":"c","index":3,'
        b'"kind":"sordino.ledger","prev":"' + b"0" * 64 + b'","sha256":"' + entry.sha256.encode()
        + b'","signature":"' + b"b" * 128
        + b'","state":"released","time":"2030-01-02T03:04:05+00:00","version":2}'
    )  # fmt: skip
    assert entry.sha256 == canonical.sha256_hex(canonical.encode(entry.body()))
    assert entries.parse_line(line) == entries.Signed(entry, "b" * 128)


def test_entries_are_chained_signed_and_survive_reopening(path):
    ledger = filled(path)
    book = book_of(path)
    assert [e.prev for e in book.entries] == [GENESIS, *(e.sha256 for e in book.entries[:-1])]
    again = Ledger(path, "client-1")
    assert again.head == ledger.head == book.head_to_keep()
    assert again.standings == tuple(book.charges.values())
    with closing(sqlite3.connect(path)) as db:
        lines = [row[0] for row in db.execute("SELECT line FROM entries ORDER BY number")]
    for line in lines:
        signed = entries.parse_line(line)
        assert signature_holds(book.public_key, signed.entry.sha256, signed.signature)
        assert not signature_holds(book.public_key, GENESIS, signed.signature)


def test_files_are_their_owners_alone(path):
    filled(path)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize(
    "change",
    [
        *({"round": True}, {"round": 1.5}, {"round": 0}, {"event": []}, {"event": {}}),
        *({"extra": 1}, {"version": 1}, {"client": 3}, {"state": "spent"}, {"prev": "x"}),
        *({"unit": "all"}, {"time": "soon"}, {"block": ""}, {"policy_sha256": "none"}),
    ],
)
def test_a_well_hashed_entry_of_wrong_shape_is_refused(path, change):
    reserve = filled(path, 1) and book_of(path).entries[1]
    body = {**reserve.body(), **change}
    sha = canonical.sha256_hex(canonical.encode(body))
    line = canonical.encode({**body, "sha256": sha, "signature": "0" * 128})
    with pytest.raises(LedgerError):
        entries.parse_line(line)


# --- the order ----------------------------------------------------------------------------------


def test_a_round_goes_from_reserve_to_released(path):
    steps = []
    ledger = Ledger(path, "client-1", now=clock, at=steps.append)
    number = ledger.reserve(make_plan(), 1, "data")
    charge = ledger.commit(number)
    assert ledger.find("run-1", 1).state == "commit"
    ledger.release(charge.number, digest(5))
    standing = ledger.find("run-1", 1)
    assert (standing.state, standing.artefact) == ("released", digest(5))
    assert states(path) == ["opened", "reserve", "commit", "released"]
    assert steps == [
        f"{state}:{step}"
        for state in ("opened", "reserve", "commit", "released")
        for step in ("written", "durable")
    ]


@pytest.mark.parametrize(
    ("first", "refused"),
    [
        (["reserve"], ["release"]),
        (["reserve", "commit"], ["commit"]),
        (["reserve", "commit", "release"], ["commit", "release", "abandon"]),
        (["reserve", "abandon"], ["commit", "release", "abandon"]),
        (["reserve", "commit", "abandon"], ["commit", "release", "abandon"]),
    ],
)
def test_only_one_order(path, first, refused):
    ledger = filled(path, 0)

    def step(name):
        match name:
            case "reserve":
                ledger.reserve(make_plan(), 1, "data")
            case "commit":
                ledger.commit(1)
            case "release":
                ledger.release(1, digest(1))
            case "abandon":
                ledger.abandon(1, "failed")

    for name in first:
        step(name)
    before = states(path)
    for name in refused:
        with pytest.raises(LedgerError, match="can't follow"):
            step(name)
    for unknown in (0, 99, -1):
        with pytest.raises(LedgerError, match="charge"):
            ledger.commit(unknown)
    assert states(path) == before
    assert len(read_charges(path)["client-1"]) == 1  # charged in every state


def test_the_same_round_twice(path):
    ledger = filled(path)
    before = states(path)
    with pytest.raises(LedgerError, match="already charged"):
        ledger.charge(make_plan(), 2, "data")
    assert states(path) == before
    ledger.charge(make_plan(run_id="run-2"), 2, "data")


def test_a_reserved_round_goes_on_with_the_same_terms_only(path):
    ledger = filled(path, 0)
    number = ledger.reserve(make_plan(), 1, "data")
    for plan, data, block in [
        (make_plan(noise_multiplier=9.0), "data", "all"),
        (make_plan(), "other", "all"),
        (make_plan(), "data", "2030-W01"),
    ]:
        with pytest.raises(LedgerError, match="already charged"):
            ledger.charge(plan, 1, data, block=block)
    again = Ledger(path, "client-1")
    with pytest.raises(RefusedError):  # the policy was tightened meanwhile
        again.charge(make_plan(), 1, "data", limit=at_most(0))
    assert again.charge(make_plan(), 1, "data", limit=at_most(1)).number == number
    assert states(path) == ["opened", "reserve", "commit"]


@pytest.mark.parametrize("number", [0, -1, 1001, 1.0, True])
def test_rounds_beyond_the_plan(path, number):
    with pytest.raises(LedgerError, match=r"1\.\.1000"):
        filled(path, 0).charge(make_plan(), number, "data")
    assert states(path) == ["opened"]


def test_what_may_not_be_empty(path):
    with pytest.raises(LedgerError, match="client_id"):
        Ledger(path, "")
    for data, block in (("", "all"), ("data", "")):
        with pytest.raises(LedgerError, match="not empty"):
            filled(path, 0).charge(make_plan(), 1, data, block=block)


@pytest.mark.parametrize(
    "event", [{"sigma": float("nan")}, {"sigma": object()}, {}, {"x": "y" * 70_000}, {"x": (1, 2)}]
)
def test_what_could_not_be_read_again_is_not_written(path, event):
    class Odd(UserPlan):
        def event_fields(self):
            return event

    ledger = filled(path, 1)
    before = states(path)
    with pytest.raises(LedgerError):
        ledger.charge(Odd(), 1, "data")
    with pytest.raises(LedgerError):
        ledger.charge(make_plan(), 2, "d" * 70_000)
    assert states(path) == before
    ledger.charge(make_plan(), 2, "data")


def test_another_clients_file(path):
    filled(path)
    with pytest.raises(LedgerError, match="client-2"):
        Ledger(path, "client-2")


# --- caps ---------------------------------------------------------------------------------------


def test_a_refused_charge_changes_nothing(path):
    ledger = filled(path, 2)
    before = states(path)
    with pytest.raises(RefusedError):
        ledger.charge(make_plan(), 3, "data", limit=at_most(2))
    assert states(path) == before
    charge = ledger.charge(make_plan(), 3, "data", limit=at_most(3, policy_sha256="cd" * 32))
    assert charge.entry.policy_sha256 == "cd" * 32


def test_what_adds_up(path):
    """Unit record: a dataset's overlapping blocks. Unit user: the whole device."""
    ledger, seen = filled(path, 0), {}
    plan = make_plan()
    for number, (data, block) in enumerate(
        [("a", "w1"), ("a", "w2"), ("b", "w1"), ("a", "all")], start=1
    ):
        ledger.charge(plan, number, data, block=block)

    def look(name, plan, data, block, unit=None):
        def would_allow(charged, new):
            seen[name] = [entry.round for entry in against(charged, new, unit)]
            raise RefusedError("only looking")

        with pytest.raises(RefusedError):
            ledger.charge(plan, 9, data, block=block, limit=Limit(would_allow=would_allow))

    look("one block", plan, "a", "w1")
    look("another block", plan, "a", "w3")
    look("whole dataset", plan, "a", "all")
    look("other dataset", plan, "b", "w1")
    look("user", UserPlan(), "c", "w1")
    look("user, by records", plan, "b", "w1", "user")
    look("record, by users", UserPlan(), "b", "w1", "record")
    assert seen == {
        "one block": [1, 4],
        "another block": [4],
        "whole dataset": [1, 2, 4],
        "other dataset": [3],
        "user": [1, 2, 3, 4],
        "user, by records": [1, 2, 3, 4],
        "record, by users": [3],
    }


def test_no_run_model_file_or_state_brings_budget_back(path):
    """Runs and plans differ, one was abandoned, one only reserved: all of it counts."""
    limit = at_most(4)
    ledger = Ledger(path, "client-1")
    for number, run in enumerate(("r1", "r2", "r3", "r4"), start=1):
        plan = make_plan(run_id=run, noise_multiplier=float(number))
        reserved = ledger.reserve(plan, 1, "data", limit=limit)
        if number > 1:
            ledger.commit(reserved)
        if number == 3:
            ledger.abandon(reserved, "failed")
    again = Ledger(path, "client-1")
    with pytest.raises(RefusedError):
        again.charge(make_plan(run_id="r5"), 1, "data", limit=limit)
    again.charge(make_plan(run_id="r5"), 1, "other", limit=limit)


def test_a_spent_block_retires_for_good(path):
    ledger = filled(path, 2)
    limit = at_most(2, is_spent=lambda charged, new: len(charged) >= 2)
    with pytest.raises(RefusedError):
        ledger.charge(make_plan(), 3, "data", limit=limit)
    *_, last = book_of(path).entries
    assert isinstance(last, Retired)
    assert (last.dataset, last.block) == ("data", "all")
    for block in ("all", "w1"):  # the whole dataset holds every block
        with pytest.raises(LedgerError, match="retired"):
            Ledger(path, "client-1").charge(make_plan(), 3, "data", block=block)
    ledger.charge(make_plan(), 3, "other")
    with pytest.raises(LedgerError, match="retired before"):
        ledger.retire("data")


def test_retiring_one_block_leaves_the_others(path):
    ledger = filled(path, 0)
    number = ledger.reserve(make_plan(), 1, "data", block="w1")
    ledger.retire("data", "w1")
    with pytest.raises(LedgerError, match="retired"):
        ledger.charge(make_plan(), 2, "data", block="w1")
    with pytest.raises(LedgerError, match="retired"):
        ledger.charge(make_plan(), 2, "data")
    ledger.charge(make_plan(), 2, "data", block="w2")
    ledger.commit(number)  # its budget was set aside before


def test_a_reservation_isnt_counted_against_itself(path):
    ledger = filled(path, 0)
    ledger.reserve(make_plan(), 1, "data", limit=at_most(1))
    ledger.charge(make_plan(), 1, "data", limit=at_most(1))


def test_against_is_a_pure_function(path):
    filled(path, 3)
    charged = read_charges(path)["client-1"]
    assert against(charged[:2], charged[2]) == charged[:2]
