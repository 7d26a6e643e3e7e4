"""Whatever comes: one named refusal, or a message that protobuf reads as well; never a big bill."""

from __future__ import annotations

import tracemalloc

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st
from support.contracts import DECODERS, MOST, raw_tensor, raw_update
from support.messages import KINDS, Damage, damage, damages, messages

from sordino.core import contract
from sordino.core.contract import gate
from sordino.core.errors import ContractError
from sordino.protos.v1 import rules_pb2, work_pb2

LIMIT = 1 << 20
"""Bytes that no decoder may allocate over inputs of a few kilobytes."""

# --- hostile bytes -----------------------------------------------------------------------------


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid message after some damage, perhaps with a piece of another one in it."""
    name = draw(st.sampled_from(sorted(DECODERS)))
    data = DECODERS[name][1]
    if draw(st.booleans()):
        other = DECODERS[draw(st.sampled_from(sorted(DECODERS)))][1]
        at = draw(st.integers(0, len(data)))
        to = at + draw(st.integers(0, 40))
        data = data[:at] + other[at:to] + data[to:]
    return name, damage(data, draw(damages))


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


@given(any_message(), damages)
@settings(max_examples=300, deadline=None)
def test_a_damaged_message_is_refused_or_read(message: Message, by: list[Damage]) -> None:
    """Whichever message it was; what is read is read the same from then on."""
    data = damage(message.SerializeToString(deterministic=True), by)
    reason, read = "", None
    try:
        read = contract.from_bytes(data, type(message))
    except ContractError as error:
        reason = error.reason
    if read is None:
        assert reason in set(contract.REASONS) - {"malformed"}
        return
    again = contract.to_bytes(read)
    assert contract.from_bytes(again, type(message)) == read
    assert len(again) <= len(data)


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
