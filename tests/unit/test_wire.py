from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.federation import LORA, MANIFEST, TRAIN, filled, initial, make_task, update_for

from sordino.core import adapters, wire
from sordino.core import app as flower
from sordino.core.config import LoraConfig
from sordino.core.errors import ConfigError, ModelError, UpdateRejectedError, WireError
from sordino.core.records import AdapterManifest, Receipt, TensorSpec, TrainTask, Update
from sordino.core.wire import (
    Envelope,
    decode_task,
    decode_update,
    encode_task,
    encode_update,
    pack,
    unpack,
)

names = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=20)
scalars = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
dtypes = st.sampled_from(["float32", "float64", "int32", "int64", "uint8"])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    return np.asarray(random.uniform(0, 100, shape)).astype(draw(dtypes))


envelopes = st.builds(
    Envelope,
    st.dictionaries(names, scalars, max_size=5),
    st.dictionaries(names, arrays(), max_size=4),
)


def same(a: Envelope, b: Envelope) -> bool:
    return (
        dict(a.fields) == dict(b.fields)
        and [type(v) for v in a.fields.values()] == [type(b.fields[k]) for k in a.fields]
        and set(a.tensors) == set(b.tensors)
        and all(
            t.dtype == b.tensors[n].dtype
            and t.shape == b.tensors[n].shape
            and t.tobytes() == b.tensors[n].tobytes()
            for n, t in a.tensors.items()
        )
    )


@given(envelopes)
@settings(max_examples=150, deadline=None)
def test_envelopes_survive_bytes_and_flower(envelope: Envelope) -> None:
    assert same(unpack(pack(envelope)), envelope)
    assert same(flower.from_records(flower.to_records(envelope)), envelope)


@given(envelopes, st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused_or_still_an_envelope(
    envelope: Envelope, where: int, byte: int
) -> None:
    data = bytearray(pack(envelope))
    data[where % len(data)] = byte
    for damaged in (bytes(data), bytes(data[: where % len(data)]), bytes(data) + b"x"):
        with contextlib.suppress(WireError):  # any other exception fails
            wire.check_envelope(unpack(damaged))


def packed(header: object, body: bytes = b"", text: str | None = None) -> bytes:
    encoded = (text if text is not None else json.dumps(header)).encode()
    return b"SORDENV1" + struct.pack("<Q", len(encoded)) + encoded + body


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "other bytes"),
        (b"\x80\x04pickle-is-not-read..", "other bytes"),
        (b"SORDENV1" + struct.pack("<Q", 2**60), "header size"),
        (packed(None, text="{"), "expected JSON"),
        (packed(None, text="[" * 100_000), "expected JSON"),
        (packed([]), "fields and tensors"),
        (packed({"fields": {}, "tensors": [], "more": 1}), "fields and tensors"),
        (packed(None, text='{"fields":{},"fields":{},"tensors":[]}'), "twice"),
        (packed({"fields": {"a": ["int", 2**63]}, "tensors": []}), "64 bits"),
        (packed({"fields": {"a": ["int", True]}, "tensors": []}), "str, bytes, int or float"),
        (packed({"fields": {"a": ["float", "nan"]}, "tensors": []}), "finite"),
        (packed({"fields": {"a": ["float", "x"]}, "tensors": []}), "hexadecimal"),
        (packed({"fields": {"a": ["bytes", "*"]}, "tensors": []}), "base64"),
        (packed({"fields": {"a": 1}, "tensors": []}), "neither"),
        (packed({"fields": {"a\n": ["int", 1]}, "tensors": []}), "printable"),
        (packed({"fields": {}, "tensors": [["t", "float32", [2]]]}, b"1234"), "within the message"),
        (packed({"fields": {}, "tensors": [["t", "float32", [1]]]}, b"12345"), "after the last"),
        (packed({"fields": {}, "tensors": [["t", "object", [1]]]}, b"12345678"), "dtype"),
        (packed({"fields": {}, "tensors": [["t", "float16", [1]]]}, b"12"), "dtype"),
        (packed({"fields": {}, "tensors": [["t", "uint8", [-1]]]}), "whole sizes"),
        (packed({"fields": {}, "tensors": [["t", "uint8", [True]]]}, b"1"), "whole sizes"),
        (packed({"fields": {}, "tensors": [["t", "uint8", [2**40]]]}), "bytes of t"),
        (packed({"fields": {}, "tensors": [["t", "uint8", [2**62, 2**62, 0]]]}), "bytes of t"),
        (packed({"fields": {}, "tensors": [["t", "uint8", [0]]] * 2}), "each name once"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        unpack(data)


def test_arrays_are_read_only_views() -> None:
    data = pack(Envelope({}, {"t": np.ones(4, np.float32)}))
    tensor = unpack(data).tensors["t"]
    assert not tensor.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tensor[0] = 2


def test_what_cannot_travel_is_refused_when_packed() -> None:
    for envelope, words in [
        (Envelope({"a": True}), "str, bytes, int or float"),
        (Envelope({"a": float("inf")}), "finite"),
        (Envelope({"": 1}), "printable"),
        (Envelope({}, {"t": np.array(["x"], object)}), "dtype"),
        (Envelope({}, {"t": np.ones(2, np.complex64)}), "dtype"),
        (Envelope({}, {"t": np.float32(1)}), "an array"),  # type: ignore[dict-item]
    ]:
        with pytest.raises(WireError, match=words):
            pack(envelope)
        with pytest.raises(WireError, match=words):
            flower.to_records(envelope)


def npy(array: np.ndarray) -> bytes:
    return Array(array).data


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (1 << 40,), "numpy.ndarray", npy(np.ones(2, np.float32))),
        Array("float32", (3,), "numpy.ndarray", npy(np.ones(2, np.float32))),
        Array("float64", (2,), "numpy.ndarray", npy(np.ones(2, np.float32))),
        Array("float32", (2,), "numpy.ndarray", npy(np.ones(2, ">f4"))),
        Array("float32", (2, 3), "numpy.ndarray", npy(np.ones((3, 2), np.float32).T)),
        Array("float32", (2,), "numpy.ndarray", npy(np.ones(2, np.float32))[:-1]),
        Array("float32", (2,), "numpy.ndarray", npy(np.ones(2, np.float32)) + b"x"),
        Array("float32", (2,), "numpy.ndarray", b""),
        Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY\x02\x00" + bytes(200)),
        Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY\x01\x00\x20\x00" + b"x" * 40),
        Array("float32", (2,), "pickle", npy(np.ones(2, np.float32))),
        Array("object", (2,), "numpy.ndarray", npy(np.ones(2, np.float32))),
    ],
)
def test_arrays_that_lie_are_refused(array: Array) -> None:
    arrays = ArrayRecord({"t": array})
    with pytest.raises(WireError):
        flower.from_records(RecordDict({"sordino": ConfigRecord(), "tensors": arrays}))


def test_other_records_are_refused() -> None:
    good = flower.to_records(Envelope({"a": 1}))
    for name, record in [
        ("metrics", MetricRecord({"n": 1})),
        ("sordino", MetricRecord({"n": 1})),
        ("tensors", ConfigRecord()),
        ("sordino", ConfigRecord({"a": True})),
        ("sordino", ConfigRecord({"a": [1, 2]})),
    ]:
        with pytest.raises(WireError):
            flower.from_records(RecordDict({**dict(good.items()), name: record}))
    with pytest.raises(WireError, match="records"):
        flower.from_records(RecordDict({"sordino": ConfigRecord()}))


def test_records_size_counts_the_payload() -> None:
    records = flower.to_records(Envelope({"ab": "cde"}, {"t": np.ones(1000, np.float32)}))
    assert 4000 < flower.records_size(records) < 4200


# --- records -----------------------------------------------------------------------------------


def test_a_task_survives() -> None:
    task = make_task()
    back = decode_task(unpack(pack(encode_task(task))))
    assert (back.run_id, back.round, back.plan) == (task.run_id, task.round, task.plan)
    assert (back.lora, back.train) == (LORA, TRAIN)
    assert back.tensors == {}  # the public initial adapter doesn't travel


def test_an_update_survives() -> None:
    update = update_for(make_task(), filled(0.5))
    back = decode_update(unpack(pack(encode_update(update))))
    assert back.receipt == update.receipt
    assert all(np.array_equal(back.tensors[n], t) for n, t in update.tensors.items())
    without = Update(**{**update.__dict__, "receipt": None})
    assert decode_update(encode_update(without)).receipt is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "update"}, "kind"),
        ({"version": 2}, "version"),
        ({"round": "1"}, "round"),
        ({"round": 0}, "round"),
        ({"run-id": "../../etc"}, "run_id"),
        ({"base-sha256": "AB" * 32}, "base_sha256"),
        ({"plan": "text"}, "plan"),
        ({"lora": "{}"}, "canonical"),
        ({"lora": '{"aggregation":"ffa"}'}, "canonical"),
        ({"lora": "[]"}, "JSON object"),
        ({"train": '{"surprise":1}'}, "surprise"),
        ({"train": '{"learning_rate":-1.0}'}, "learning_rate"),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_a_task_that_is_not_quite_one_is_refused(change: dict[str, object], words: str) -> None:
    good = encode_task(make_task())
    with pytest.raises(WireError, match=words):
        decode_task(Envelope({**good.fields, **change}, good.tensors))  # type: ignore[dict-item]


def test_a_missing_field_is_refused() -> None:
    good = encode_update(update_for(make_task(), filled(0.5)))
    for name in set(good.fields) - {"ledger-head"}:
        fields = {k: v for k, v in good.fields.items() if k != name}
        with pytest.raises(WireError):
            decode_update(Envelope(fields, good.tensors))


def test_impossible_records_are_refused() -> None:
    with pytest.raises(WireError, match="shape"):
        TensorSpec("a", (0, 2))
    with pytest.raises(WireError, match="sorted"):
        AdapterManifest((TensorSpec("b", (1,)), TensorSpec("a", (1,))))
    with pytest.raises(WireError, match="entry_index"):
        Receipt(ledger_head="0" * 64, entry_index=-1)
    with pytest.raises(WireError, match="in the manifest"):
        MANIFEST.subset(["other"])


# --- adapters ----------------------------------------------------------------------------------

LLAMA = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
}


def test_smollm2_has_the_known_number_of_parameters() -> None:
    assert adapters.adapter_manifest(LLAMA, LoraConfig(rank=8)).parameter_count == 2_442_240


def test_manifest_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        adapters.adapter_manifest(LLAMA, LoraConfig(targets=("lm_head",)))
    with pytest.raises(ModelError, match="hidden_size"):
        adapters.adapter_manifest({}, LoraConfig())


@pytest.mark.parametrize(
    ("aggregation", "round_number", "a", "b"),
    [
        ("ffa", 1, False, True),
        ("ffa", 2, False, True),
        ("rolora", 1, False, True),
        ("rolora", 2, True, False),
        ("rolora", 3, False, True),
        ("fedit", 1, True, True),
        ("fedit", 2, True, True),
    ],
)
def test_which_tensors_train(aggregation: str, round_number: int, a: bool, b: bool) -> None:
    trained = adapters.trained_manifest(MANIFEST, aggregation, round_number)  # type: ignore[arg-type]
    assert any(adapters.is_lora_a(n) for n in trained.names) == a
    assert any(not adapters.is_lora_a(n) for n in trained.names) == b
    assert trained.names == tuple(n for n in MANIFEST.names if (a if adapters.is_lora_a(n) else b))


def test_the_initial_adapter_is_the_same_everywhere() -> None:
    # Known answer: a change here makes old and new devices disagree on A.
    spec = TensorSpec(adapters.tensor_names("model.layers.0.self_attn.q_proj")[0], (2, 3))
    known = adapters.initial_tensor(spec, 0)
    assert known.dtype == np.float32
    assert known.tobytes().hex() == KNOWN_A
    assert not np.array_equal(known, adapters.initial_tensor(spec, 1))


KNOWN_A = "76c94cbe1a1f84be26a6a03eb94ab1be7f43893eb92d813d"


def test_the_initial_a_is_pefts() -> None:
    manifest = adapters.adapter_manifest(LLAMA, LoraConfig(rank=64))
    spec = next(s for s in manifest.tensors if adapters.is_lora_a(s.name))
    values = adapters.initial_tensor(spec, 7).ravel().astype(np.float64)
    bound = spec.shape[1] ** -0.5
    assert np.abs(values).max() <= bound
    deviation = bound / np.sqrt(3)
    assert abs(values.std() / deviation - 1) < 0.02
    assert abs(values.mean()) < 5 * deviation / np.sqrt(values.size)
    for part in np.array_split(np.sort(values), 10):  # uniform: ten equal shares
        assert abs(np.ptp(part) / (2 * bound / 10) - 1) < 0.05


def test_only_what_changed_travels_and_the_rest_is_filled_in() -> None:
    adapter = initial()
    changed = {
        name: t + np.float32(1) for name, t in adapter.items() if not adapters.is_lora_a(name)
    }
    adapter |= changed
    travels = adapters.changed_tensors(adapter, MANIFEST, 0)
    assert set(travels) == set(changed)
    back = adapters.complete_adapter(travels, MANIFEST, 0)
    assert all(np.array_equal(back[n], adapter[n]) for n in MANIFEST.names)
    with pytest.raises(UpdateRejectedError, match="extra-tensor"):
        adapters.complete_adapter({**travels, "x": travels[next(iter(travels))]}, MANIFEST, 0)


def test_a_task_holds_the_manifest_it_was_made_for() -> None:
    task = make_task()
    assert isinstance(task, TrainTask)
    assert task.manifest_sha256 == MANIFEST.sha256
    other = adapters.adapter_manifest(LLAMA, LORA)
    assert other.sha256 != MANIFEST.sha256
