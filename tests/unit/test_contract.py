"""Records and the contract's bytes, both ways; and everything that isn't taken, by its word."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support import contracts
from support.contracts import (
    ADAPTER,
    DECODERS,
    HELLO,
    KEY,
    MOST,
    NOW,
    make_hello,
    make_look,
    make_measurement,
    make_order,
    make_update,
    open_hello,
    raw,
    raw_tensor,
    raw_update,
    seal_hello,
    task_bytes,
    update_bytes,
    varint,
)
from support.federation import MANIFEST, initial, make_metric_task, make_task

from sordino.core import adapters, contract
from sordino.core.contract import Artefact, gate, signing
from sordino.core.errors import ContractError, WireError
from sordino.privacy.ledger.keys import LedgerKey, signature_holds
from sordino.privacy.policy.check import REASONS as POLICY_REASONS
from sordino.protos.v1 import common_pb2, fleet_pb2, operator_pb2, work_pb2

PAGE = Path(__file__).parents[2] / "docs" / "contract.md"


def page() -> str:
    return PAGE.read_text("utf-8")


def test_the_page_says_which_revision_this_is() -> None:
    assert f"`HelloRequest.revision`; now {contract.REVISION})" in page()
    rows = re.findall(r"^\| (\d+) \| .*\|$", page().partition("| revision | added |")[2], re.M)
    assert [int(row) for row in rows] == list(range(1, contract.REVISION + 1))


def refused(reason: str, decode: Callable[[], object]) -> str:
    with pytest.raises(ContractError) as caught:
        decode()
    assert caught.value.reason == reason, str(caught.value)
    return str(caught.value)


def decode_update(data: bytes) -> object:
    return contract.decode_update(data, at_most=MOST)


# --- both ways ---------------------------------------------------------------------------------


def test_a_task_survives_and_is_the_clients_task() -> None:
    order = make_order()
    back = contract.decode_task(contract.encode_task(order))
    assert back == order
    tensors = contract.decode_adapter(ADAPTER, order.adapter or Artefact.of(b""))
    assert all(np.array_equal(tensors[n], t) for n, t in initial().items())
    task = replace(make_task(), tensors={})
    assert replace(back.client_task(tensors), tensors={}) == task


def test_the_first_rounds_task_has_no_adapter() -> None:
    order = make_order(adapter=None)
    back = contract.decode_task(contract.encode_task(order))
    assert back.adapter is None
    assert back.client_task({}) == make_task()
    refused("wrong-adapter", lambda: back.client_task(initial()))
    refused("wrong-adapter", lambda: make_order().client_task({}))


def another(kind: object, value: Any) -> Any:
    """A value of a setting that isn't the one at hand, and is possible."""
    if choices := get_args(kind):
        return next((choice for choice in choices if choice != value and choice is not ...), ())
    return value + 1 if kind is int else value / 2 or 0.25


def settings_of(section: str) -> list[str]:
    return [f"{section}.{known.name}" for known in fields(getattr(make_order(), section))]


@pytest.mark.parametrize("setting", settings_of("lora") + settings_of("train"))
def test_every_setting_of_a_task_travels(setting: str) -> None:
    """A setting that has no field in the contract comes back as its default."""
    section, name = setting.split(".")
    usual = getattr(make_order(), section)
    value = getattr(usual, name)
    hint = get_type_hints(type(usual))[name]
    changed = value[:1] if isinstance(value, tuple) else another(hint, value)
    assert changed != value
    order = make_order(**{section: replace(usual, **{name: changed})})
    assert contract.decode_task(contract.encode_task(order)) == order


def test_what_the_first_revision_had_is_sent_as_it_was() -> None:
    """Its devices take a task with a constant rate and one view; nothing else is sent to them."""
    order = make_order()
    contract.encode_task(order, revision=1)
    settings = work_pb2.Task.FromString(contract.encode_task(order)).train.train
    assert {field.name for field, _ in settings.ListFields()} == {
        "optimizer", "learning_rate", "local_steps", "momentum",
    }  # fmt: skip
    later = (
        replace(order, train=replace(order.train, schedule="cosine")),
        replace(order, train=replace(order.train, warmup=0.5)),
        replace(order, train=replace(order.train, views=2)),
        replace(order, base_kind="folder"),
        make_look(),
    )
    for task in later:
        refused("revision-too-old", lambda task=task: contract.encode_task(task, revision=1))
        assert contract.decode_task(contract.encode_task(task, revision=2)) == task


def test_a_look_survives_and_is_the_clients_task() -> None:
    order = make_look()
    back = contract.decode_task(contract.encode_task(order))
    assert back == order
    tensors = contract.decode_adapter(ADAPTER, order.adapter or Artefact.of(b""))
    assert replace(back.client_task(tensors), tensors={}) == make_metric_task()
    refused("wrong-adapter", lambda: back.client_task({}))


@pytest.mark.parametrize("value", [2.5, 0.0, -1e300, 5e-324])
def test_a_measurement_survives_with_its_signed_receipt(value: float) -> None:
    measurement, head = make_measurement(value)
    data = contract.encode_measurement(measurement, head)
    assert contract.decode_measurement(data) == (measurement, head)
    other = replace(head, receipt=replace(head.receipt, entry_index=9))
    refused("wrong-receipt", lambda: contract.encode_measurement(measurement, other))


def test_an_update_survives_with_its_signed_receipt() -> None:
    update, head = make_update()
    back, back_head = contract.decode_update(contract.encode_update(update, head), at_most=MOST)
    assert back_head == head
    assert replace(back, tensors={}) == replace(update, tensors={})
    assert all(back.tensors[n].tobytes() == t.tobytes() for n, t in update.tensors.items())
    assert all(back.tensors[n].dtype == np.float32 for n in update.tensors)
    bare = replace(update, receipt=None)
    again, none = contract.decode_update(contract.encode_update(bare, None), at_most=MOST)
    assert again.receipt is None
    assert none is None


def test_the_same_update_is_always_the_same_bytes() -> None:
    update, head = make_update()
    turned = replace(update, tensors=dict(reversed(update.tensors.items())))
    assert contract.encode_update(turned, head) == contract.encode_update(update, head)


def test_what_is_put_together_in_parts_is_what_protobuf_writes() -> None:
    for data, kind in ((update_bytes(), work_pb2.Update), (ADAPTER, work_pb2.Adapter)):
        message = kind.FromString(data)
        assert len(message.tensors) > 1
        assert message.SerializeToString(deterministic=True) == data


def test_fields_in_any_order_are_read() -> None:
    """Whoever encodes with another library may write the receipt before the tensors."""
    update, head = make_update()
    message = work_pb2.Update.FromString(update_bytes())
    tensors = b"".join(work_pb2.Update(tensors=[t]).SerializeToString() for t in message.tensors)
    message.ClearField("tensors")
    data = tensors + message.SerializeToString()
    assert data != update_bytes()
    back, back_head = contract.decode_update(data, at_most=MOST)
    assert back_head == head
    assert contract.encode_update(back, back_head) == contract.encode_update(update, head)


def test_a_receipt_carries_the_ledgers_own_signature() -> None:
    update, head = make_update()
    key = LedgerKey.generate()
    signed = replace(head, public_key=key.public, signature=key.sign(head.receipt.ledger_head))
    data = contract.encode_update(update, signed)
    _, back = contract.decode_update(data, at_most=MOST)
    assert back is not None
    assert signature_holds(back.public_key, back.receipt.ledger_head, back.signature)
    assert not signature_holds(back.public_key, "11" * 32, back.signature)


def test_a_manifest_survives_under_its_own_hash() -> None:
    data = MANIFEST.canonical()
    artefact = Artefact.of(data)
    assert artefact.sha256 == MANIFEST.sha256
    assert contract.decode_manifest(data, artefact) == MANIFEST


def test_a_real_models_task_fits() -> None:
    shape = {
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
    }
    manifest = adapters.adapter_manifest(shape, make_task().lora)
    data = manifest.canonical()
    assert contract.decode_manifest(data, Artefact.of(data)) == manifest
    order = make_order(manifest=Artefact.of(data))
    assert len(contract.encode_task(order)) < 4096


# --- what is not taken -------------------------------------------------------------------------

TENSOR = raw_tensor()
BAD_UPDATES: dict[str, tuple[str, bytes]] = {
    "nothing": ("missing-field", b""),
    "no tensor": ("missing-field", raw_update()),
    "ends in a tag": ("truncated", raw_update(TENSOR) + b"\x80"),
    "ends in a length": ("truncated", raw_update(TENSOR)[:-1]),
    "length beyond the end": ("truncated", raw_update(TENSOR) + b"\x2a\xff\xff\xff\xff\x0f"),
    "inner length beyond the outer": ("truncated", raw_update(TENSOR[:-1])),
    "a field that nobody knows": ("unknown-field", raw_update(TENSOR, rest=raw(77, 1))),
    "a reserved field": ("unknown-field", raw_update(TENSOR, rest=raw(6, b"loss"))),
    "an inner field that nobody knows": ("unknown-field", raw_update(TENSOR + raw(9, b"x"))),
    "field number 0": ("unknown-field", raw_update(TENSOR) + b"\x00\x00"),
    "a group": ("wrong-type", raw_update(TENSOR) + b"\x0b\x0c"),
    "a number for text": ("wrong-type", raw(1, 5) + raw_update(TENSOR)),
    "run twice": ("field-twice", raw_update(TENSOR) + raw(1, b"run-2")),
    "dtype twice": ("field-twice", raw_update(TENSOR + raw(2, 1))),
    "shape in two parts": ("field-twice", raw_update(TENSOR + raw(3, b"\x01"))),
    "a number of 65 bits": ("bad-number", raw(1, b"r") + b"\x10" + b"\xff" * 9 + b"\x7f"),
    "a number that never ends": ("bad-number", raw_update(TENSOR) + b"\x80" * 11),
    "a longer encoding": ("bad-number", raw(1, b"r") + b"\x10\x81\x00"),
    "round 0": ("missing-field", raw(1, b"r") + raw(2, 0)),
    "round too large": ("bad-number", raw(1, b"r") + raw(2, 2**31)),
    "a short hash": ("wrong-length", raw(1, b"r") + raw(2, 1) + raw(3, b"\x11" * 31)),
    "an empty run": ("missing-field", raw_update(TENSOR, run=b"")),
    "a long run": ("too-long", raw_update(TENSOR, run=b"r" * 129)),
    "a run that is a path": ("bad-value", raw_update(TENSOR, run=b"../../etc")),
    "a run with a newline": ("bad-text", raw_update(TENSOR, run=b"a\nb")),
    "a run that isn't UTF-8": ("bad-text", raw_update(TENSOR, run=b"\xff\xfe")),
    "a nameless tensor": ("missing-field", raw_update(raw_tensor(name=b""))),
    "a long name": ("too-long", raw_update(raw_tensor(name=b"n" * 257))),
    "an unprintable name": ("bad-text", raw_update(raw_tensor(name=b"\x1b[2J"))),
    "no dtype": ("missing-field", raw_update(raw_tensor(dtype=0)[:3] + raw(3, b"\1"))),
    "dtype 0": ("missing-field", raw_update(raw_tensor(dtype=0))),
    "another dtype": ("unknown-value", raw_update(raw_tensor(dtype=2))),
    "no shape": ("missing-field", raw_update(raw_tensor(shape=()))),
    "nine sizes": ("too-many", raw_update(raw_tensor(shape=(1,) * 9))),
    "a size of 0": ("bad-shape", raw_update(raw_tensor(shape=(0, 1)))),
    "a size of 2**31": ("bad-number", raw_update(raw_tensor(shape=(2**31,)))),
    "a product that overflows 64 bits": (
        "wrong-size",
        raw_update(raw_tensor(shape=(1_923_865, 429_509_837, 5_581))),  # 2**62 + 1: 4 bytes left
    ),
    "a shape that would be broadcast": ("wrong-size", raw_update(raw_tensor(shape=(4, 1)))),
    "a byte too many": ("wrong-size", raw_update(raw_tensor(data=b"\0" * 5))),
    "no data": ("missing-field", raw_update(raw_tensor(data=b""))),
    "a tensor twice": ("unsorted-tensors", raw_update(TENSOR, TENSOR)),
    "unsorted": ("unsorted-tensors", raw_update(raw_tensor(b"b"), raw_tensor(b"a"))),
    "an empty receipt": ("missing-field", raw_update(TENSOR, rest=raw(5, b""))),
    "too large": ("too-long", raw_update(raw_tensor(shape=(MOST,), data=b"\0" * 4 * MOST))),
}


@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_a_bad_update_is_refused_by_name(kind: str) -> None:
    reason, data = BAD_UPDATES[kind]
    assert len(refused(reason, lambda: decode_update(data))) < 400


MEASURED = contract.encode_measurement(*make_measurement())
BAD_MEASUREMENTS: dict[str, tuple[str, bytes]] = {
    "nothing": ("missing-field", b""),
    "no value": ("missing-field", MEASURED.replace(b"\x21" + struct.pack("<d", 2.5), b"")),
    "not a number": ("bad-number", MEASURED.replace(struct.pack("<d", 2.5), b"\xff" * 8)),
    "two values": ("field-twice", MEASURED + b"\x21" + struct.pack("<d", 2.5)),
    "no receipt": ("missing-field", MEASURED[: MEASURED.index(b"\x2a\x88")]),
    "a reserved field": ("unknown-field", MEASURED + raw(7, 13)),
    "an exact value beside": ("unknown-field", MEASURED + raw(10, b"\0" * 8)),
    "too large": ("too-long", MEASURED + bytes(1024)),
    "an update": ("wrong-type", raw_update(raw_tensor())),
}


@pytest.mark.parametrize("kind", BAD_MEASUREMENTS)
def test_a_bad_measurement_is_refused_by_name(kind: str) -> None:
    reason, data = BAD_MEASUREMENTS[kind]
    assert data != MEASURED
    refused(reason, lambda: contract.decode_measurement(data))


def spoil(**changes: object) -> bytes:
    message = work_pb2.Task.FromString(task_bytes())
    for path, value in changes.items():
        *above, last = path.split("__")
        target = message
        for name in above:
            target = getattr(target, name)
        if value is None:
            target.ClearField(last)  # type: ignore[arg-type]
        else:
            setattr(target, last, value)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("wrong-hash", {"plan": b"{}"}),
        ("wrong-hash", {"plan_sha256": b"\x11" * 32}),
        ("missing-field", {"plan": None}),
        ("missing-field", {"train__lora__init_seed": None}),
        ("missing-field", {"train__train__momentum": None}),
        ("missing-field", {"train__manifest": None}),
        ("wrong-kind", {"base__kind": common_pb2.ARTEFACT_KIND_ADAPTER}),
        ("unknown-value", {"base__kind": 99}),
        ("bad-number", {"base__size": 2**41}),
        ("missing-field", {"base__size": 0}),
        ("bad-number", {"deadline_unix_ms": -1}),
        ("bad-number", {"train__lora__alpha": float("inf")}),
        ("bad-number", {"train__train__learning_rate": float("nan")}),
        ("bad-settings", {"train__lora__alpha": -1.0}),
        ("bad-settings", {"train__train__momentum": 1.0}),
        ("missing-field", {"train__train__schedule__warmup": 0.5}),
        ("missing-field", {"train__train__views__count": 2}),
        ("bad-number", {"train__train__views__count": 17}),
        ("unknown-value", {"train__train__schedule__kind": 9}),
        ("bad-value", {"run_id": "../etc"}),
        ("too-long", {"plan": b"x" * 65537}),
        ("too-long", {"task_id": "t" * 65}),
        ("bad-number", {"max_answer_bytes": 2**31}),
    ],
)
def test_a_bad_task_is_refused_by_name(reason: str, changes: dict[str, object]) -> None:
    refused(reason, lambda: contract.decode_task(spoil(**changes)))


def test_a_task_for_other_work_is_refused() -> None:
    refused("unknown-work", lambda: contract.decode_task(spoil(train=None)))


def test_one_choice_is_one() -> None:
    both = raw(1, seal_hello().SerializeToString()) + raw(2, raw(2, b"data"))
    refused("two-choices", lambda: contract.from_bytes(both, fleet_pb2.PushUpdateRequest))


def test_a_number_that_is_not_finite_is_refused() -> None:
    hello = make_hello().SerializeToString()
    calibration = raw(1, b"\1" * 32) + b"\x11" + struct.pack("<d", float("nan")) + raw(3, 1)
    data = hello + raw(4, calibration + raw(5, 1))
    refused("bad-number", lambda: contract.from_bytes(data, fleet_pb2.HelloRequest))


def test_a_list_that_is_too_long_is_refused() -> None:
    hello = make_hello()
    hello.capabilities.model_formats.extend(["Q4_1"] * 63)
    refused("too-many", lambda: contract.to_bytes(hello))


def test_what_would_not_be_taken_is_not_sent() -> None:
    update, head = make_update()
    refused("wrong-receipt", lambda: contract.encode_update(update, None))
    refused("wrong-receipt", lambda: contract.encode_update(replace(update, receipt=None), head))
    name = next(iter(update.tensors))
    double = replace(update, tensors={name: np.ones(2)})
    refused("wrong-dtype", lambda: contract.encode_update(double, head))
    refused("missing-field", lambda: contract.encode_adapter({}))
    order = make_order()
    huge = replace(order, lora=replace(order.lora, init_seed=2**64))
    refused("bad-value", lambda: contract.encode_task(huge))


def test_artefacts_are_what_their_hash_says() -> None:
    other = Artefact.of(b"other")
    refused("wrong-hash", lambda: contract.decode_adapter(ADAPTER, other))
    refused("wrong-hash", lambda: contract.decode_manifest(MANIFEST.canonical(), other))
    with pytest.raises(WireError, match="size"):
        Artefact(sha256="ab" * 32, size=0)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        b"[1]",
        b'[["a"]]',
        b'[["a",[0]]]',
        b'[["a",[1.0]]]',
        b'[["a",[true]]]',
        b'[["a",["1"]]]',
        b'[["a", [1]]]',
        b'[["b",[1]],["a",[1]]]',
        b'[["a",[1]],["a",[1]]]',
        b"[" * 100_000,
        b'[["a",[1]]]\n',
        b"\xff",
    ],
)
def test_a_bad_manifest_is_refused(data: bytes) -> None:
    refused("bad-manifest", lambda: contract.decode_manifest(data, Artefact.of(data)))


def test_nothing_hostile_is_allocated() -> None:
    """32 MB of tiny tensors: the gate stops at its count; protobuf's parser would take them all."""
    code = """
from pathlib import Path
from support.contracts import raw, raw_tensor, raw_update
from sordino.core import contract
from sordino.core.errors import ContractError
from sordino.protos.v1 import work_pb2
data = raw_update() + raw(4, raw_tensor()) * 2_000_000
# Not getrusage: what a process was before exec counts there.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10
before = peak()
try:
    contract.decode_update(data, at_most=1 << 30)
except ContractError as error:
    print(error.reason, peak() - before)
work_pb2.Update.FromString(data)
print("parsed", peak() - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (reason, gated), (_, parsed) = (line.split() for line in found.stdout.splitlines())
    assert reason == "too-many"
    assert int(gated) < 16  # MB
    assert int(parsed) > 64


def test_every_way_in_takes_its_own_message() -> None:
    for decode, good in DECODERS.values():
        decode(good)


# --- signatures --------------------------------------------------------------------------------


def test_a_signed_request_opens() -> None:
    opened = open_hello(seal_hello().SerializeToString())
    assert opened.body == make_hello()
    assert opened.statement.device_id == "device-1"
    assert len(opened.statement.nonce) == 16


def test_each_request_has_its_own_nonce_and_a_retry_the_same() -> None:
    first, second = seal_hello(), seal_hello()
    opened = [open_hello(s.SerializeToString()) for s in (first, first, second)]
    assert opened[0].statement_sha256 == opened[1].statement_sha256
    assert opened[0].statement.nonce != opened[2].statement.nonce


def resealed(**changes: object) -> bytes:
    """A request whose statement was changed and then signed by the right key."""
    signed = seal_hello()
    statement = common_pb2.Statement.FromString(signed.statement)
    for name, value in changes.items():
        setattr(statement, name, value)
    signed.statement = statement.SerializeToString()
    signed.signature = KEY.sign(signing.PREFIX + signed.statement, signing.ECDSA)
    return signed.SerializeToString()


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("wrong-device", {"device_id": "device-2"}),
        ("wrong-method", {"method": "/sordino.v1.Fleet/Leave"}),
        ("wrong-body", {"body_sha256": b"\1" * 32}),
        ("clock-skew", {"issued_at_unix_ms": NOW + 600_001}),
        ("clock-skew", {"issued_at_unix_ms": NOW - 600_001}),
        ("wrong-length", {"nonce": b"\1" * 15}),
    ],
)
def test_a_statement_about_something_else_is_refused(
    reason: str, changes: dict[str, object]
) -> None:
    refused(reason, lambda: open_hello(resealed(**changes)))
    open_hello(resealed(issued_at_unix_ms=NOW - 600_000))


def test_every_flipped_bit_of_a_signed_request_is_seen() -> None:
    data = seal_hello().SerializeToString()
    for bit in range(0, 8 * len(data), 3):
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ContractError):
            open_hello(bytes(spoiled))


def test_another_key_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    signed = contract.seal(other, make_hello(), device_id="device-1", method=HELLO, now_unix_ms=NOW)
    refused("bad-signature", lambda: open_hello(signed.SerializeToString()))


@pytest.mark.parametrize(
    "method", ["/sordino.v1.Fleet/Enroll", "/sordino.v1.Fleet/X", "/sordino.v1.Operator/GetRun", ""]
)
def test_only_the_fleets_methods_are_signed(method: str) -> None:
    refused("wrong-method", lambda: contract.body_kind(method))


def test_a_body_of_another_method_is_not_sealed() -> None:
    body = fleet_pb2.LeaveRequest()
    refused(
        "wrong-method",
        lambda: contract.seal(KEY, body, device_id="d", method=HELLO, now_unix_ms=NOW),
    )


# --- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", contract.REASONS)
def test_every_failure_survives(reason: str) -> None:
    data = contract.encode_failure(reason, "why", retry_after_ms=5, now_unix_ms=NOW)
    back = contract.decode_failure(data)
    assert (back.reason, back.message) == (reason, "why")
    assert back.retry == contract.REASONS[reason].retry
    assert (back.retry_after_ms, back.now_unix_ms) == (5, NOW)
    assert len(data) < 8192 * 3 // 4  # what gRPC's metadata takes, in base64


def test_a_failures_text_is_one_short_line() -> None:
    data = contract.encode_failure("internal", "a\nb\x1b" + "é" * 2000)
    back = contract.decode_failure(data)
    assert back.message.startswith("a b ")
    assert len(back.message.encode()) <= 1024
    refused("bad-value", lambda: contract.encode_failure("no-such-word", ""))


def test_a_later_revisions_failure_is_read() -> None:
    data = raw(1, b"some-new-word") + raw(3, 77) + raw(90, b"more")
    back = contract.decode_failure(data)
    assert (back.reason, back.retry) == ("some-new-word", "never")
    refused("malformed", lambda: contract.decode_failure(b"\xff"))
    refused("malformed", lambda: contract.decode_failure(bytes(5000)))


def raised_words() -> set[str]:
    """Every word that the contract's code refuses with."""
    folder = Path(gate.__file__).parent
    text = "".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    found = re.findall(r'(?:ContractError|_refused|_named)\(\s*"([a-z-]+)"', text)
    return {*found, "missing-field", "wrong-device", "wrong-method"}


def test_every_word_that_is_raised_has_a_code() -> None:
    assert len(raised_words()) > 20
    assert raised_words() <= set(contract.REASONS)


# --- the page ----------------------------------------------------------------------------------


def test_the_page_lists_every_word_with_its_code_and_retry() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([a-z-]+) \| (.+?) \|", page(), re.M)
    listed = {
        word: (code, retry)
        for code, retry, words in rows
        for word in re.findall(r"`([a-z-]+)`", words)
    }
    assert listed == {word: (r.code, r.retry) for word, r in contract.REASONS.items()}


def test_the_page_lists_every_refusal_of_a_device() -> None:
    section = page().partition("### A device's refusals")[2].partition("\n#")[0]
    words = set(re.findall(r"`([a-z-]+)`", section))
    assert set(POLICY_REASONS) <= words
    assert {"malformed-task", "plan-refused", "ledger-refused", "model-mismatch"} <= words


def test_the_page_names_every_method() -> None:
    text = page()
    for services in (fleet_pb2, operator_pb2):
        for service in services.DESCRIPTOR.services_by_name.values():
            assert [m.name for m in service.methods if f"`{m.name}`" not in text] == []


def test_the_page_gives_the_limits_as_they_are() -> None:
    text = page()
    limits = re.findall(r"^\| .+ \| ([\d ]+) \| `(\w+)(?:\.(\w+))?` \|", text, re.M)
    assert len(limits) > 12
    for value, kind, name in limits:
        found = contracts.limit(kind, name)
        assert int(value.replace(" ", "")) in found, (kind, name, value, found)


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """One block of Philox 4x64-10 (Salmon et al. 2011), in whole numbers."""
    word = 2**64 - 1
    x = [counter & word, counter >> 64, 0, 0]
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [b >> 64 ^ x[1] ^ k0, b & word, a >> 64 ^ x[3] ^ k1, a & word]
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & word, k1 + 0xBB67AE8584CAA73B & word
    return x


def test_the_initial_a_can_be_drawn_from_the_page_alone() -> None:
    rule = re.search(r"For shape \[2, 3\], seed 0 and `(.+)` the bytes are `(.+)`", page())
    assert rule
    name, known = rule.groups()
    digest = hashlib.sha256(f"sordino/lora-init/0/{name}".encode()).digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    words = [word for counter in (1, 2) for word in philox(key, counter)][:6]
    values = [(2 * (word >> 40) * 2.0**-24 - 1) * (1 / 3**0.5) for word in words]
    assert struct.pack("<6f", *values).hex() == known


def test_varints_are_what_protobuf_writes() -> None:
    for value in (0, 1, 127, 128, 300, 2**32, 2**64 - 1):
        encoded = work_pb2.LoraSettings(init_seed=value).SerializeToString()
        assert encoded.endswith(varint(value))


def test_the_updates_own_bytes_pass_the_gate() -> None:
    gate.check(update_bytes(), work_pb2.Update.DESCRIPTOR)
