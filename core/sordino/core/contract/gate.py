"""The gate before the parser: whether bytes may be parsed as a message of the contract at all.

A protobuf parser allocates what the bytes ask for, skips what it doesn't know, and takes the last
of two values. Two bytes of input can cost a hundred of memory. So the bytes are walked first,
against the descriptor and the limits that the .proto files carry (`rules.proto`); nothing is
allocated but a few numbers, and the walk ends at the first thing that is wrong. What passes is
small, complete and unambiguous, and protobuf's own parser then reads it.

Only what the contract uses is known here: no maps, groups, recursion, nor signed or fixed integers.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from sordino.core.errors import ContractError, expected
from sordino.protos.v1 import rules_pb2

DEFAULT_STRING_BYTES: Final = 256
"""The most bytes of a string that has no rule of its own."""

DEFAULT_MESSAGE_BYTES: Final = 1 << 22
"""The most bytes of a message that has no rule of its own: gRPC's own limit."""

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_DOUBLE = struct.Struct("<d")
_LARGEST = {
    FieldDescriptor.TYPE_BOOL: 1,
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
    FieldDescriptor.TYPE_INT64: 2**63 - 1,  # times: none is negative
    FieldDescriptor.TYPE_ENUM: 2**31 - 1,
}
KNOWN_TYPES: Final = frozenset(
    {
        *_LARGEST,
        FieldDescriptor.TYPE_DOUBLE,
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BYTES,
        FieldDescriptor.TYPE_MESSAGE,
    }
)
"""The field types that the contract may use."""


def check(data: bytes, kind: Descriptor) -> None:
    """Refuse bytes that aren't exactly one message of a kind, within all of its rules.

    Args:
        data: What came.
        kind: What it should be.

    Raises:
        ContractError: With reason ``too-long``, ``truncated``, ``unknown-field``, ``wrong-type``,
            ``field-twice``, ``too-many``, ``wrong-length``, ``missing-field``, ``bad-number``,
            ``bad-text``, ``unknown-value`` or ``two-choices``.
    """
    layout = _layout(kind)
    if len(data) > layout.max_bytes:
        raise _refused("too-long", kind.name, f"{len(data)} bytes", f"<= {layout.max_bytes}")
    _message(_Bytes(memoryview(data), 0, len(data)), layout)


def cut_out(data: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """Take a repeated field's items out of the bytes of a message that `check` let through.

    What is large is then parsed an item at a time, and not held twice.

    Args:
        data: The message.
        number: The field's; its items have lengths.

    Returns:
        The message without them, and the bytes of each, which are views.
    """
    walk, rest, items = _Bytes(memoryview(data), 0, len(data)), list[memoryview](), []
    while walk.at < walk.end:
        begin = walk.at
        tag = walk.varint("a tag")
        if tag & 7 == _VARINT:
            walk.varint("a value")
        elif tag & 7 == _FIXED64:
            walk.take(8, "a value")
        else:
            content = walk.take(walk.varint("a length"), "a value")
            if tag >> 3 == number:
                items.append(content)
                continue
        rest.append(walk.view[begin : walk.at])
    return b"".join(rest), items


# --- what the descriptor and the rules say -----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Field:
    name: str
    type: int
    wire: int
    repeated: bool
    presence: bool
    choice: str  # the oneof it belongs to, or nothing
    required: bool
    max_items: int
    max_bytes: int
    exact_bytes: int
    max_value: int
    values: frozenset[int]  # an enum's
    inner: Descriptor | None


@dataclass(frozen=True, kw_only=True)
class _Layout:
    max_bytes: int
    fields: dict[int, _Field]
    required: frozenset[int]


@lru_cache(maxsize=256)
def _layout(kind: Descriptor) -> _Layout:
    fields = {field.number: _field(field) for field in kind.fields}
    return _Layout(
        max_bytes=_most_bytes(kind),
        fields=fields,
        required=frozenset(number for number, field in fields.items() if field.required),
    )


def _most_bytes(kind: Descriptor | None) -> int:
    """The most bytes of a message; 0: it is no message."""
    if kind is None:
        return 0
    rules = kind.GetOptions().Extensions[rules_pb2.message_rules]
    return int(rules.max_bytes) or DEFAULT_MESSAGE_BYTES


def _field(field: FieldDescriptor) -> _Field:
    rules = field.GetOptions().Extensions[rules_pb2.field_rules]
    oneof, enum = field.containing_oneof, field.enum_type
    return _Field(
        name=field.full_name.removeprefix("sordino.v1."),
        type=field.type,
        wire=_wire_type(field),
        repeated=field.is_repeated,
        presence=field.has_presence,
        choice=""
        if oneof is None or oneof.name == f"_{field.name}"
        else oneof.name,  # _x: optional
        required=rules.required,
        max_items=rules.max_items,
        max_bytes=_most_bytes(field.message_type) or rules.max_bytes or DEFAULT_STRING_BYTES,
        exact_bytes=rules.exact_bytes,
        max_value=rules.max_value or _LARGEST.get(field.type, 0),
        values=frozenset(enum.values_by_number) if enum is not None else frozenset(),
        inner=field.message_type,
    )


def _wire_type(field: FieldDescriptor) -> int:
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return _FIXED64
    return _VARINT if field.type in _LARGEST and not field.is_repeated else _LENGTH


# --- the walk ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Bytes:
    """A place in the bytes, and where the current message ends."""

    view: memoryview
    at: int
    end: int

    def varint(self, what: str) -> int:
        """Read an integer in its shortest encoding."""
        value = shift = 0
        while True:
            if self.at >= self.end:
                raise ContractError("truncated", f"{what} ends within a number")
            byte = self.view[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise ContractError("bad-number", f"{what} has a number of more than 64 bits")
        if value >= 2**64 or (byte == 0 and shift):
            raise ContractError("bad-number", f"{what} has a number in a longer encoding than due")
        return value

    def take(self, length: int, what: str) -> memoryview:
        """Go past so many bytes."""
        if length > self.end - self.at:
            raise ContractError("truncated", f"{what} ends before its {length} bytes do")
        self.at += length
        return self.view[self.at - length : self.at]


def _message(data: _Bytes, layout: _Layout) -> None:
    counts: dict[int, int] = {}
    choices: set[str] = set()
    while data.at < data.end:
        tag = data.varint("a tag")
        number = tag >> 3
        field = layout.fields.get(number)
        if field is None:
            raise _refused("unknown-field", "field number", number, "that this revision knows")
        if tag & 7 != field.wire:
            raise _refused("wrong-type", f"wire type of {field.name}", tag & 7, f"= {field.wire}")
        counts[number] = counts.get(number, 0) + 1
        _check_count(field, counts[number], choices)
        _value(data, field)
    missing = layout.required.difference(counts)
    if missing:
        raise _missing(layout.fields[min(missing)])


def _check_count(field: _Field, count: int, choices: set[str]) -> None:
    if field.repeated and field.wire == _LENGTH and field.type not in _LARGEST:
        if count > field.max_items:
            raise _refused("too-many", f"items of {field.name}", count, f"<= {field.max_items}")
    elif count > 1:
        raise _refused("field-twice", field.name, f"{count} of it", "once")
    if field.choice:
        if field.choice in choices:
            raise _refused("two-choices", field.choice, "several", "one")
        choices.add(field.choice)


def _value(data: _Bytes, field: _Field) -> None:
    if field.wire == _VARINT:
        value = _integer(data, field)
        if field.required and not field.presence and not value:
            raise _missing(field)
    elif field.wire == _FIXED64:
        (number,) = _DOUBLE.unpack(data.take(8, field.name))
        if not math.isfinite(number):
            raise _refused("bad-number", field.name, number, "finite")
        if field.required and not field.presence and not number:
            raise _missing(field)
    else:
        _counted(data, field)


def _integer(data: _Bytes, field: _Field) -> int:
    value = data.varint(field.name)
    if field.values:
        if value not in field.values:
            raise _refused("unknown-value", field.name, value, "that this revision knows")
    elif value > field.max_value:
        raise _refused("bad-number", field.name, value, f"<= {field.max_value}")
    return value


def _counted(data: _Bytes, field: _Field) -> None:
    """A field whose length comes first: text, bytes, a message, or integers in a row."""
    length = data.varint(field.name)
    if length > data.end - data.at:
        raise ContractError("truncated", f"{field.name} ends before its {length} bytes do")
    if field.inner is not None:
        _check_length(field, length)
        end, data.end = data.end, data.at + length
        _message(data, _layout(field.inner))
        data.end = end
    elif field.type in _LARGEST:
        _integers(data, field, data.at + length)
    else:
        _check_length(field, length)
        content = data.take(length, field.name)
        if field.type == FieldDescriptor.TYPE_STRING:
            _check_text(field, bytes(content))


def _integers(data: _Bytes, field: _Field, end: int) -> None:
    outer, data.end = data.end, end
    count = 0
    while data.at < end:
        count += 1
        if count > field.max_items:
            raise _refused("too-many", f"items of {field.name}", count, f"<= {field.max_items}")
        _integer(data, field)
    data.end = outer
    if field.required and not count:
        raise _missing(field)


def _check_length(field: _Field, length: int) -> None:
    if field.exact_bytes and length != field.exact_bytes:
        required = f"= {field.exact_bytes} bytes"
        raise _refused("wrong-length", f"length of {field.name}", length, required)
    if not field.exact_bytes and length > field.max_bytes:
        required = f"<= {field.max_bytes} bytes"
        raise _refused("too-long", f"length of {field.name}", length, required)
    if field.required and not length and field.inner is None:
        raise _missing(field)


def _check_text(field: _Field, content: bytes) -> None:
    try:
        printable = content.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        printable = False
    if not printable:
        raise _refused("bad-text", field.name, content[:40], "printable text in UTF-8")


def _refused(reason: str, what: str, value: object, required: str) -> ContractError:
    return ContractError(reason, expected(what, value, required))


def _missing(field: _Field) -> ContractError:
    return ContractError("missing-field", f"{field.name} is required, and isn't set")
