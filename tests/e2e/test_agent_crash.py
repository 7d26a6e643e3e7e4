"""SIGKILL at every labelled step of a device's round, before a real coordinator over TLS.

Real processes, and the real ClientApp on a session without a model. Every draw of noise is in a
journal with the process that made it. Afterwards ledger, journal and the coordinator's store are
held together: one charge a round, one draw, one accepted answer, and it is the one of the ledger.
"""

import random
import signal
import time
from collections import defaultdict

import pytest
from support.agents import (
    ARMED,
    LEDGER,
    LOST,
    STEPS,
    charges,
    coordinator,
    spawn,
    start,
)
from support.devices import until
from support.federation import TRAIN, make_plan
from support.fleets import RUN, get, rows_of
from support.journal import Journal

from sordino.privacy.ledger import KeptHead
from sordino.privacy.plan import verify_ledger
from sordino.server.store import Accepted, Head, Round, Run, Task
from sordino.server.store.records import UNFINISHED_TASKS

CHUNK = 100  # a round's answer is several pieces


def kill(child):
    child.kill()
    child.join(60)


def settled(at, number):
    (task,) = rows_of(at.fleet, Task, round=number)
    return task.state not in UNFINISHED_TASKS


def go_on(at, home, number):
    """A new process until the round's task has its end; it is killed then, wherever it is."""
    child = spawn(home, at)
    until(lambda: settled(at, number) or not child.is_alive())
    assert child.is_alive()
    kill(child)


def check(at, home):
    """What must hold whatever happened."""
    found = charges(home)
    drawn = defaultdict(list)
    for number, process in Journal(home / "draws").lines("draw"):
        drawn[int(number)].append(process)
    for number, processes in drawn.items():
        assert len(set(processes)) == 1, f"round {number} was drawn twice"
        assert len(processes) <= TRAIN.local_steps
        assert number in found, "noise was drawn without a charge"
    accepted = {row.round: row for row in rows_of(at.fleet, Accepted)}
    for number in accepted:
        assert found[number] == "released"
    heads = [KeptHead(index=h.entry_index, sha256=h.entry_sha256) for h in rows_of(at.fleet, Head)]
    verdict = verify_ledger(home / LEDGER, heads=heads)
    assert verdict.ok, verdict.defects
    return found


def ended(at, home, number, step):
    """A round in which the device was killed at a step is over, as it should be."""
    until(lambda: settled(at, number))
    state = check(at, home)[number]
    (task,) = rows_of(at.fleet, Task, round=number)
    if step in LOST:
        assert (state, task.state, task.reason) == ("abandoned", "declined", "ledger-refused")
    else:
        assert (state, task.state) == ("released", "answered")
    at.advance()
    published = "failed" if step in LOST else "published"
    assert get(at.fleet, Round, RUN, number).state == published


def matrix(folder, steps):
    """One run, a round for each kill. The process after it ends that round, and dies in the next.

    A process is armed only once it has finished what the one before it left.
    """
    home, steps = folder / "device", dict(enumerate(steps, start=1))
    with coordinator(folder / "fleet", chunk_bytes=CHUNK) as at:
        for number, (step, times) in steps.items():
            child = spawn(home, at, step, times)
            if number == 1:
                until(at.service.online)
                start(at, plan=make_plan(rounds=len(steps)), patience=len(steps))
                (home / ARMED).touch()
            else:
                until(lambda last=number - 1: settled(at, last))
                (home / ARMED).touch()
                ended(at, home, number - 1, steps[number - 1][0])
            child.join(120)
            assert child.exitcode == -signal.SIGKILL, f"never came to {step}"
            (home / ARMED).unlink()
        child = spawn(home, at)
        ended(at, home, len(steps), steps[len(steps)][0])
        kill(child)
        assert get(at.fleet, Run, RUN).state == "done"


def test_killed_while_it_greets(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at:
        home.mkdir()
        (home / ARMED).touch()
        for _ in range(2):
            child = spawn(home, at, "hello:answered")
            child.join(120)
            assert child.exitcode == -signal.SIGKILL
        (home / ARMED).unlink()
        child = spawn(home, at)
        until(at.service.online)
        start(at, rounds=1)
        ended(at, home, 1, "")
        kill(child)


def test_killed_at_ten_steps(tmp_path):
    matrix(
        tmp_path,
        [
            ("task:taken", 1),
            ("chunk:fetched", 2),
            ("reserve:durable", 1),
            ("commit:durable", 1),
            ("noise:drawn", 2),
            ("update:kept", 1),
            ("answer:kept", 1),
            ("chunk:sent", 3),
            ("upload:answered", 1),
            ("task:pulled", 1),
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(9))
def test_killed_at_every_step(tmp_path, turn):
    seed = random.randrange(2**32)
    print("seed", seed, "turn", turn)
    steps = [(step, 1) for step in STEPS[1:] if step != "chunk:fetched"]
    random.Random(seed).shuffle(steps)
    # Only after a published round is there a new adapter to fetch.
    matrix(tmp_path, [("task:noted", 1), ("chunk:fetched", 1), *steps])


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """From outside, at any instant, not only between steps."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance, home, rounds = random.Random(seed), tmp_path / "device", 40
    with coordinator(tmp_path / "fleet", chunk_bytes=CHUNK) as at:
        child = spawn(home, at)
        until(at.service.online)
        kill(child)
        start(at, plan=make_plan(rounds=rounds), patience=rounds)
        for number in range(1, rounds + 1):
            for _ in range(3):
                child = spawn(home, at)
                time.sleep(chance.uniform(0.1, 1.0))
                kill(child)
            if not settled(at, number):
                go_on(at, home, number)
            check(at, home)
            at.advance()
        assert get(at.fleet, Run, RUN).state in ("done", "failed")
