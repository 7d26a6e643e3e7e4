"""SIGKILL of a coordinator at its labelled steps, with real processes and protocol-only devices.

The coordinator is a process of its own behind a pipe; devices are this process. Each sends a power
of two of its own, so that a round's sum shows whom it counted, and whether twice. A device repeats
its calls as the contract says until it has an acknowledgement, which it writes down.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest
from support import fleets
from support.fleets import RUN, Clock, Powers, rows_of

from sordino.core.contract import Artefact
from sordino.core.errors import ContractError
from sordino.server import fleet_rounds as fr
from sordino.server.store import Accepted, Event, Round, Run, Task

DEVICES = 4  # all are asked, and three updates close a round: one is always late
ROUNDS = 2
PARTS = 10
FORK = multiprocessing.get_context("fork")
KILLS = [  # (step, how often it was reached)
    ("plan-round:durable", 1),
    ("open-round:written", 1),
    ("open-round:durable", 1),
    ("acknowledge:durable", 2),
    ("upload:synced", 3),
    ("update:kept", 2),
    ("accept-update:written", 3),
    ("accept-update:durable", 1),
    ("adapter:kept", 1),
    ("aggregate-round:durable", 1),
    ("publish-round:written", 2),
]


# --- the coordinator -----------------------------------------------------------------------------


def pull(made, work, device):
    fr.advance(made, work, RUN)
    task = fr.task_for(made, device)
    return task and (task.task_id, task.round)


def acknowledge(made, work, task_id):
    task = fleets.get(made, Task, task_id)
    plan = fleets.get(made, Round, RUN, task.round).plan
    return fr.acknowledge(made, task.device_id, task_id, plan).state


def offer(made, work, device, task_id, artefact):
    upload = fr.offer_upload(made, device, task_id, artefact)
    return upload.upload_id, upload.state, upload.stored


def push(made, work, device, upload_id, artefact, offset, data):
    stream = fr.Stream(made, device, upload_id, artefact, offset)
    stream.write(offset, data)
    stream.keep()
    return stream.received


def finish(made, work, upload_id):
    state = fr.finish_upload(made, work, upload_id).state
    fr.advance(made, work, RUN)
    return state


OPERATIONS = {call.__name__: call for call in (pull, acknowledge, offer, push, finish)}


def serve(folder, pipe, kill_at):
    """Answer calls, until the step at which this process dies; its steps go into a journal."""
    reached = Counter()
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def at(step):
        reached[step] += 1
        os.write(journal, f"{step} {reached[step]}\n".encode())
        if (step, reached[step]) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    work = Powers()
    with fr.open_fleet(folder, now_ms=Clock(), at=at) as made:
        fr.recover(made, {RUN: work})
        while True:
            name, args = pipe.recv()
            try:
                pipe.send(("done", OPERATIONS[name](made, work, *args)))
            except ContractError as error:
                pipe.send(("refused", error.reason))


class Coordinator:
    """A coordinator that is started again whenever it died. Each life may end at a step."""

    def __init__(self, folder, kills):
        self.folder, self.kills, self.deaths = folder, list(kills), 0
        self.process = None

    def call(self, name, *args):
        """The answer; EOFError: it died, and what came of the call isn't known."""
        if self.process is None:
            self.pipe, other = FORK.Pipe()
            kill_at = self.kills.pop(0) if self.kills else None
            self.process = FORK.Process(target=serve, args=(self.folder, other, kill_at))
            self.process.start()
            other.close()
        try:
            self.pipe.send((name, args))
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join(30)
            assert self.process.exitcode == -signal.SIGKILL
            self.process, self.deaths = None, self.deaths + 1
            raise EOFError(name) from None

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()


# --- the devices ---------------------------------------------------------------------------------


class Devices:
    """What the devices know: their tasks, and which answers were acknowledged."""

    def __init__(self, coordinator):
        self.coordinator = coordinator
        self.tasks, self.acknowledged = {}, set()

    def turn(self, device):
        """One device's part, from the beginning again whenever the coordinator dies."""
        while True:
            try:
                return self._try(device)
            except EOFError:
                continue

    def _try(self, device):
        _, pulled = self.coordinator.call("pull", device)
        if pulled is None:
            return False
        task_id, number = pulled
        assert self.tasks.setdefault((device, number), task_id) == task_id
        self.coordinator.call("acknowledge", task_id)
        data = fleets.update_of(device, number, pad=50)
        artefact = Artefact.of(data)
        word, offered = self.coordinator.call("offer", device, task_id, artefact)
        if word == "refused":
            assert offered == "task-over"
            return True
        upload_id, state, stored = offered
        while state == "open" and stored < len(data):
            piece = data[stored : max(stored + 1, len(data) // 2 if not stored else len(data))]
            _, stored = self.coordinator.call("push", device, upload_id, artefact, stored, piece)
        if self.coordinator.call("finish", upload_id) == ("done", "accepted"):
            self.acknowledged.add((device, number))
        return True


def run(folder, kills):
    """A whole run with these deaths; what must hold after it is asserted."""
    coordinator = Coordinator(folder, kills)
    devices = Devices(coordinator)
    try:
        while sum(devices.turn(f"d{number}") for number in range(DEVICES)):
            pass
    finally:
        coordinator.stop()
    check(folder, devices)
    return coordinator.deaths


def check(folder, devices):
    with fleets.fleet(folder) as made:
        state = fleets.get(made, Run, RUN)
        assert (state.state, state.rounds_done) == ("done", ROUNDS)
        accepted = rows_of(made, Accepted)
        counted = {(row.device_id, row.round) for row in accepted}
        assert devices.acknowledged <= counted, "an acknowledged update was lost"
        sums = {
            number: sum(1 << int(name[1:]) for name, of in counted if of == number)
            for number in range(1, ROUNDS + 1)
        }
        assert fleets.adapter(made) == [list(pair) for pair in sorted(sums.items())]
        assert all(value.bit_count() >= 3 for value in sums.values())
        published = [event.round for event in rows_of(made, Event, kind="round-published")]
        assert published == list(sums), "a round was published twice"
        tasks = {(row.device_id, row.round): row.task_id for row in rows_of(made, Task)}
        assert len(tasks) == DEVICES * ROUNDS
        assert devices.tasks.items() <= tasks.items()
        fr.check_artefacts(made)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A coordinator's folder in which a run was just started."""
    folder = tmp_path_factory.mktemp("prepared")
    with fleets.fleet(folder, devices=DEVICES) as made:
        fleets.start(made, folder, rounds=ROUNDS, extra=DEVICES - 3)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "coordinator")


def test_without_a_kill_and_every_step_is_a_named_one(folder):
    assert run(folder, []) == 0
    reached = {line.split()[0] for line in (folder / "journal").read_text().splitlines()}
    assert {step for step, _ in KILLS} <= reached


def test_counting_twice_and_losing_an_update_would_show(folder, monkeypatch):
    honest = Powers.aggregate

    def twice(self, closed, adapter, updates):
        updates = list(updates)
        return honest(self, closed, adapter, [*updates, updates[0]])

    with monkeypatch.context() as patched:
        patched.setattr(Powers, "aggregate", twice)  # a fork has it too
        with pytest.raises(AssertionError):
            run(folder, [])
    told = Devices(None)
    told.acknowledged = {("d3", 99)}
    with pytest.raises(AssertionError, match="lost"):
        check(folder, told)


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: f"{kill[0]}-{kill[1]}")
def test_a_kill_at_a_step(folder, kill):
    assert run(folder, [kill]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_every_step_there_is(prepared, tmp_path, part):
    """Each step of a run once; every second time again in the restart, and at the same step."""
    rehearsal = shutil.copytree(prepared, tmp_path / "rehearsal")
    run(rehearsal, [])
    lines = (rehearsal / "journal").read_text().splitlines()
    steps = [(step, int(times)) for step, times in map(str.split, lines)]
    lives = [
        [kill, ("collect-garbage:durable", 1), kill] if number % 2 else [kill]
        for number, kill in enumerate(steps)
    ]
    assert sum(map(len, lives)) >= 200
    for number, kills in enumerate(lives[part::PARTS]):
        folder = shutil.copytree(prepared, tmp_path / str(number))
        # The third may not come: what was done before a death isn't done again.
        assert run(folder, kills) >= min(len(kills), 2), kills
        shutil.rmtree(folder)


def test_a_killed_coordinator_serves_again_within_five_seconds(folder):
    """A new interpreter with all its imports, on a fleet with a past: its processor time."""
    with fleets.fleet(folder) as made, made.store.write("past") as tx:
        for number in range(1, 101):
            past = Round(run_id=RUN, round=number, state="published")
            tx.add(past)
            for device in range(DEVICES):
                tx.add(
                    Task(
                        task_id=f"{number}-{device}",
                        run_id=RUN,
                        round=number,
                        device_id=f"d{device}",
                        state="answered",
                        deadline_ms=1,
                    )
                )
        tx.change(tx.find(Run, RUN), rounds_planned=200)
    with pytest.raises(EOFError):
        Coordinator(folder, [("open-round:durable", 1)]).call("pull", "d0")
    code = (
        "import sys, json, pathlib\n"
        "from support import fleets\n"
        "from sordino.server import fleet_rounds as fr\n"
        "with fleets.fleet(pathlib.Path(sys.argv[1])) as made:\n"
        "    work = fleets.Powers()\n"
        "    fr.recover(made, {fleets.RUN: work})\n"
        "    now = fr.advance(made, work, fleets.RUN)\n"
        "    print(json.dumps([now.round, now.state]))\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stdout) == [101, "open"]
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert took < 5, f"{took:.2f} s"
