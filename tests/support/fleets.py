"""Fleets without models: a coordinator's folder, and devices that only speak the protocol.

A device's update is a power of two of its own, so that a round's sum shows who was counted, and how
often. The adapter is the list of those sums.
"""

import json
import threading
import time
import tomllib
from contextlib import contextmanager, suppress
from dataclasses import replace

from sordino.core import app as flower
from sordino.core.config import ExperimentConfig
from sordino.core.contract import Artefact
from sordino.core.errors import ContractError, UpdateRejectedError
from sordino.core.settings import build
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.enroll import CertificateRecord, DeviceRecord, TokenRecord
from sordino.server.fleet_run import Drivers, drive
from sordino.server.grid import Coordinator
from sordino.server.store import Accepted, Device, Event, Round, Run, Task, Upload
from sordino.server.store.records import FINAL_ROUNDS

RUN = "run-1"
PLAN = b'{"plan":1}'
TIMEOUT_MS = 60_000


class Clock:
    """Time as the test says."""

    def __init__(self, now=1_000_000):
        self.now = now

    def __call__(self):
        return self.now


class Powers:
    """Work whose updates are powers of two, and whose adapter lists each round's exact sum."""

    def choose(self, run, number, devices, wanted):
        turn = number % len(devices)
        return [*devices[turn:], *devices[:turn]][:wanted]

    def check(self, asked, data):
        body = json.loads(data)
        if body["round"] != asked.round:
            raise UpdateRejectedError("wrong-round", f"expected {asked.round}")
        if body["value"] == "nan":
            raise UpdateRejectedError("not-finite", "value")
        return

    def aggregate(self, closed, adapter, updates):
        sums = json.loads(adapter) if adapter else []
        values = [json.loads(data)["value"] for data in updates]
        return json.dumps([*sums, [closed.round, sum(values)]]).encode()


def update_of(device, number, value=None, pad=0):
    """What a device sends: the same bytes whenever it is asked again."""
    body = {"round": number, "value": 1 << int(device[1:]) if value is None else value}
    return json.dumps({**body, "pad": "." * pad}).encode()


def new_run(base, **changes):
    given = {
        "run_id": RUN,
        "settings": "[federation]\n",
        "trust": "none",
        "plan": PLAN,
        "manifest": b"[]",
        "base": base,
        "rounds": 3,
        "cohort": 3,
        "min_updates": 1,
        "timeout_ms": TIMEOUT_MS,
        "max_answer_bytes": 1 << 20,
    }
    return fr.NewRun(**{**given, **changes})


@contextmanager
def fleet(folder, *, devices=0, clock=None, **settings):
    """An open coordinator with that many devices `d0`, `d1`, .. enrolled."""
    with fr.open_fleet(folder, now_ms=clock or Clock(), **settings) as made:
        enrol(made, devices)
        yield made


def enrol(made, count):
    members = fr.Members(made)
    for number in range(count):
        name = f"d{number}"
        if members.device(name) is None:
            token = TokenRecord(token_id=name, verifier=b"", label="", expires_at_unix_ms=1)
            members.add_token(token)
            device = DeviceRecord(device_id=name, display_name=name, enrolled_at_unix_ms=1)
            certificate = CertificateRecord(
                serial=name, device_id=name, key_sha256=name, der=b"", not_after_unix_ms=1
            )
            assert members.admit(name, device, certificate)


def start(made, folder, base="", request_id="start", **changes):
    """Start a run, on a base of a few bytes if none is kept."""
    if not base:
        source = folder / "base.gguf"
        source.write_bytes(b"GGUF")
        base = fr.keep_base(made, source)
    return fr.start_run(made, request_id, new_run(base, **changes))


def step(made, work, run_id=RUN, among=None):
    """A run's next transition, as its driver would take it; None: it opens no more rounds."""
    now = fr.plan_round(made, run_id)
    if now is None:
        return None
    match now.state:
        case "planned":
            now = open_round(made, work, run_id, now, among)
        case "open" | "collecting":
            now = fr.close_round(made, work, run_id, now.round)
        case "closing":
            now = aggregate(made, work, now)
        case _:
            now = fr.publish_round(made, run_id, now.round)
    if now.state in FINAL_ROUNDS:
        fr.collect_garbage(made)
    return now


class NobodyRings(Bell):
    """A bell that ends what would wait for it."""

    def __init__(self):
        super().__init__()
        self.over = threading.Event()

    def wait(self, heard, timeout_s):
        self.over.set()
        return heard


def advance(made, work, run_id=RUN, among=None):
    """Transitions until the run waits for devices, for time, or for an operator."""
    if isinstance(work, fr.AdapterWork):  # the real loop, to where it would wait
        bell = NobodyRings()
        coordinator = Coordinator(fleet=made, bell=bell, work=work, stopping=bell.over)
        with flower.task_identity(run_id=1, node_id=1):
            drive(coordinator, run_id, no_releases)
        return rows_of(made, Round, run_id=run_id, order="-round", limit=1)[0]
    before, now = None, step(made, work, run_id, among)
    while now is not None and now != before:
        before, now = now, step(made, work, run_id, among)
    return now


def no_releases(plan):
    raise AssertionError("expected a run without central trust")


def open_round(made, work, run_id, planned, among):
    run = get(made, Run, run_id)
    with made.store.read() as rows:
        ready = [name for name in sorted(fr.at_hand(made, rows)) if not among or name in among]
    private = run.trust == "central"
    if run.state != "running" or len(ready) < (1 if private else run.min_updates):
        return planned
    wanted = len(ready) if private else run.cohort + run.extra
    experiment = build(ExperimentConfig, tomllib.loads(run.settings))
    opening = fr.Opening(
        plan=made.artefacts.read(run.plan),
        settings=fr.write_settings(experiment.lora, experiment.train),
        adapter=made.artefacts.read(run.adapter) if run.adapter else None,
        cohort=work.choose(run, planned.round, ready, wanted),
        time_ms=run.timeout_ms,
    )
    return fr.open_round(made, run_id, planned.round, opening)


def aggregate(made, work, closed):
    accepted = rows_of(made, Accepted, run_id=closed.run_id, round=closed.round)
    before = made.artefacts.read(closed.adapter_before) if closed.adapter_before else None
    adapter = work.aggregate(closed, before, (made.artefacts.read(a.sha256) for a in accepted))
    if adapter is None:
        return fr.fail_round(made, closed.run_id, closed.round, "release-lost")
    return fr.aggregate_round(made, closed.run_id, closed.round, adapter)


@contextmanager
def driving(made, bell, folder, **settings):
    """The fleet's runs go on by themselves, as under `sordino serve`, until the block ends."""
    coordinator = Coordinator(fleet=made, bell=bell, work=fr.AdapterWork(made), **settings)
    with Drivers(coordinator, folder):
        yield coordinator


@contextmanager
def answering(made, bell, answer):
    """Devices in a thread: each open task is taken, and sent what `answer` gives, if it does.

    What a coordinator refuses ends a task's part, as on a device.
    """
    done, over, work = set(), threading.Event(), fr.AdapterWork(made)

    def turn(task):
        if take(made, task.device_id) is not None and (data := answer(task)) is not None:
            send(made, work, task, data)

    def devices():
        while not over.is_set():
            heard = bell.count
            for task in rows_of(made, Task, state=("offered", "taken")):
                if task.task_id not in done:
                    done.add(task.task_id)
                    with suppress(ContractError):
                        turn(task)
            bell.wait(heard, 0.2)

    thread = threading.Thread(target=devices, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        bell.ring()
        thread.join()


def until(bell, look, *, timeout_s=120.0):
    """What `look` gives, once it gives something: it is asked again whenever the bell rings."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        heard = bell.count
        if found := look():
            return found
        bell.wait(heard, 0.2)
    raise AssertionError(f"nothing within {timeout_s:g} s")


def take(made, device):
    """Pull the device's task and take it."""
    task = fr.task_for(made, device)
    if task is None:
        return None
    plan = get(made, Round, task.run_id, task.round).plan
    return fr.acknowledge(made, device, task.task_id, plan)


def send(made, work, task, data, piece=0):
    """Offer, push and finish an answer from where it stands."""
    artefact = Artefact.of(data)
    upload = fr.offer_upload(made, task.device_id, task.task_id, artefact)
    if upload.state == "open":
        at = upload.stored
        stream = fr.Stream(made, task.device_id, upload.upload_id, artefact, at)
        for begin in range(at, len(data), piece or len(data)):
            stream.write(begin, data[begin : begin + (piece or len(data))])
        upload = stream.keep()
    return fr.finish_upload(made, work, upload.upload_id)


def answer(made, work, device, **what):
    """One device's whole part in a round; None: it has no task."""
    task = take(made, device)
    if task is None:
        return None
    return send(made, work, task, update_of(device, task.round, **what))


def get(made, kind, *key):
    with made.store.read() as rows:
        return rows.find(kind, *key)


def rows_of(made, kind, /, **equals):
    with made.store.read() as rows:
        return rows.all(kind, **equals)


def adapter(made, run_id=RUN):
    """The run's adapter: round and sum, of each round that was published."""
    run = get(made, Run, run_id)
    return json.loads(made.artefacts.read(run.adapter)) if run.adapter else []


def refusal(call, *args, **kwargs):
    """The word with which a call is refused."""
    try:
        call(*args, **kwargs)
    except ContractError as error:
        return error.reason
    return ""


def everything(made):
    """All rows that a refused call must leave as they are."""
    kinds = (Run, Round, Task, Upload, Accepted, Device, Event)
    return [[replace(row) for row in rows_of(made, kind)] for kind in kinds]
