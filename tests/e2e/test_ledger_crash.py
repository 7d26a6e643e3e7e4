"""SIGKILL at every labelled step of a local round, with real processes and the real client.

What a process did before it died is in a journal that each line of is written with one write: the
draws of noise, and the bytes that were sent. Afterwards ledger and journal are held together.
"""

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.federation import (
    TinySession,
    make_metric,
    make_metric_task,
    make_plan,
    make_task,
)
from support.journal import Journal
from support.ledgers import RefusedError, at_most

from sordino.client.app import answer, answer_metric
from sordino.client.charged import LEDGER
from sordino.core.errors import LedgerError
from sordino.core.wire import pack
from sordino.privacy.ledger import read_ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import verify_ledger

STEPS = [
    "opened:written",
    "opened:durable",
    "task:checked",
    "reserve:written",
    "reserve:durable",
    "commit:written",
    "commit:durable",
    "noise:asked",
    "noise:drawn",
    "update:trained",
    "update:kept",
    "released:written",
    "released:durable",
    "update:ready",
]
BEFORE = STEPS[: STEPS.index("commit:durable")]  # a retry may begin
LOST = STEPS[len(BEFORE) : STEPS.index("update:kept")]  # charged, and nothing ever leaves
STEPS_A_ROUND = make_plan().steps_per_round
ROUNDS = 40


def task(number):
    return make_task(number, make_plan(rounds=ROUNDS))


class Watched:
    """A noise source whose every draw is in the journal, with what the ledger said at the time."""

    label, private = "watched: for tests", False

    def __init__(self, session, run_id, number):
        self.session, self.name = session, (run_id, number)
        self.inner = seeded_source(os.getpid(), session.client_id, *map(str, self.name))

    def coins(self, size):
        return self.inner.coins(size)

    def rounded_gaussian(self, size, scale):
        self.session.at("noise:asked")
        standing = read_ledger(self.session.state_dir / LEDGER)["alice"].find(*self.name)
        state = standing.state if standing else "uncharged"
        self.session.journal.write("draw", *self.name, os.getpid(), state)
        drawn = self.inner.rounded_gaussian(size, scale)
        self.session.at("noise:drawn")
        return drawn


class WatchedSession(TinySession):
    """The small session on a watched source."""

    def watch(self, journal, at, cap):
        self.journal, self.at, self.limit = journal, at, at_most(cap)
        return self

    def noise_source(self, run_id, number):
        return Watched(self, run_id, number)


def reply(session, number, at, kind):
    if kind == "metric":
        return answer_metric(session, make_metric_task(number, make_metric(rounds=ROUNDS)), at)
    return answer(session, task(number), at)


def work(folder, number, kill_at="", cap=ROUNDS, kind="round"):
    """A round, or a look, in this process: killed at a step, or answered; the exit code says."""

    def at(step):
        steps.append(step)
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    steps = []
    journal = Journal(folder / "journal")
    session = WatchedSession("alice", folder / "state").watch(journal, at, cap)
    try:
        data = pack(reply(session, number, at, kind))
    except RefusedError:
        os._exit(4)
    except LedgerError:
        os._exit(3)
    journal.write("sent", number, hashlib.sha256(data).hexdigest())
    journal.write("steps", *dict.fromkeys(steps))
    os._exit(0)


def run(folder, number, kill_at="", cap=ROUNDS, kind="round"):
    child = multiprocessing.get_context("fork").Process(
        target=work, args=(folder, number, kill_at, cap, kind)
    )
    child.start()
    child.join(60)
    return child.exitcode


def timed(folder, number, kind="round"):
    """A round's exit code, and its seconds without those that it only waited for a processor."""
    child = multiprocessing.get_context("fork").Process(
        target=work, args=(folder, number, "", ROUNDS, kind)
    )
    began = time.monotonic()
    child.start()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    took = time.monotonic() - began
    _, queued_ns, _ = Path(f"/proc/{child.pid}/schedstat").read_text().split()
    child.join()
    return child.exitcode, took - int(queued_ns) / 1e9


def check(folder, cap=ROUNDS):
    """What must hold whatever happened."""
    journal = Journal(folder / "journal")
    path = folder / "state" / LEDGER
    book = read_ledger(path)["alice"]
    charges = list(book.charges.values())
    assert len(charges) <= cap
    draws, processes = Counter(), defaultdict(set)
    for run_id, number, process, state in journal.lines("draw"):
        assert state == "commit", "noise was drawn before the charge was durable"
        draws[(run_id, int(number))] += 1
        processes[(run_id, int(number))].add(process)
    for standing in charges:
        name = (standing.reserve.run_id, standing.reserve.round)
        assert len(processes[name]) <= 1, "noise was drawn twice for one charge"
        every = 1 if name[0] == make_metric().run_id else STEPS_A_ROUND
        assert draws[name] <= every
        if standing.state == "released":
            assert draws[name] == every
            order = [e.state for e in book.entries if standing.number in _of(e)]
            assert order == ["reserve", "commit", "released"]
    artefacts = {s.reserve.round: s.artefact for s in charges if s.state == "released"}
    for number, digest in journal.lines("sent"):
        assert artefacts.get(int(number)) == digest, "something left that no entry releases"
    verdict = verify_ledger(path, artefacts=folder / "state" / "updates")
    assert verdict.ok, verdict.defects
    return {s.reserve.round: s.state for s in charges}


def _of(entry):
    return {entry.index, getattr(entry, "charge", None)}


def test_the_steps_are_these(tmp_path):
    assert run(tmp_path, 1) == 0
    assert Journal(tmp_path / "journal").lines("steps") == [STEPS]
    assert check(tmp_path) == {1: "released"}


def kill_and_go_on(folder, step, times, kind="round"):
    number = 0
    for again in range(times):
        number += 1
        if step.startswith("opened") and again:
            break  # a ledger is opened once
        assert run(folder, number, step, kind=kind) == -signal.SIGKILL
        code, took = timed(folder, number, kind)
        assert took < 5.0
        after = check(folder)
        assert (code, after[number]) == ((3, "abandoned") if step in LOST else (0, "released"))
        assert run(folder, number, kind=kind) == code  # again the same: the same bytes, or none
        check(folder)
    sent = defaultdict(set)
    for line, digest in Journal(folder / "journal").lines("sent"):
        sent[line].add(digest)
    assert all(len(digests) == 1 for digests in sent.values())
    assert run(folder, number + 1, kind=kind) == 0  # the next round goes on
    check(folder)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at(tmp_path, step):
    kill_and_go_on(tmp_path, step, 2)


@pytest.mark.parametrize("step", STEPS)
def test_a_paid_look_killed_at(tmp_path, step):
    kill_and_go_on(tmp_path, step, 1, "metric")


def _work_until_the_draft_is_written(folder):
    real = os.fsync

    def sync(fd):
        if Path(f"/proc/self/fd/{fd}").resolve().suffix == ".part":
            os.kill(os.getpid(), signal.SIGKILL)
        real(fd)

    os.fsync = sync
    work(folder, 1)


def test_killed_with_half_an_update_on_disk(tmp_path):
    """A draft is no update: it isn't found, isn't sent, and accuses nobody."""
    child = multiprocessing.get_context("fork").Process(
        target=_work_until_the_draft_is_written, args=(tmp_path,)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert list((tmp_path / "state" / "updates").rglob("*.part"))
    assert run(tmp_path, 1) == 3
    assert check(tmp_path) == {1: "abandoned"}
    assert run(tmp_path, 2) == 0
    assert not list((tmp_path / "state" / "updates").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_ten_times(tmp_path, step):
    if step.startswith("opened"):
        for again in range(10):
            kill_and_go_on(tmp_path / str(again), step, 1)
    else:
        kill_and_go_on(tmp_path, step, 10)


def test_a_cap_holds_through_crashes(tmp_path):
    """Abandoned rounds are charged: three are spent though nothing was ever released."""
    for number in (1, 2, 3):
        assert run(tmp_path, number, LOST[number], cap=3) == -signal.SIGKILL
    assert run(tmp_path, 4, cap=3) == 4
    assert check(tmp_path, cap=3) == {1: "abandoned", 2: "abandoned", 3: "abandoned"}


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """From outside, at any instant, not only between steps."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for number in range(1, ROUNDS + 1):
        child = multiprocessing.get_context("fork").Process(target=work, args=(tmp_path, number))
        child.start()
        time.sleep(chance.uniform(0, 0.25))
        child.kill()
        child.join()
        assert run(tmp_path, number) in (0, 3)
        check(tmp_path)


RESTART = """
import sys
from pathlib import Path
from support.federation import TinySession
from sordino.client.app import answer
from test_ledger_crash import task
from sordino.core.wire import pack
import hashlib
data = pack(answer(TinySession("alice", Path(sys.argv[1])), task(1)))
print(hashlib.sha256(data).hexdigest())
"""


def test_a_new_interpreter_resends_the_kept_bytes(tmp_path):
    """Restart as a device does it, imports and all."""
    assert run(tmp_path, 1, "update:kept") == -signal.SIGKILL
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RESTART, str(tmp_path / "state")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    (standing,) = read_ledger(tmp_path / "state" / LEDGER)["alice"].charges.values()
    assert standing.artefact == done.stdout.strip()
    assert took < 5.0
    check(tmp_path)
