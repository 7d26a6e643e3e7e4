"""Valid messages of the contract, pieces to spoil them with, and every way in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from sordino.core import contract
from sordino.core.contract import Artefact, SignedHead, TaskOrder
from sordino.core.records import Measurement, Receipt, Update
from sordino.protos.v1 import common_pb2, fleet_pb2, rules_pb2, work_pb2
from support.federation import MANIFEST, filled, initial, make_metric, make_task, update_for

MOST = 1 << 20
NOW = 1_780_000_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
HELLO = "/sordino.v1.Fleet/Hello"
ADAPTER = contract.encode_adapter(initial())


def make_order(**changes: object) -> TaskOrder:
    task = make_task()
    order = TaskOrder(
        task_id="task-1",
        run_id=task.run_id,
        round=task.round,
        deadline_unix_ms=NOW + 60_000,
        expires_in_ms=60_000,
        plan=task.plan,
        base=Artefact(sha256=task.base_sha256, size=1000),
        manifest=Artefact.of(MANIFEST.canonical()),
        adapter=Artefact.of(ADAPTER),
        lora=task.lora,
        train=task.train,
        max_answer_bytes=MOST,
    )
    return replace(order, **changes)  # type: ignore[arg-type]


def make_look(**changes: object) -> TaskOrder:
    plan = make_metric()
    look = make_order(run_id=plan.run_id, plan=plan.canonical(), train=None)
    return replace(look, **changes)  # type: ignore[arg-type]


def make_measurement(value: float = 2.5) -> tuple[Measurement, SignedHead]:
    receipt = Receipt(ledger_head="0" * 64, entry_index=3)
    plan = make_metric()
    measurement = Measurement(
        run_id=plan.run_id, round=1, plan_sha256=plan.sha256, value=value, receipt=receipt
    )
    return measurement, SignedHead(receipt=receipt, public_key="ab" * 32, signature="cd" * 64)


def make_update() -> tuple[Update, SignedHead]:
    update = update_for(make_task(), filled(0.5))
    assert update.receipt is not None
    return update, SignedHead(receipt=update.receipt, public_key="ab" * 32, signature="cd" * 64)


def make_hello() -> fleet_pb2.HelloRequest:
    return fleet_pb2.HelloRequest(
        revision=contract.REVISION,
        software="sordino 0.1.0",
        capabilities=fleet_pb2.Capabilities(
            model_formats=["Q4_1", "F16"],
            model_families=["llama"],
            memory_bytes=1 << 30,
            storage_bytes=1 << 33,
            accelerators=[fleet_pb2.Accelerator(kind="vulkan")],
            cores=4,
            architecture="aarch64",
            power=fleet_pb2.POWER_SOURCE_MAINS,
        ),
        ledger_head=contract.head_message(make_update()[1]),
    )


def seal_hello() -> common_pb2.Signed:
    return contract.seal(KEY, make_hello(), device_id="device-1", method=HELLO, now_unix_ms=NOW)


def open_hello(data: bytes) -> contract.Opened:
    return contract.open_signed(
        data, KEY.public_key(), device_id="device-1", method=HELLO, now_unix_ms=NOW
    )


def task_bytes() -> bytes:
    return contract.encode_task(make_order())


def update_bytes() -> bytes:
    return contract.encode_update(*make_update())


Decoder = Callable[[bytes], object]

DECODERS: dict[str, tuple[Decoder, bytes]] = {
    "task": (contract.decode_task, task_bytes()),
    "update": (lambda data: contract.decode_update(data, at_most=MOST), update_bytes()),
    "look": (contract.decode_task, contract.encode_task(make_look())),
    "measurement": (
        contract.decode_measurement,
        contract.encode_measurement(*make_measurement()),
    ),
    "adapter": (lambda data: contract.decode_adapter(data, Artefact.of(data)), ADAPTER),
    "manifest": (
        lambda data: contract.decode_manifest(data, Artefact.of(data)),
        MANIFEST.canonical(),
    ),
    "signed": (open_hello, seal_hello().SerializeToString()),
    "hello": (
        lambda data: contract.from_bytes(data, fleet_pb2.HelloRequest),
        make_hello().SerializeToString(),
    ),
    "failure": (contract.decode_failure, contract.encode_failure("internal", "no luck")),
    "upload": (
        lambda data: contract.from_bytes(data, fleet_pb2.PushUpdateRequest),
        fleet_pb2.PushUpdateRequest(start=seal_hello()).SerializeToString(),
    ),
}
"""Everything that takes bytes from outside, each with a message that it accepts."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def raw(number: int, content: bytes | int) -> bytes:
    """One field as it travels: a varint, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def raw_tensor(
    name: bytes = b"t", dtype: int = 1, shape: tuple[int, ...] = (1,), data: bytes = b"\0" * 4
) -> bytes:
    sizes = b"".join(varint(size) for size in shape)
    return raw(1, name) + raw(2, dtype) + raw(3, sizes) + raw(4, data)


def raw_update(*tensors: bytes, run: bytes = b"run-1", rest: bytes = b"") -> bytes:
    listed = b"".join(raw(4, tensor) for tensor in tensors)
    return raw(1, run) + raw(2, 1) + raw(3, b"\x11" * 32) + listed + rest


assert work_pb2.Update.FromString(raw_update(raw_tensor())).tensors[0].name == "t"


def limit(kind: str, name: str) -> set[int]:
    """The limits that the contract's files give a message, or one of its fields."""
    known = {
        **common_pb2.DESCRIPTOR.message_types_by_name,
        **work_pb2.DESCRIPTOR.message_types_by_name,
        **fleet_pb2.DESCRIPTOR.message_types_by_name,
    }
    if not name:
        return {known[kind].GetOptions().Extensions[rules_pb2.message_rules].max_bytes}
    rules = known[kind].fields_by_name[name].GetOptions().Extensions[rules_pb2.field_rules]
    return {rules.max_bytes, rules.max_items, rules.exact_bytes, rules.max_value}
