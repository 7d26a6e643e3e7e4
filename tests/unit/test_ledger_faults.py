"""Full disks, read-only ones, and several processes at once: refused cleanly, nothing lost."""

import os
import resource
import shutil
import subprocess
import sys
import threading

import pytest
from support.ledgers import RefusedError, at_most, digest, filled, make_plan, run_all

from sordino.core.errors import LedgerError
from sordino.privacy.ledger import Ledger, read_charges, read_ledger
from sordino.privacy.plan import verify_ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.db"


# --- several writers ------------------------------------------------------------------------------


def _charge_until_refused(path, first, cap):
    ledger = Ledger(path, "client-1")
    for number in range(first, first + 40):
        try:
            charge = ledger.charge(make_plan(), number, "data", limit=at_most(cap))
        except RefusedError:
            os._exit(0)
        if number % 2:
            ledger.release(charge.number, digest(number))
    os._exit(1)


def test_the_sum_of_several_processes_never_passes_the_cap(path):
    """They even race to make the ledger."""
    codes = run_all(_charge_until_refused, [(path, 1 + 100 * i, 25) for i in range(3)])
    assert codes == [0, 0, 0]
    assert len(read_charges(path)["client-1"]) == 25
    assert verify_ledger(path).ok


def _reserve_and_commit(path, outcomes):
    try:
        charge = Ledger(path, "client-1").charge(make_plan(), 1, "data")
    except LedgerError:
        os._exit(3)
    with outcomes.open("ab") as file:
        file.write(b"%d\n" % charge.number)
    os._exit(0)


def test_one_round_is_won_by_one_process(path, tmp_path):
    """A reservation is there to be taken up: only one may pass the point of no return."""
    filled(path, 0).reserve(make_plan(), 1, "data")
    codes = run_all(_reserve_and_commit, [(path, tmp_path / "won")] * 4)
    assert sorted(codes) == [0, 3, 3, 3]
    assert len((tmp_path / "won").read_bytes().splitlines()) == 1


def test_threads_wait_for_one_another(path):
    ledger, refused = filled(path, 0), []

    def work(first):
        for number in range(first, first + 10):
            try:
                ledger.charge(make_plan(), number, "data", limit=at_most(15))
            except RefusedError:
                refused.append(number)

    threads = [threading.Thread(target=work, args=(1 + 100 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ledger.standings), len(refused)) == (15, 15)
    assert verify_ledger(path).ok


def test_a_fork_goes_on_by_itself(path):
    ledger = filled(path, 1)
    assert run_all(lambda: os._exit(ledger.reserve(make_plan(), 2, "data")), [()]) == [4]
    assert ledger.reserve(make_plan(), 3, "data") == 5


# --- disks ----------------------------------------------------------------------------------------


def _fill(path, told):
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    ledger = Ledger(path, "client-1")
    with told.open("ab", buffering=0) as file:
        for number in range(1, 1000):
            try:
                charge = ledger.charge(make_plan(), number, "data")
            except LedgerError as error:
                file.write(f"refused: {error}\n".encode())
                os._exit(0)
            file.write(b"%d\n" % number)
            ledger.release(charge.number, digest(number))
    os._exit(1)


def test_a_file_that_may_not_grow(path, tmp_path):
    (code,) = run_all(_fill, [(path, tmp_path / "told")])
    *charged, refused = (tmp_path / "told").read_text().splitlines()
    assert code in (0, 1)  # the release may be what is refused
    assert len(charged) > 5
    assert "can't write the ledger" in refused or code
    rounds = [entry.round for entry in read_charges(path)["client-1"]]
    assert rounds[: len(charged)] == [int(number) for number in charged]
    assert len(rounds) <= len(charged) + 1  # a reservation without a commit
    Ledger(path, "client-1").charge(make_plan(run_id="run-2"), 1, "data")
    assert verify_ledger(path).ok


ON_TMPFS = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.ledgers import digest, make_plan
from sordino.core.errors import LedgerError
from sordino.privacy.ledger import Ledger, read_charges, read_ledger
from sordino.privacy.plan import verify_ledger

folder = Path(sys.argv[1])
path = folder / "ledger.db"

def mount(*options):
    subprocess.run(["mount", *options, str(folder)], check=True)

def refused(call):
    try:
        call()
    except LedgerError as error:
        return str(error)
    raise AssertionError("it was not refused")

mount("-t", "tmpfs", "-o", "size=256k", "tmpfs")
ledger = Ledger(path, "client-1")
done = []
def charge_all():
    for number in range(1, 1000):
        charge = ledger.charge(make_plan(), number, "data")
        done.append(number)
        ledger.release(charge.number, digest(number))
if sys.argv[3] == "full":
    words = refused(charge_all)
    assert "full" in words or "I/O" in words or "No space" in words, words
    assert len(done) > 5
    mount("-o", "remount,size=2m")
else:
    for number in (1, 2, 3):
        done.append(number)
        ledger.charge(make_plan(), number, "data")
    mount("-o", "remount,ro")
    for call in (
        lambda: ledger.charge(make_plan(), 9, "data"),
        lambda: ledger.release(1, digest(1)),
        lambda: Ledger(path, "client-1"),
        lambda: Ledger(folder / "new.db", "client-1"),
        ledger.rotate_key,
    ):
        words = refused(call)
        assert "read-only" in words.lower() or "readonly" in words or "unable" in words, words
    assert [e.round for e in read_charges(path)["client-1"]] == done  # it can still be read
    mount("-o", "remount,rw")
rounds = [e.round for e in read_charges(path)["client-1"]]
assert rounds[: len(done)] == done and len(rounds) <= len(done) + 1, (rounds, done)
Ledger(path, "client-1").charge(make_plan(run_id="run-2"), 1, "data")
assert verify_ledger(path).ok
"""


def _own_mounts() -> list[str] | None:
    """How to run a program whose mounts are its own, if this machine lets us."""
    if shutil.which("unshare") is None:
        return None
    for options in (["-rm"], ["-m"]):
        probe = ["unshare", *options, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return ["unshare", *options]
    return None


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_disk_that_refuses(tmp_path, disk):
    own = _own_mounts()
    if own is None:
        pytest.skip("this machine lets nobody mount a tmpfs of their own")
    support = next(p for p in sys.path if p.endswith("tests"))
    done = subprocess.run(
        [*own, sys.executable, "-c", ON_TMPFS, str(tmp_path), support, disk],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(path):
    ledger = filled(path, 1)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(LedgerError):
            ledger.charge(make_plan(), 2, "data")
        assert len(read_charges(path)["client-1"]) == 1
    finally:
        path.parent.chmod(0o700)


def test_a_failed_commit_leaves_nothing(path):
    """Whatever stops a transaction before its end: it never was."""

    def hook(step):
        if step == stop:
            raise OSError(5, "Input/output error")

    stop = ""
    ledger = Ledger(path, "client-1", at=hook)
    stop = "reserve:written"
    with pytest.raises(LedgerError, match="Input/output"):
        ledger.charge(make_plan(), 1, "data")
    assert read_charges(path)["client-1"] == ()
    stop = "commit:written"
    with pytest.raises(LedgerError):
        ledger.charge(make_plan(), 1, "data")
    assert [s.state for s in read_ledger(path)["client-1"].charges.values()] == ["reserve"]
    stop = ""
    assert ledger.charge(make_plan(), 1, "data").number == 1
