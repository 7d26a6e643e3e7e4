"""The ledger: durable before use, chained, and plain about what it can't believe."""

import errno
import json
import multiprocessing
import os
import signal
import stat
from datetime import UTC, datetime

import pytest

from sordino.core import canonical
from sordino.core.errors import LedgerError
from sordino.privacy import ledger as module
from sordino.privacy.ledger import GENESIS, Ledger, export_ledgers, read_ledger
from sordino.privacy.plan import Plan


def make_plan(**changes):
    values = {
        "run_id": "run-1",
        "rounds": 1000,
        "steps_per_round": 2,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.5,
        "clip_norm": 2.0,
        "divisor": 4.0,
        "delta": 1e-5,
    }
    return Plan(**{**values, **changes})


def clock():
    return datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.jsonl"


def filled(path, rounds=3, client="client-1", **plan):
    ledger = Ledger(path, client, now=clock)
    for number in range(1, rounds + 1):
        ledger.charge(make_plan(**plan), number, "data")
    return ledger


def test_an_entry_says_all_that_accounting_needs(path):
    plan = make_plan()
    charge = filled(path, 0).charge(plan, 7, "data")
    line = json.loads(path.read_text())
    assert line == {
        "kind": "charge",
        "version": 1,
        "client": "client-1",
        "index": 0,
        "time": "2030-01-02T03:04:05+00:00",
        "run_id": "run-1",
        "round": 7,
        "dataset": "data",
        "unit": "record",
        "neighbouring": "add-or-remove-one",
        "event": {
            "kind": "poisson-sampled-gaussian",
            "noise_multiplier": 1.5,
            "sampling_rate": 0.5,
            "steps": 2,
        },
        "plan_sha256": plan.sha256,
        "prev": GENESIS,
        "sha256": charge.entry.sha256,
    }


def test_entries_are_chained_and_survive_reopening(path):
    first = filled(path)
    again = Ledger(path, "client-1")
    assert again.entries == first.entries == read_ledger(path)["client-1"]
    assert [e.prev for e in again.entries] == [GENESIS, *(e.sha256 for e in again.entries[:-1])]
    assert again.head == again.entries[-1].sha256
    assert filled(path.with_name("other"), 0).head == GENESIS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [0, -1, 1001, 1.0, True])
def test_rounds_beyond_the_plan(path, number):
    with pytest.raises(LedgerError, match=r"1\.\.1000"):
        filled(path, 0).charge(make_plan(), number, "data")
    assert path.read_bytes() == b""


def test_the_same_round_twice(path):
    ledger = filled(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="already charged"):
        ledger.charge(make_plan(noise_multiplier=9.0), 2, "other data")
    assert path.read_bytes() == before
    ledger.charge(make_plan(run_id="run-2"), 2, "data")


def test_another_clients_file(path):
    filled(path)
    with pytest.raises(LedgerError, match="client-2"):
        Ledger(path, "client-2")


def test_the_entry_is_on_disk_before_the_charge_exists(path, monkeypatch):
    """Write, sync the file, sync its folder, and only then return."""
    ledger, calls = filled(path, 0), []
    real_write, real_sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append("write") or real_write(fd, data))

    def sync(fd):
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_sync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    real_init = module.Charge.__init__
    monkeypatch.setattr(
        module.Charge,
        "__init__",
        lambda self, *args, **keys: calls.append("charge") or real_init(self, *args, **keys),
    )
    ledger.charge(make_plan(), 1, "data")
    assert calls == ["write", "file", "folder", "charge"]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_line_is_kept_aside_and_never_counts(path, cut):
    ledger = filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][: -cut - len(b'"version":1}\n')])
    assert len(Ledger(path, "client-1").entries) == 2
    assert path.read_bytes() == b"".join(lines[:2])
    torn = path.with_name("ledger.jsonl.torn").read_bytes()
    assert lines[2].startswith(torn.removesuffix(b"\n"))
    ledger.charge(make_plan(), 3, "data")  # the same object goes on too
    assert len(read_ledger(path)["client-1"]) == 3


def test_a_whole_line_without_its_newline_is_charged(path):
    filled(path)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(LedgerError, match="line 3: torn"):
        read_ledger(path)  # reading repairs nothing
    assert len(Ledger(path, "client-1").entries) == 3
    assert path.read_bytes() == data
    assert not path.with_name("ledger.jsonl.torn").exists()


@pytest.mark.parametrize("last", [b"x", b"\x0b", b"}", b"\0"])
def test_a_damaged_last_line_is_not_taken_for_a_torn_one(path, last):
    filled(path)
    damaged = path.read_bytes()[:-1] + last
    path.write_bytes(damaged)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(path, "client-1")
    assert path.read_bytes() == damaged


def test_every_flipped_byte_is_detected(path):
    filled(path, 2)
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(LedgerError):
            read_ledger(path)


def test_removed_swapped_and_repeated_entries_are_named(path):
    filled(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    for i in range(4):  # the last one's removal shows only against a kept head
        path.write_bytes(b"".join(lines[:i] + lines[i + 1 :]))
        with pytest.raises(LedgerError, match=f"line {i + 1} .*entry {i + 1}"):
            read_ledger(path)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(LedgerError, match=r"line 2 \(client client-1, entry 2\)"):
        read_ledger(path)
    path.write_bytes(b"".join([*lines, lines[4]]))
    with pytest.raises(LedgerError, match="line 6"):
        read_ledger(path)


def test_a_cut_tail_shows_against_a_kept_head(path):
    head = filled(path, 3).head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert Ledger(path, "client-1").head != head


@pytest.mark.parametrize(
    "change",
    [{"round": True}, {"round": 1.5}, {"event": []}, {"extra": 1}, {"version": 2}, {"client": 3}],
)
def test_a_well_hashed_entry_of_wrong_shape_is_refused(path, change):
    filled(path, 1)
    fields = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "sha256"} | change
    sha = canonical.sha256_hex(canonical.encode(fields))
    path.write_bytes(canonical.encode({**fields, "sha256": sha}) + b"\n")
    with pytest.raises(LedgerError, match="line 1"):
        read_ledger(path)


def test_export_of_several_clients(tmp_path):
    paths = [tmp_path / name / "ledger.jsonl" for name in "ba"]
    for p in paths:
        filled(p, 2, client=p.parent.name)
    export_ledgers(paths, tmp_path / "ledger.jsonl")
    exported = read_ledger(tmp_path / "ledger.jsonl")
    assert list(exported) == ["a", "b"]
    assert {c: len(e) for c, e in exported.items()} == {"a": 2, "b": 2}
    assert list(tmp_path.glob("*.part")) == []
    with pytest.raises(LedgerError, match="already in another"):
        export_ledgers([paths[0], paths[0]], tmp_path / "twice.jsonl")
    lines = paths[0].read_bytes().splitlines(keepends=True)
    paths[0].write_bytes(lines[1])
    with pytest.raises(LedgerError, match="entry 1"):
        export_ledgers(paths, tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_full_disk_is_a_clean_refusal(path, monkeypatch):
    ledger = filled(path, 1)
    before, real, calls = path.read_bytes(), os.write, []

    def short_then_full(fd, data):
        calls.append(data)
        if len(calls) == 1:
            return real(fd, data[:40])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_then_full)
        with pytest.raises(LedgerError, match="No space left"):
            ledger.charge(make_plan(), 2, "data")
    assert path.read_bytes() == before
    ledger.charge(make_plan(), 2, "data")
    assert len(ledger.entries) == 2


def test_an_unconfirmed_write_stays_charged_and_opens_nothing(path, monkeypatch):
    ledger = filled(path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
        )
        with pytest.raises(LedgerError, match="I/O error"):
            ledger.charge(make_plan(), 1, "data")
    with pytest.raises(LedgerError, match="already charged"):
        ledger.charge(make_plan(), 1, "data")


def test_a_folder_in_the_way_is_a_ledger_error(tmp_path):
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(LedgerError, match="can't open"):
        Ledger(tmp_path / "ledger.jsonl", "client-1")
    with pytest.raises(LedgerError, match="can't read"):
        read_ledger(tmp_path / "absent.jsonl")


def _charge_many(path, first, count):
    ledger = Ledger(path, "client-1")
    for number in range(first, first + count):
        ledger.charge(make_plan(), number, "data")


def test_two_processes_on_one_ledger(path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_charge_many, args=(path, 1 + 100 * i, 15)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    entries = read_ledger(path)["client-1"]
    assert [e.index for e in entries] == list(range(45))


def _charge_and_tell(path, pipe):
    ledger = Ledger(path, "client-1")
    for number in range(1, 1000):
        ledger.charge(make_plan(), number, "data")
        pipe.send(number)


def test_killed_at_any_moment_what_was_charged_is_there(path):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    worker = context.Process(target=_charge_and_tell, args=(path, writer))
    worker.start()
    writer.close()
    confirmed = [reader.recv() for _ in range(20)]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    while reader.poll():
        try:
            confirmed.append(reader.recv())
        except EOFError:
            break
    assert {e.round for e in Ledger(path, "client-1").entries} >= set(confirmed)
