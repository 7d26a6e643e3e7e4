"""SIGKILL of a coordinator at its labelled steps, with real processes and protocol-only devices.

The coordinator is a process of its own behind a pipe; devices are this process. Each sends a power
of two of its own, so that a round's sum shows whom it counted, and whether twice. A device repeats
its calls as the contract says until it has an acknowledgement, which it writes down.
"""

import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import pytest
from support import fleets
from support.federation import LORA, MANIFEST, TRAIN, filled, initial, open_plan
from support.fleets import RUN, Clock, rows_of

from sordino.core.config import ExperimentConfig
from sordino.core.contract import Artefact, decode_adapter, encode_update
from sordino.core.errors import ContractError
from sordino.core.records import Update
from sordino.core.settings import to_toml
from sordino.server import fleet_rounds as fr
from sordino.server.aggregate import UpdateSum
from sordino.server.bell import Bell
from sordino.server.fleet_rounds.context import keep_artefact
from sordino.server.grid import FleetGrid
from sordino.server.store import Accepted, Event, Round, Run, Task

DEVICES = 4  # all are asked, and three updates close a round: one is always late
COHORT = 3
ROUNDS = 2
PLAN = open_plan(rounds=ROUNDS)
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


class Serving:
    """A coordinator's answers to devices, while its runs are driven beside them."""

    def __init__(self, made, bell):
        self.made, self.bell, self.work = made, bell, fr.AdapterWork(made)

    def pull(self, device):
        """A task; "later": there is none now; None: there will be none."""
        heard = self.bell.count
        if task := fr.task_for(self.made, device):
            return task.task_id, task.round
        if fleets.get(self.made, Run, RUN).state == "done":
            return None
        self.bell.wait(heard, 0.05)
        return "later"

    def acknowledge(self, task_id):
        task = fleets.get(self.made, Task, task_id)
        plan = fleets.get(self.made, Round, RUN, task.round).plan
        return fr.acknowledge(self.made, task.device_id, task_id, plan).state

    def offer(self, device, task_id, artefact):
        upload = fr.offer_upload(self.made, device, task_id, artefact)
        return upload.upload_id, upload.state, upload.stored

    def push(self, device, upload_id, artefact, offset, data):
        stream = fr.Stream(self.made, device, upload_id, artefact, offset)
        stream.write(offset, data)
        stream.keep()
        return stream.received

    def finish(self, upload_id):
        return fr.finish_upload(self.made, self.work, upload_id).state


def serve(folder, pipe, kill_at):
    """Answer calls, until the step at which this process dies; its steps go into a journal."""
    reached, counting, bell = Counter(), threading.Lock(), Bell()
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def at(step):
        with counting:
            reached[step] += 1
            os.write(journal, f"{step} {reached[step]}\n".encode())
            if (step, reached[step]) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    with fr.open_fleet(folder, now_ms=Clock(), at=bell.hook(at)) as made:
        serving = Serving(made, bell)
        fr.recover(made, lambda _: serving.work)
        with fleets.driving(made, bell, folder):
            while True:
                name, args = pipe.recv()
                try:
                    pipe.send(("done", getattr(serving, name)(*args)))
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
            self.process.join(300)
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
        if pulled is None or pulled == "later":
            return pulled is not None
        task_id, number = pulled
        assert self.tasks.setdefault((device, number), task_id) == task_id
        self.coordinator.call("acknowledge", task_id)
        data = update_of(device, number)
        artefact = Artefact.of(data)
        word, offered = self.coordinator.call("offer", device, task_id, artefact)
        if word == "refused":
            assert offered == "task-over"
            return True
        upload_id, state, stored = offered
        while state == "open" and stored < len(data):
            piece = data[stored : max(stored + 1, len(data) // 2 if not stored else len(data))]
            word, stored = self.coordinator.call("push", device, upload_id, artefact, stored, piece)
            if word == "refused":  # the round was closed meanwhile
                assert stored == "task-over"
                return True
        if self.coordinator.call("finish", upload_id) == ("done", "accepted"):
            self.acknowledged.add((device, number))
        return True


def power(device):
    """A device's own power of two."""
    return math.ldexp(1.0, int(device[1:]) - 12)


def update_of(device, number):
    """What a device sends: every parameter is its power of two; the same bytes at each call."""
    update = Update(
        run_id=RUN,
        round=number,
        plan_sha256=PLAN.sha256,
        tensors=filled(power(device), number),
        receipt=None,
    )
    return encode_update(update, None)


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
        counted = {(row.device_id, row.round) for row in rows_of(made, Accepted)}
        assert devices.acknowledged <= counted, "an acknowledged update was lost"
        after = initial()
        for number in range(1, ROUNDS + 1):
            powers = [power(name) for name, of in counted if of == number]
            assert len(powers) >= COHORT
            mean = filled(1.0, number)
            after |= {
                name: (after[name].astype(float) + sum(powers) / len(powers)).astype("float32")
                for name in mean
            }
        data = made.artefacts.read(state.adapter)
        kept = {**initial(), **decode_adapter(data, Artefact.of(data))}
        same = all(kept[name].tobytes() == after[name].tobytes() for name in after)
        assert same, "a sum is not its updates'"
        published = [event.round for event in rows_of(made, Event, kind="round-published")]
        assert published == list(range(1, ROUNDS + 1)), "a round was published twice"
        tasks = {(row.device_id, row.round): row.task_id for row in rows_of(made, Task)}
        assert len(tasks) == DEVICES * ROUNDS
        assert devices.tasks.items() <= tasks.items()
        fr.check_artefacts(made)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A coordinator's folder in which a run was just started."""
    folder = tmp_path_factory.mktemp("prepared")
    with fleets.fleet(folder, devices=DEVICES) as made:
        settings = ExperimentConfig(lora=LORA, train=TRAIN)
        fleets.start(
            made,
            folder,
            settings=to_toml(settings),
            plan=PLAN.canonical(),
            manifest=MANIFEST.canonical(),
            rounds=ROUNDS,
            cohort=COHORT,
            min_updates=COHORT,
            extra=DEVICES - COHORT,
        )
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "coordinator")


def test_without_a_kill_and_every_step_is_a_named_one(folder):
    assert run(folder, []) == 0
    reached = {line.split()[0] for line in (folder / "journal").read_text().splitlines()}
    assert {step for step, _ in KILLS} <= reached


def test_counting_twice_and_losing_an_update_would_show(folder, monkeypatch):
    honest = UpdateSum.add

    def twice(self, tensors):
        honest(self, tensors)
        if self.count == 1:
            honest(self, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(UpdateSum, "add", twice)  # a fork has it too
        patched.setattr(FleetGrid, "_answer", without(FleetGrid._answer, "d2"))
        with pytest.raises(AssertionError, match="a sum is not"):
            run(folder, [])
    told = Devices(None)
    told.acknowledged = {("d3", 99)}
    with pytest.raises(AssertionError, match="lost"):
        check(folder, told)


def without(answer, device):
    """Forget a device's answer, so that another's second one has a place in the sum."""
    return lambda grid, message, asked, task: (
        None if task.device_id == device else answer(grid, message, asked, task)
    )


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
    assert sum(map(len, lives)) >= 250
    planned, deaths = sum(map(len, lives[part::PARTS])), 0
    for number, kills in enumerate(lives[part::PARTS]):
        folder = shutil.copytree(prepared, tmp_path / str(number))
        deaths += run(folder, kills)
        shutil.rmtree(folder)
    # Threads aren't quite the same each time, and what was done before a death isn't done again.
    assert deaths >= 0.8 * planned


def pull_for_ever(coordinator):
    while True:
        coordinator.call("pull", "d0")


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
        plan = replace(PLAN, rounds=200).canonical()
        row = tx.find(Run, RUN)
        tx.change(row, rounds_planned=200, plan=keep_artefact(made, tx, plan, "plan"))
    coordinator = Coordinator(folder, [("open-round:durable", 1)])
    with pytest.raises(EOFError):
        pull_for_ever(coordinator)
    code = (
        "import sys, json, pathlib\n"
        "from support import fleets\n"
        "from sordino.server import fleet_rounds as fr\n"
        "from sordino.server.bell import Bell\n"
        "from sordino.server.store import Round\n"
        "bell, folder = Bell(), pathlib.Path(sys.argv[1])\n"
        "with fleets.fleet(folder, at=bell.hook()) as made:\n"
        "    fr.recover(made, lambda _: fr.AdapterWork(made))\n"
        "    with fleets.driving(made, bell, folder):\n"
        "        now = fleets.until(bell, lambda: fleets.get(made, Round, fleets.RUN, 101))\n"
        "        print(json.dumps([now.round, now.state]))\n"
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
