"""What breaks those who hold an older contract: rules as `buf breaking` has them, in plain Python.

Two sets of descriptors in, sentences out. An addition breaks nobody, but for a field that senders
of the older contract would have to set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
)

from sordino.protos.v1 import rules_pb2

FIELD = ("name", "type", "type_name", "label", "proto3_optional", "default_value")
METHOD = ("input_type", "output_type", "client_streaming", "server_streaming")


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What the new contract takes away from, or changes for, those who hold the old one."""
    found = []
    files = {file.name: file for file in new.file}
    for file in old.file:
        now = files.get(file.name)
        if now is None:
            found.append(f"file {file.name} removed")
            continue
        found += _changed(file.name, file, now, ("package", "syntax"))
        if file.options != now.options:
            found.append(f"{file.name}: options changed")
        found += _messages(file.package, file.message_type, now.message_type)
        found += _enums(file.package, file.enum_type, now.enum_type)
        found += _services(file.package, file.service, now.service)
        found += _fields(file.package, file.extension, now.extension)
    return found


def _messages(
    where: str, old: Iterable[DescriptorProto], new: Iterable[DescriptorProto]
) -> Iterator[str]:
    for name, before, after in _pairs(old, new):
        path = f"{where}.{name}"
        if after is None:
            yield f"message {path} removed"
            continue
        yield from _fields(path, before.field, after.field, _oneofs(before), _oneofs(after))
        yield from _unreserved(path, before, after)
        if before.options != after.options:
            yield f"{path}: rules changed"
        yield from _messages(path, before.nested_type, after.nested_type)
        yield from _enums(path, before.enum_type, after.enum_type)


def _fields(
    where: str,
    old: Iterable[FieldDescriptorProto],
    new: Iterable[FieldDescriptorProto],
    old_oneofs: dict[int, str] | None = None,
    new_oneofs: dict[int, str] | None = None,
) -> Iterator[str]:
    after = {(field.extendee, field.number): field for field in new}
    for field in old:
        path = f"{where}.{field.name}"
        now = after.pop((field.extendee, field.number), None)
        if now is None:
            yield f"field {path} (number {field.number}) removed"
            continue
        yield from _changed(path, field, now, FIELD)
        if _json_name(field) != _json_name(now):
            yield f"{path}: json_name changed to {_json_name(now)!r}"
        if (old_oneofs or {}).get(field.number) != (new_oneofs or {}).get(field.number):
            yield f"{path}: moved into, out of or between oneofs"
        if field.options != now.options:
            yield f"{path}: rules changed"
    for field in after.values():
        if field.options.Extensions[rules_pb2.field_rules].required:
            yield f"{where}.{field.name}: new and required, so that older senders are refused"


def _json_name(field: FieldDescriptorProto) -> str:
    """The compiler writes the name out; a descriptor at run time may leave it to the rule."""
    first, *others = field.name.split("_")
    return field.json_name or first + "".join(part.capitalize() for part in others)


def _oneofs(message: DescriptorProto) -> dict[int, str]:
    return {
        field.number: message.oneof_decl[field.oneof_index].name
        for field in message.field
        if field.HasField("oneof_index")
    }


def _unreserved(path: str, old: Any, new: Any) -> Iterator[str]:
    ranges = {(r.start, r.end) for r in old.reserved_range}
    if not ranges <= {(r.start, r.end) for r in new.reserved_range}:
        yield f"{path}: a reserved range removed"
    if not set(old.reserved_name) <= set(new.reserved_name):
        yield f"{path}: a reserved name removed"


def _enums(
    where: str, old: Iterable[EnumDescriptorProto], new: Iterable[EnumDescriptorProto]
) -> Iterator[str]:
    for name, before, after in _pairs(old, new):
        path = f"{where}.{name}"
        if after is None:
            yield f"enum {path} removed"
            continue
        yield from _unreserved(path, before, after)
        numbers = {value.name: value.number for value in after.value}
        for value in before.value:
            if numbers.get(value.name) != value.number:
                yield f"{path}: value {value.name} = {value.number} removed or renumbered"


def _services(where: str, old: Iterable[Any], new: Iterable[Any]) -> Iterator[str]:
    for name, before, after in _pairs(old, new):
        path = f"{where}.{name}"
        if after is None:
            yield f"service {path} removed"
            continue
        for method, was, now in _pairs(before.method, after.method):
            if now is None:
                yield f"method {path}/{method} removed"
                continue
            yield from _changed(f"{path}/{method}", was, now, METHOD)
            if was.options != now.options:
                yield f"{path}/{method}: rules changed"


def _pairs(old: Iterable[Any], new: Iterable[Any]) -> Iterator[tuple[str, Any, Any]]:
    after = {item.name: item for item in new}
    for item in old:
        yield item.name, item, after.get(item.name)


def _changed(path: str, old: Any, new: Any, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            yield f"{path}: {name} changed from {was!r} to {now!r}"
