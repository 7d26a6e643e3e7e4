"""Fleets without models: a coordinator's folder, and devices that only speak the protocol.

A device's update is a power of two of its own, so that a round's sum shows who was counted, and how
often. The adapter is the list of those sums.
"""

import json
from contextlib import contextmanager
from dataclasses import replace

from sordino.core.contract import Artefact
from sordino.core.errors import ContractError, UpdateRejectedError
from sordino.server import fleet_rounds as fr
from sordino.server.enroll import CertificateRecord, DeviceRecord, TokenRecord
from sordino.server.store import Accepted, Device, Event, Round, Run, Task, Upload

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


def start(made, folder, base="", **changes):
    """Start a run, on a base of a few bytes if none is kept."""
    if not base:
        source = folder / "base.gguf"
        source.write_bytes(b"GGUF")
        base = fr.keep_base(made, source)
    return fr.start_run(made, "start", new_run(base, **changes))


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
