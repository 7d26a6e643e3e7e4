"""Hypothesis' strategies over the contract: any message that its rules allow, and any damage."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from sordino.protos.v1 import common_pb2, fleet_pb2, operator_pb2, rules_pb2, work_pb2

KINDS = [
    kind
    for module in (common_pb2, work_pb2, fleet_pb2, operator_pb2)
    for kind in module.DESCRIPTOR.message_types_by_name.values()
]

Damage = tuple[str, int, int, int, bytes]
"""What, where, how far, how often (or which bit), and with what."""

damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "repeat", "insert", "splice", "tail"]),
        st.integers(0, 1 << 16),
        st.integers(0, 40),
        st.integers(1, 20),
        st.binary(max_size=40),
    ),
    min_size=1,
    max_size=4,
)


def damage(message: bytes, by: Sequence[Damage]) -> bytes:
    """Bits, cuts, repeats, splices: the same bytes for the same damage."""
    data = bytearray(message)
    for what, place, length, times, other in by:
        at = place % (len(data) + 1)
        to = min(at + length, len(data))
        match what:
            case "flip" if at < len(data):
                data[at] ^= 1 << times % 8
            case "cut":
                del data[at:to]
            case "repeat":
                data[at:at] = data[at:to] * times
            case "insert":
                data[at:at] = other
            case "splice":
                data[at:to] = other
            case "tail":
                del data[at:]
    return bytes(data)


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
