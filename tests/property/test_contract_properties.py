"""Whatever comes: one named refusal, or a message that protobuf reads as well; never a big bill."""

from __future__ import annotations

import tracemalloc

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st
from support.contracts import DECODERS, MOST, raw_tensor, raw_update

from sordino.core import contract
from sordino.core.contract import gate
from sordino.core.errors import ContractError
from sordino.protos.v1 import common_pb2, fleet_pb2, operator_pb2, rules_pb2, work_pb2

LIMIT = 1 << 20
"""Bytes that no decoder may allocate over inputs of a few kilobytes."""

KINDS = [
    kind
    for module in (common_pb2, work_pb2, fleet_pb2, operator_pb2)
    for kind in module.DESCRIPTOR.message_types_by_name.values()
]

# --- hostile bytes -----------------------------------------------------------------------------


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid message after some damage: bits, cuts, repeats, splices, or other bytes entirely."""
    name = draw(st.sampled_from(sorted(DECODERS)))
    data = bytearray(DECODERS[name][1])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(at + draw(st.integers(0, 40)), len(data))
        match draw(st.sampled_from(["flip", "cut", "repeat", "insert", "splice", "tail"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:to]
            case "repeat":
                data[at:at] = data[at:to] * draw(st.integers(1, 20))
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "splice":
                other = DECODERS[draw(st.sampled_from(sorted(DECODERS)))][1]
                data[at:to] = other[at:to]
            case "tail":
                del data[at:]
    return name, bytes(data)


hostile = st.one_of(
    spoiled(),
    st.tuples(st.sampled_from(sorted(DECODERS)), st.binary(max_size=200)),
)


def withstand(case: tuple[str, bytes]) -> None:
    """Nothing but a named refusal comes out, and nothing large was allocated."""
    name, data = case
    if not data:
        return
    reason = None
    tracemalloc.start()
    try:
        DECODERS[name][0](data)
    except ContractError as error:
        reason = error.reason
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert reason is None or reason in contract.REASONS
    # What the gate lets through, protobuf reads: only a failure is parsed without the gate.
    assert reason != "malformed" or name == "failure"
    assert peak < LIMIT


@given(hostile)
@settings(max_examples=400, deadline=None)
def test_hostile_bytes_meet_a_named_refusal(case: tuple[str, bytes]) -> None:
    withstand(case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(hostile)
@settings(max_examples=100_000, deadline=None)
def test_a_hundred_thousand_hostile_inputs(case: tuple[str, bytes]) -> None:
    withstand(case)


@given(st.binary(max_size=60), st.sampled_from(KINDS))
@settings(max_examples=300, deadline=None)
def test_what_the_gate_lets_through_protobuf_reads_the_same(data: bytes, kind: Descriptor) -> None:
    try:
        gate.check(data, kind)
    except ContractError:
        return
    message = GetMessageClass(kind).FromString(data)
    known = GetMessageClass(kind)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    assert contract.from_bytes(contract.to_bytes(known), type(known)) == message


# --- every message that its rules allow --------------------------------------------------------


def values(field: FieldDescriptor) -> st.SearchStrategy:
    """Values of one field, or of one item of it, within its rules."""
    rules = field.GetOptions().Extensions[rules_pb2.field_rules]
    least = int(rules.required and not field.has_presence)
    most = rules.max_value
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return messages(field.message_type)
        case FieldDescriptor.TYPE_BYTES:
            exact = rules.exact_bytes
            return st.binary(min_size=exact or least, max_size=exact or min(rules.max_bytes, 40))
        case FieldDescriptor.TYPE_STRING:
            letters = st.characters(codec="ascii", categories=["L", "N", "P"])
            return st.text(letters, min_size=least, max_size=8)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_DOUBLE:
            return st.floats(allow_nan=False, allow_infinity=False).filter(
                lambda value: bool(value) or not least
            )
        case FieldDescriptor.TYPE_ENUM:
            return st.sampled_from([v.number for v in field.enum_type.values][least:])
        case FieldDescriptor.TYPE_UINT32:
            return st.integers(least, most or 2**32 - 1)
        case FieldDescriptor.TYPE_UINT64:
            return st.integers(least, most or 2**64 - 1)
    return st.integers(least, 2**63 - 1)


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor) -> Message:
    """Any message of a kind, as its rules allow it."""
    message = GetMessageClass(kind)()
    chosen = {
        oneof.name: draw(st.sampled_from([field.name for field in oneof.fields]))
        for oneof in kind.oneofs
        if not oneof.name.startswith("_")
    }
    for field in kind.fields:
        rules = field.GetOptions().Extensions[rules_pb2.field_rules]
        oneof = field.containing_oneof
        if oneof is not None and chosen.get(oneof.name, field.name) != field.name:
            continue
        if not rules.required and oneof is None and draw(st.booleans()):
            continue
        if field.is_repeated:
            items = draw(st.lists(values(field), min_size=int(rules.required), max_size=2))
            getattr(message, field.name).extend(items)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            inner = getattr(message, field.name)
            inner.SetInParent()
            inner.CopyFrom(draw(values(field)))
        else:
            setattr(message, field.name, draw(values(field)))
    return message


@st.composite
def any_message(draw: st.DrawFn) -> Message:
    return draw(messages(draw(st.sampled_from(KINDS))))


@given(any_message())
@settings(max_examples=200, deadline=None)
def test_the_gate_takes_every_message_that_keeps_the_rules(message: Message) -> None:
    data = contract.to_bytes(message)
    assert contract.from_bytes(data, type(message)) == message


@given(any_message(), st.data())
@settings(max_examples=200, deadline=None)
def test_without_a_required_field_it_takes_none(message: Message, data: st.DataObject) -> None:
    required = [
        field.name
        for field in message.DESCRIPTOR.fields
        if field.GetOptions().Extensions[rules_pb2.field_rules].required
    ]
    if not required:
        return
    message.ClearField(data.draw(st.sampled_from(required)))
    with pytest.raises(ContractError, match="missing-field"):
        gate.check(message.SerializeToString(), message.DESCRIPTOR)


# --- tensors -----------------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 2**32), max_size=9).map(tuple)


@given(sizes, st.integers(0, 64), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_a_tensor_is_taken_only_as_large_as_it_says(
    shape: tuple[int, ...], size: int, dtype: int
) -> None:
    data = raw_update(raw_tensor(dtype=dtype, shape=shape, data=bytes(size)))
    try:
        update, _ = contract.decode_update(data, at_most=MOST)
    except ContractError:
        return
    assert update.tensors["t"].shape == shape
    assert update.tensors["t"].nbytes == size == 4 * update.tensors["t"].size
    assert dtype == work_pb2.D_TYPE_FLOAT32


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
@settings(max_examples=50, deadline=None)
def test_a_true_tensor_is_taken(shape: tuple[int, ...]) -> None:
    size = 4
    for length in shape:
        size *= length
    data = raw_update(raw_tensor(shape=shape, data=bytes(range(256))[:size].ljust(size, b"\1")))
    update, _ = contract.decode_update(data, at_most=MOST)
    assert update.tensors["t"].shape == shape
