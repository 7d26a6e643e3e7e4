"""The contract's files: generated code without drift, nothing broken, nothing undocumented."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from support.breaking import breaks

from sordino.core.contract import body_kind, gate
from sordino.protos.v1 import common_pb2, fleet_pb2, operator_pb2, rules_pb2, work_pb2

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "protos" / "sordino" / "protos" / "v1"
MODULES = (rules_pb2, common_pb2, work_pb2, fleet_pb2, operator_pb2)
needs_generator = pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed"
)


def current() -> FileDescriptorSet:
    files = FileDescriptorSet()
    for module in MODULES:
        module.DESCRIPTOR.CopyToProto(files.file.add())
    return files


def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString((FOLDER / "released.binpb").read_bytes())


# --- drift -------------------------------------------------------------------------------------


@needs_generator
def test_the_generated_code_is_what_the_files_say(tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools" / "generate_protos.py"), "--into", str(tmp_path)]
    subprocess.run(tool, check=True)
    made = tmp_path / "sordino" / "protos" / "v1"
    generated = sorted(path.name for path in made.glob("*_pb2*"))
    assert generated == sorted(path.name for path in FOLDER.glob("*_pb2*"))
    for name in generated:
        same = (made / name).read_bytes() == (FOLDER / name).read_bytes()
        assert same, f"{name}: run `make protos` and commit"


def test_every_file_was_generated() -> None:
    names = {path.stem for path in FOLDER.glob("*.proto")}
    assert names == {Path(module.DESCRIPTOR.name).stem for module in MODULES}


# --- breaking changes --------------------------------------------------------------------------


def test_nothing_released_was_broken() -> None:
    assert breaks(released(), current()) == []


def message(files: FileDescriptorSet, name: str):
    return next(m for f in files.file for m in f.message_type if m.name == name)


def enum(files: FileDescriptorSet, name: str):
    return next(e for f in files.file for e in f.enum_type if e.name == name)


def service(files: FileDescriptorSet, name: str):
    return next(s for f in files.file for s in f.service if s.name == name)


def field(files: FileDescriptorSet, path: str):
    kind, name = path.split(".")
    return next(f for f in message(files, kind).field if f.name == name)


def method(files: FileDescriptorSet, name: str):
    return next(m for m in service(files, "Fleet").method if m.name == name)


def drop(items, name: str) -> None:
    index = next(i for i, item in enumerate(items) if item.name == name)
    del items[index]


def set_to(target, **values: object) -> None:
    for name, value in values.items():
        setattr(target, name, value)


def rules_of(files: FileDescriptorSet, path: str):
    return field(files, path).options.Extensions[rules_pb2.field_rules]


BREAKS: dict[str, tuple[Callable[[FileDescriptorSet], object], str]] = {
    "file removed": (lambda f: drop(f.file, "sordino/protos/v1/work.proto"), "work.proto removed"),
    "package": (lambda f: set_to(f.file[1], package="sordino.v2"), "package changed"),
    "java package": (lambda f: set_to(f.file[1].options, java_package="x"), "options changed"),
    "message removed": (lambda f: drop(f.file[2].message_type, "Tensor"), "message .* removed"),
    "field removed": (lambda f: drop(message(f, "Task").field, "round"), "round .* removed"),
    "field renumbered": (lambda f: set_to(field(f, "Task.round"), number=90), "round .* removed"),
    "field renamed": (lambda f: set_to(field(f, "Task.round"), name="turn"), "name changed"),
    "json name": (lambda f: set_to(field(f, "Task.run_id"), json_name="run"), "json_name"),
    "field retyped": (lambda f: set_to(field(f, "Task.round"), type=4), "type changed"),
    "another enum": (
        lambda f: set_to(field(f, "Tensor.dtype"), type_name=".sordino.v1.Retry"),
        "type_name",
    ),
    "label": (lambda f: set_to(field(f, "Task.round"), label=3), "label changed"),
    "presence": (
        lambda f: set_to(field(f, "LoraSettings.init_seed"), proto3_optional=False),
        "proto3_optional",
    ),
    "out of a oneof": (lambda f: field(f, "Task.train").ClearField("oneof_index"), "oneofs"),
    "oneof renamed": (lambda f: set_to(message(f, "Task").oneof_decl[0], name="x"), "oneofs"),
    "limit lowered": (lambda f: set_to(rules_of(f, "Task.plan"), max_bytes=9), "rules changed"),
    "message's limit": (
        lambda f: set_to(
            message(f, "Update").options.Extensions[rules_pb2.message_rules], max_bytes=9
        ),
        "rules changed",
    ),
    "new and required": (
        lambda f: (
            message(f, "Update")
            .field.add(name="x", number=90)
            .options.MergeFrom(field(f, "Task.plan").options)
        ),
        "new and required",
    ),
    "unreserved number": (
        lambda f: message(f, "Update").ClearField("reserved_range"),
        "reserved range",
    ),
    "unreserved name": (
        lambda f: message(f, "Update").ClearField("reserved_name"),
        "reserved name",
    ),
    "enum removed": (lambda f: drop(f.file[2].enum_type, "DType"), "enum .* removed"),
    "value removed": (lambda f: drop(enum(f, "DType").value, "D_TYPE_FLOAT32"), "removed"),
    "value renumbered": (lambda f: set_to(enum(f, "DType").value[1], number=7), "renumbered"),
    "value renamed": (lambda f: set_to(enum(f, "DType").value[1], name="F32"), "removed"),
    "service removed": (lambda f: drop(f.file[3].service, "Fleet"), "service .* removed"),
    "method removed": (lambda f: drop(service(f, "Fleet").method, "Hello"), "method .* removed"),
    "another request": (
        lambda f: set_to(method(f, "Hello"), input_type=".sordino.v1.Task"),
        "input_type",
    ),
    "another response": (
        lambda f: set_to(method(f, "Hello"), output_type=".sordino.v1.Task"),
        "output_type",
    ),
    "client stream": (lambda f: set_to(method(f, "PushUpdate"), client_streaming=False), "client_"),
    "server stream": (lambda f: set_to(method(f, "PullTask"), server_streaming=False), "server_"),
    "another signed body": (
        lambda f: set_to(
            method(f, "Hello").options.Extensions[rules_pb2.method_rules], body="Task"
        ),
        "rules changed",
    ),
    "annotation moved": (lambda f: set_to(f.file[0].extension[0], number=50600), "removed"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_each_kind_of_break_is_caught(kind: str) -> None:
    changed = current()
    change, words = BREAKS[kind]
    change(changed)
    found = breaks(current(), changed)
    assert found
    assert any(re.search(words, sentence) for sentence in found), found


def test_additions_break_nobody() -> None:
    changed = current()
    message(changed, "Task").field.add(name="more", number=90, type=9, label=1)
    enum(changed, "DType").value.add(name="D_TYPE_BFLOAT16", number=2)
    service(changed, "Fleet").method.add(name="More")
    changed.file[2].message_type.add(name="More")
    changed.file.add(name="more.proto")
    assert breaks(current(), changed) == []


# --- what the contract promises of itself ------------------------------------------------------


def kinds() -> Iterator[Descriptor]:
    for module in MODULES[1:]:
        yield from module.DESCRIPTOR.message_types_by_name.values()


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_every_field_is_one_that_the_gate_knows_and_bounds(kind: Descriptor) -> None:
    for known in kind.fields:
        rules = known.GetOptions().Extensions[rules_pb2.field_rules]
        assert known.type in gate.KNOWN_TYPES, known.name
        if known.is_repeated:
            assert rules.max_items > 0, known.name
            assert known.type != FieldDescriptor.TYPE_DOUBLE, known.name
        if known.type == FieldDescriptor.TYPE_BYTES:
            assert rules.max_bytes or rules.exact_bytes, known.name
        if known.type == FieldDescriptor.TYPE_ENUM:
            assert known.enum_type.values[0].name.endswith("_UNSPECIFIED"), known.name


def test_no_message_holds_itself() -> None:
    def walk(kind: Descriptor, above: tuple[str, ...]) -> None:
        assert kind.full_name not in above
        for inner in kind.fields:
            if inner.message_type is not None:
                walk(inner.message_type, (*above, kind.full_name))

    for kind in kinds():
        walk(kind, ())


def test_every_device_request_is_signed_but_the_first() -> None:
    for rpc in fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods:
        path = f"/sordino.v1.Fleet/{rpc.name}"
        if rpc.name == "Enroll":
            assert rpc.input_type.name == "EnrollRequest"
            continue
        first = rpc.input_type
        if rpc.client_streaming:
            first = first.fields_by_name["start"].message_type
        assert first.full_name == "sordino.v1.Signed"
        assert body_kind(path).DESCRIPTOR.file.name.endswith("fleet.proto")


def test_chunks_fit_in_a_grpc_message() -> None:
    for kind in (fleet_pb2.FetchArtefactResponse, fleet_pb2.PushUpdateRequest):
        rules = kind.DESCRIPTOR.GetOptions().Extensions[rules_pb2.message_rules]
        assert rules.max_bytes < 4 << 20


@needs_generator
def test_everything_is_documented(tmp_path: Path) -> None:
    described = tmp_path / "described.binpb"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import generate_protos as g; g.describe(Path(sys.argv[2]), comments=True)"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT / "tools"), str(described)], check=True)
    silent = []
    for file in FileDescriptorSet.FromString(described.read_bytes()).file:
        for location in file.source_code_info.location:
            kind = tuple(location.path[::2])
            # messages, fields, oneofs, enums, values, services, methods, extensions
            if len(location.path) % 2 == 0 and kind in {
                (4,), (4, 2), (4, 8), (5,), (5, 2), (6,), (6, 2), (7,),
            } and not (location.leading_comments or location.trailing_comments):  # fmt: skip
                silent.append((file.name, tuple(location.path), tuple(location.span)))
    assert [s for s in silent if not is_synthetic(s)] == []


def is_synthetic(place: tuple[str, tuple[int, ...], tuple[int, ...]]) -> bool:
    """A oneof that stands for ``optional`` has no place of its own in the text."""
    return place[1][-2] == 8 and len(place[2]) == 3
