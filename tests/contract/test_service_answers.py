"""Whole answers that a round doesn't allow: each rejected with its word, and nothing of it kept."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from support.agents import start
from support.contracts import raw, raw_tensor, raw_update
from support.devices import RefusedError, chunks, coordinator
from support.federation import LORA, MANIFEST, filled, make_plan
from support.fleets import RUN, get, rows_of

from sordino.core import adapters
from sordino.core.contract import SignedHead, encode_update
from sordino.core.records import Receipt, Update
from sordino.privacy.ledger.keys import LedgerKey
from sordino.protos.v1 import fleet_pb2
from sordino.server import fleet_rounds as fr
from sordino.server.store import (
    Accepted,
    ArtefactRow,
    Certificate,
    Device,
    Head,
    Round,
    Run,
    Task,
    Upload,
)

KEY = LedgerKey.generate()
PLAN = make_plan()
TRAINED = adapters.trained_manifest(MANIFEST, LORA.aggregation, 1)
FIRST, LAST = TRAINED.tensors[0], TRAINED.tensors[-1]


def head(**changes):
    receipt = Receipt(ledger_head="12" * 32, entry_index=4)
    signed = KEY.sign(receipt.ledger_head)
    made = SignedHead(receipt=receipt, public_key=KEY.public, signature=signed)
    return replace(made, **changes)


def update(tensors=None, *, plan=PLAN, signed=None, **changes):
    signed = signed or head()
    given = {"run_id": RUN, "round": 1, "plan_sha256": plan.sha256, "receipt": signed.receipt}
    tensors = filled(0.01) if tensors is None else tensors
    return encode_update(Update(**{**given, "tensors": tensors, **changes}), signed)


def with_value(value):
    tensors = filled(0.01)
    tensors[LAST.name] = tensors[LAST.name].copy()
    tensors[LAST.name].flat[-1] = value
    return update(tensors)


def without_receipt():
    tensors = filled(0.01)
    made = Update(run_id=RUN, round=1, plan_sha256=PLAN.sha256, tensors=tensors, receipt=None)
    return encode_update(made, None)


def renamed(old, new):
    tensors = filled(0.01)
    tensors[new] = tensors.pop(old)
    return update(tensors)


def reshaped(shape):
    return update({**filled(0.01), FIRST.name: np.zeros(shape, np.float32)})


def missing():
    tensors = filled(0.01)
    del tensors[FIRST.name]
    return update(tensors)


REJECTIONS = {
    "nan": ("not-finite", lambda: with_value(np.nan)),
    "infinity": ("not-finite", lambda: with_value(np.inf)),
    "minus-infinity": ("not-finite", lambda: with_value(-np.inf)),
    "wrong-name": ("missing-tensor", lambda: renamed(FIRST.name, FIRST.name + ".x")),
    "missing-name": ("missing-tensor", missing),
    "extra-name": ("extra-tensor", lambda: update({**filled(0.01), "extra": np.zeros(1, "f4")})),
    "wrong-shape": ("wrong-shape", lambda: reshaped((3, 5))),
    "transposed": ("wrong-shape", lambda: reshaped(FIRST.shape[::-1])),
    "broadcastable-shape": ("wrong-shape", lambda: reshaped((1, FIRST.shape[1]))),
    "broadcastable-scalar": ("wrong-shape", lambda: reshaped((1,))),
    "one-dimension-more": ("wrong-shape", lambda: reshaped((1, *FIRST.shape))),
    "wrong-dtype": ("unknown-value", lambda: raw_update(raw_tensor(dtype=2))),
    "shape-of-other-bytes": ("wrong-size", lambda: raw_update(raw_tensor(shape=(2,)))),
    "shape-that-overflows": (
        "wrong-size",
        lambda: raw_update(raw_tensor(shape=(1 << 30, 1 << 30, 1 << 4), data=b"\0" * 4)),
    ),
    "empty-shape": ("bad-shape", lambda: raw_update(raw_tensor(shape=(0,), data=b"\0" * 4))),
    "name-twice": ("unsorted-tensors", lambda: raw_update(raw_tensor(), raw_tensor())),
    "over-norm": ("over-norm", lambda: update(filled(1e9))),
    "truncated": ("truncated", lambda: update()[:-1]),
    "trailing-bytes": ("unknown-field", lambda: update() + b"\xe0\x03\x01"),
    "a-loss-beside-it": ("unknown-field", lambda: update() + raw(15, 1)),
    "a-pickle": ("unknown-field", lambda: pickle.dumps(filled(0.01))),
    "stale-round": ("wrong-round", lambda: update(round=2)),
    "future-round": ("wrong-round", lambda: update(round=3)),
    "other-run": ("wrong-run", lambda: update(run_id="run-2")),
    "other-plan": ("wrong-plan", lambda: update(plan=make_plan(noise_multiplier=9.0))),
    "no-receipt": ("no-receipt", without_receipt),
    "forged-receipt": ("wrong-receipt", lambda: update(signed=head(signature="ab" * 64))),
}


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """A coordinator with a real run, whose round has asked a device for each case."""
    with coordinator(tmp_path_factory.mktemp("fleet"), work=fr.AdapterWork) as made:
        made.free = [made.admit(f"d{number}") for number in range(len(REJECTIONS) + 3)]
        start(made, plan=PLAN, cohort=len(made.free))
        yield made


def send(device, task, data, claimed=b""):
    """Take the task and answer; with `claimed`, under another's hash."""
    device.acknowledge(task)
    offered = device.offer(task, claimed or data)
    first = device.start_of(task, offered.upload_id, claimed or data)
    return device.push_raw([first, *chunks(data, piece=1000)])


def untouched(at, device):
    """Everything but the one device's task, upload and standing, and what was told of it."""
    rows = [
        rows_of(at.fleet, kind) for kind in (Run, Round, Accepted, Head, ArtefactRow, Certificate)
    ]
    for kind in (Task, Upload, Device):
        rows.append([row for row in rows_of(at.fleet, kind) if row.device_id != device.id])
    files = sorted(path.name for path in (at.folder / "artefacts").rglob("*") if path.is_file())
    return [*rows, files, sorted(path.name for path in (at.folder / "uploads").iterdir())]


@pytest.mark.parametrize("name", [*REJECTIONS, "hash-mismatch"])
def test_a_rejected_answer_leaves_nothing(at, name):
    device = at.free.pop()
    task = device.next_task()
    device.acknowledge(task)  # the round collects, whoever is first
    if name == "hash-mismatch":
        word, data, claimed = "wrong-hash", update(filled(0.02)), update(filled(0.03))
    else:
        (word, make), claimed = REJECTIONS[name], b""
        data = make()
    before = untouched(at, device)
    with pytest.raises(RefusedError) as caught:
        send(device, task, data, claimed)
    assert caught.value.word == word, caught.value
    assert caught.value.failure.retry == "never"
    assert untouched(at, device) == before
    assert get(at.fleet, Task, task.task_id).state == "rejected"
    again = device.offer(task, claimed or data)
    assert (again.state, again.reason) == (fleet_pb2.UPLOAD_STATE_REJECTED, word)
    with pytest.raises(RefusedError) as caught:
        device.push(task, again.upload_id, claimed or data, again.offset)
    assert caught.value.word == word
    assert at.service.figures().rejected[word] >= 1


def test_a_good_answer_is_counted_once_however_often_it_comes(at):
    device = at.free.pop()
    task = device.next_task()
    data = update()
    assert send(device, task, data).state == fleet_pb2.UPLOAD_STATE_ACCEPTED
    before = at.state()
    for _ in range(2):
        again = device.offer(task, data)
        assert again.state == fleet_pb2.UPLOAD_STATE_ACCEPTED
        assert device.push(task, again.upload_id, data, again.offset)[0] == "ACCEPTED"
        assert device.acknowledge(task) == "ANSWERED"
    with pytest.raises(RefusedError) as caught:
        device.offer(task, update(filled(0.02)))
    assert caught.value.word == "another-answer"
    assert device.decline(task) == "ANSWERED"
    assert at.state() == before
    assert at.service.figures().accepted == 1
    assert len(rows_of(at.fleet, Accepted)) == 1
