"""SIGKILL at every labelled step of a central round, with real processes and the real coordinator.

Strategy, loop, ledger, clients and grid are the real ones; only the clients' model is small. What
a process did before it died is in a journal: the draws of the coordinator's noise, and the adapter
after each round. Afterwards ledger, kept updates and journal are held together.
"""

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections import defaultdict

import pytest
from safetensors.numpy import load_file, save
from support.central import central_strategy, make_central
from support.federation import TRAINING, initial
from support.journal import Journal

from sordino.core import canonical
from sordino.core.durable import write_whole
from sordino.core.wire import unpack
from sordino.privacy.ledger import read_ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import verify_ledger
from sordino.server.release import COORDINATOR, LEDGER, UPDATES
from sordino.server.rounds import MemoryRounds, run_rounds
from sordino.sim.grid import LocalGrid

STEPS = [
    "opened:written",
    "opened:durable",
    "users:asked",
    "sum:collected",
    "reserve:written",
    "reserve:durable",
    "commit:written",
    "commit:durable",
    "noise:asked",
    "noise:drawn",
    "release:drawn",
    "release:kept",
    "released:written",
    "released:durable",
    "release:ready",
    "adapter:saved",
]
BEFORE = STEPS[: STEPS.index("commit:durable")]  # the round may be run again
LOST = STEPS[len(BEFORE) : STEPS.index("release:kept")]  # charged, and nothing is ever released
FEW = ("commit:written", "commit:durable", "noise:drawn", "release:kept", "adapter:saved")
CLIENTS, ROUNDS = 2, 40
PLAN = make_central(rounds=ROUNDS, population=CLIENTS, cohort=CLIENTS)


class Watched:
    """A noise source whose every draw is in the journal, with what the ledger said at the time."""

    label, private = "watched: for tests", False

    def __init__(self, folder, number, at):
        self.folder, self.number, self.at = folder, number, at
        self.inner = seeded_source(os.getpid(), str(time.time_ns()))  # a second draw would show

    def coins(self, size):
        return self.inner.coins(size)

    def rounded_gaussian(self, size, scale):
        self.at("noise:asked")
        state = standings(self.folder)[self.number].state
        Journal(self.folder / "journal").write("draw", self.number, os.getpid(), state)
        drawn = self.inner.rounded_gaussian(size, scale)
        self.at("noise:drawn")
        return drawn


def standings(folder):
    book = read_ledger(folder / "coordinator" / LEDGER)[COORDINATOR]
    return {s.reserve.round: s for s in book.charges.values()}


def adapter_path(folder, number):
    return folder / f"round-{number}.safetensors"


def adapter_after(folder, number):
    return load_file(adapter_path(folder, number)) if number else initial()


def done(folder):
    return next(n - 1 for n in itertools.count(1) if not adapter_path(folder, n).exists())


def work(folder, kill_at=""):
    """Go on with the run for one round in this process: killed at a step of it, or done."""
    journal, steps, start = Journal(folder / "journal"), [], done(folder)

    def at(step):
        steps.append(step)
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def keep(number, tensors, report):
        data = save(tensors)
        write_whole(adapter_path(folder, number), data)
        journal.write("after", number, report.settled or "run", canonical.sha256_hex(data))
        at("adapter:saved")
        journal.write("steps", *dict.fromkeys(steps))
        os._exit(0)

    strategy = central_strategy(
        PLAN, folder / "coordinator", lambda _, number: Watched(folder, number, at), at
    )
    nodes = [{"client": f"c{i}", "state": str(folder / "clients")} for i in range(CLIENTS)]
    with LocalGrid(nodes, app=TRAINING) as grid:
        before = adapter_after(folder, start)
        run_rounds(grid, MemoryRounds(strategy, before, start_round=start + 1, on_round=keep))


def start(folder, kill_at=""):
    child = multiprocessing.get_context("fork").Process(target=work, args=(folder, kill_at))
    child.start()
    return child


def run(folder, kill_at=""):
    child = start(folder, kill_at)
    child.join(300)
    return child.exitcode


def check(folder):
    """What must hold whatever happened."""
    journal = Journal(folder / "journal")
    charges = standings(folder)
    drawn, after = defaultdict(list), defaultdict(set)
    for number, process, state in journal.lines("draw"):
        assert state == "commit", "noise was drawn before the charge was durable"
        drawn[int(number)].append(process)
    for number, _, digest in journal.lines("after"):
        after[int(number)].add(digest)
    assert all(len(some) == 1 for some in drawn.values()), "noise was drawn twice for one release"
    assert all(len(some) == 1 for some in after.values()), "a round has two outcomes"
    for number in after:
        standing, old, new = charges[number], adapter_after(folder, number - 1), None
        new = adapter_after(folder, number)
        if standing.state == "abandoned":
            assert all((new[name] == old[name]).all() for name in new)
            continue
        assert standing.state == "released"
        assert len(drawn[number]) == 1
        kept = list((folder / "coordinator" / UPDATES).rglob(f"{number}.*.update"))
        for path in kept:  # the latest round's
            assert canonical.sha256_hex(path.read_bytes()) == standing.artefact
            released = unpack(path.read_bytes()).tensors
            assert all((new[name] == tensor).all() for name, tensor in released.items())
            assert any((new[name] != old[name]).any() for name in released)
    ledger = folder / "coordinator" / LEDGER
    verdict = verify_ledger(ledger, artefacts=folder / "coordinator" / UPDATES)
    assert verdict.ok, verdict.defects
    return {number: standing.state for number, standing in charges.items()}


def test_the_steps_are_these(tmp_path):
    assert run(tmp_path) == 0
    assert Journal(tmp_path / "journal").lines("steps") == [STEPS]
    assert check(tmp_path) == {1: "released"}


def kill_and_go_on(folder, step, times):
    number = 1
    for again in range(times):
        if step.startswith("opened") and again:
            break  # a ledger is opened once
        assert run(folder, step) == -signal.SIGKILL
        finished = done(folder)
        assert run(folder) == 0
        states = check(folder)
        if step == "adapter:saved":  # its round was over: the second process did the next
            assert (finished, done(folder)) == (number, number + 1)
            assert states[number] == states[number + 1] == "released"
            number += 2
            continue
        assert states[number] == ("abandoned" if step in LOST else "released")
        how = Journal(folder / "journal").lines("after")[-1][1]
        expected = "run" if step in BEFORE else "abandoned" if step in LOST else "released"
        assert how == expected
        number += 1
    assert run(folder) == 0  # the next round goes on
    assert check(folder)[number] == "released"


@pytest.mark.parametrize("step", FEW)
def test_killed_at(tmp_path, step):
    kill_and_go_on(tmp_path, step, 1)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_ten_times(tmp_path, step):
    if step.startswith("opened"):
        for again in range(10):
            kill_and_go_on(tmp_path / str(again), step, 1)
    else:
        kill_and_go_on(tmp_path, step, 10)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """From outside, at any instant, not only between steps."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    while done(tmp_path) < ROUNDS:
        child = start(tmp_path)
        time.sleep(chance.uniform(0, 0.4))
        child.kill()
        child.join()
        assert run(tmp_path) == 0
        check(tmp_path)


def test_two_coordinators_of_one_run_draw_once(tmp_path):
    children = [start(tmp_path) for _ in range(3)]
    for child in children:
        child.join(300)
    check(tmp_path)
    assert sum(child.exitcode == 0 for child in children) >= 1
