"""Records ↔ the contract's bytes, both ways.

The same record always gives the same bytes, so that a hash of them names it. Decoding goes through
the gate first, then checks what no single field can show. Every refusal is a `ContractError` with a
stable word, and what is refused has changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Final, Literal, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from sordino.core import canonical
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract import gate
from sordino.core.contract.records import Artefact, SignedHead, TaskOrder
from sordino.core.errors import ConfigError, ContractError, WireError, expected
from sordino.core.records import AdapterManifest, Receipt, Tensors, TensorSpec, Update
from sordino.core.wire import view_array
from sordino.protos.v1 import common_pb2, work_pb2

MessageT = TypeVar("MessageT", bound=Message)

MAX_MANIFEST_BYTES: Final = 1 << 23
"""The largest manifest: 16384 tensors with long names."""

_ITEM_BYTES: Final = 4
_AGGREGATIONS: Final[dict[Literal["ffa", "rolora", "fedit"], work_pb2.Aggregation]] = {
    "ffa": work_pb2.AGGREGATION_FFA,
    "rolora": work_pb2.AGGREGATION_ROLORA,
    "fedit": work_pb2.AGGREGATION_FEDIT,
}
_OPTIMIZERS: Final[dict[Literal["sgd", "adam"], work_pb2.Optimizer]] = {
    "sgd": work_pb2.OPTIMIZER_SGD,
    "adam": work_pb2.OPTIMIZER_ADAM,
}


def to_bytes(message: Message) -> bytes:
    """Encode a message; the same content gives the same bytes.

    Raises:
        ContractError: It is one that the gate would refuse: nothing is sent that isn't taken.
    """
    data: bytes = message.SerializeToString(deterministic=True)
    gate.check(data, message.DESCRIPTOR)
    return data


def from_bytes(data: bytes, kind: type[MessageT]) -> MessageT:
    """Decode a message, strictly.

    Raises:
        ContractError: As `gate.check`.
    """
    gate.check(data, kind.DESCRIPTOR)
    try:
        message: MessageT = kind.FromString(data)
    except DecodeError as error:
        raise ContractError("malformed", f"not a {kind.DESCRIPTOR.name}: {error}") from error
    return message


# --- updates -----------------------------------------------------------------------------------


def encode_update(update: Update, head: SignedHead | None) -> bytes:
    """Encode an update.

    Args:
        update: With its receipt, but under a plan without privacy.
        head: The same receipt, signed; None where the update has none.

    Raises:
        ContractError: ``wrong-receipt``: the two differ; or the update is too large to travel.
    """
    if update.receipt != (head.receipt if head else None):
        raise ContractError("wrong-receipt", "the signed head is not the update's receipt")
    message = work_pb2.Update(
        run_id=update.run_id,
        round=update.round,
        plan_sha256=bytes.fromhex(update.plan_sha256),
        tensors=_tensors(update.tensors),
    )
    if head:
        message.receipt.CopyFrom(head_message(head))
    return to_bytes(message)


def decode_update(data: bytes, *, at_most: int) -> tuple[Update, SignedHead | None]:
    """Decode an update. What depends on the round (names, shapes, finite, norm) is still to check.

    Args:
        data: All bytes of the upload.
        at_most: `max_answer_bytes` of its task.

    Raises:
        ContractError: As `gate.check`, or with reason ``unsorted-tensors``, ``bad-shape``,
            ``wrong-size`` or ``bad-value``.
    """
    if len(data) > at_most:
        raise ContractError("too-long", expected("bytes of the update", len(data), f"<= {at_most}"))
    message = from_bytes(data, work_pb2.Update)
    with _named("bad-value"):
        head = read_head(message.receipt) if message.HasField("receipt") else None
        update = Update(
            run_id=message.run_id,
            round=message.round,
            plan_sha256=message.plan_sha256.hex(),
            tensors=_arrays(message.tensors),
            receipt=head.receipt if head else None,
        )
    return update, head


def head_message(head: SignedHead) -> common_pb2.LedgerHead:
    """A signed head as it travels."""
    return common_pb2.LedgerHead(
        entry_index=head.receipt.entry_index,
        entry_sha256=bytes.fromhex(head.receipt.ledger_head),
        public_key=bytes.fromhex(head.public_key),
        signature=bytes.fromhex(head.signature),
    )


def read_head(message: common_pb2.LedgerHead) -> SignedHead:
    """A signed head from a message that passed the gate."""
    return SignedHead(
        receipt=Receipt(ledger_head=message.entry_sha256.hex(), entry_index=message.entry_index),
        public_key=message.public_key.hex(),
        signature=message.signature.hex(),
    )


# --- adapters and manifests --------------------------------------------------------------------


def encode_adapter(tensors: Tensors) -> bytes:
    """Encode the tensors of a task's adapter: the artefact that the task names.

    Raises:
        ContractError: There are none, or they are too large to travel.
    """
    return to_bytes(work_pb2.Adapter(tensors=_tensors(tensors)))


def decode_adapter(data: bytes, artefact: Artefact) -> Tensors:
    """Decode an adapter's artefact. That the tensors are the manifest's is still to check.

    Raises:
        ContractError: ``wrong-hash``: it isn't the one that was named; or as `decode_update`.
    """
    _require_hash(data, artefact.sha256)
    return _arrays(from_bytes(data, work_pb2.Adapter).tensors)


def decode_manifest(data: bytes, artefact: Artefact) -> AdapterManifest:
    """Decode a manifest's artefact, for a device that can't derive it; `canonical()` encodes it.

    Raises:
        ContractError: ``wrong-hash``, ``too-long`` or ``bad-manifest``.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        required = f"<= {MAX_MANIFEST_BYTES}"
        raise ContractError("too-long", expected("bytes of the manifest", len(data), required))
    _require_hash(data, artefact.sha256)
    with _named("bad-manifest"):
        manifest = AdapterManifest(tuple(_specs(data)))
        if manifest.canonical() != data:
            raise WireError("the manifest is not in its canonical encoding")
    return manifest


# --- tasks -------------------------------------------------------------------------------------


def encode_task(order: TaskOrder) -> bytes:
    """Encode a task."""
    return to_bytes(task_message(order))


def task_message(order: TaskOrder) -> work_pb2.Task:
    """A task as it travels, to be put in a stream's message.

    Raises:
        ContractError: ``bad-value``: a setting is beyond what the contract's types hold.
    """
    with _named("bad-value"):
        return work_pb2.Task(
            task_id=order.task_id,
            run_id=order.run_id,
            round=order.round,
            deadline_unix_ms=order.deadline_unix_ms,
            expires_in_ms=order.expires_in_ms,
            plan=order.plan,
            plan_sha256=bytes.fromhex(order.plan_sha256),
            base=artefact_message(order.base, common_pb2.ARTEFACT_KIND_BASE_GGUF),
            train=_train_work(order),
            max_answer_bytes=order.max_answer_bytes,
        )


def decode_task(data: bytes) -> TaskOrder:
    """Decode a task; it is still to be held against the device's model and policy.

    Raises:
        ContractError: As `gate.check`, or with reason ``wrong-hash``, ``wrong-kind``,
            ``unknown-work``, ``bad-settings`` or ``bad-value``.
    """
    return read_task(from_bytes(data, work_pb2.Task))


def read_task(message: work_pb2.Task) -> TaskOrder:
    """A task from a message that passed the gate; raises as `decode_task`."""
    if message.WhichOneof("work") != "train":
        raise ContractError("unknown-work", "the task asks for nothing that this revision knows")
    _require_hash(message.plan, message.plan_sha256.hex())
    work = message.train
    adapter = None
    with _named("bad-value"):
        if work.HasField("adapter"):
            adapter = read_artefact(work.adapter, common_pb2.ARTEFACT_KIND_ADAPTER)
        return TaskOrder(
            task_id=message.task_id,
            run_id=message.run_id,
            round=message.round,
            deadline_unix_ms=message.deadline_unix_ms,
            expires_in_ms=message.expires_in_ms,
            plan=message.plan,
            base=read_artefact(message.base, common_pb2.ARTEFACT_KIND_BASE_GGUF),
            manifest=read_artefact(work.manifest, common_pb2.ARTEFACT_KIND_MANIFEST_JSON),
            adapter=adapter,
            lora=_read_lora(work.lora),
            train=_read_train(work.train),
            max_answer_bytes=message.max_answer_bytes,
        )


def artefact_message(artefact: Artefact, kind: common_pb2.ArtefactKind) -> common_pb2.Artefact:
    """A file's name as it travels."""
    return common_pb2.Artefact(sha256=bytes.fromhex(artefact.sha256), size=artefact.size, kind=kind)


def read_artefact(message: common_pb2.Artefact, kind: common_pb2.ArtefactKind) -> Artefact:
    """A file's name from a message that passed the gate.

    Raises:
        ContractError: ``wrong-kind``: it is another kind of file.
    """
    if message.kind != kind:
        raise ContractError(
            "wrong-kind", expected("kind of the artefact", message.kind, f"= {kind}")
        )
    return Artefact(sha256=message.sha256.hex(), size=message.size)


# --- internals ---------------------------------------------------------------------------------


def _train_work(order: TaskOrder) -> work_pb2.TrainWork:
    lora, train = order.lora, order.train
    work = work_pb2.TrainWork(
        manifest=artefact_message(order.manifest, common_pb2.ARTEFACT_KIND_MANIFEST_JSON),
        lora=work_pb2.LoraSettings(
            aggregation=_AGGREGATIONS[lora.aggregation],
            rank=lora.rank,
            alpha=lora.alpha,
            targets=lora.targets,
            init_seed=lora.init_seed,
        ),
        train=work_pb2.TrainSettings(
            optimizer=_OPTIMIZERS[train.optimizer],
            learning_rate=train.learning_rate,
            momentum=train.momentum,
            local_steps=train.local_steps,
        ),
    )
    if order.adapter is not None:
        adapter = artefact_message(order.adapter, common_pb2.ARTEFACT_KIND_ADAPTER)
        work.adapter.CopyFrom(adapter)
    return work


def _read_lora(message: work_pb2.LoraSettings) -> LoraConfig:
    names = {number: name for name, number in _AGGREGATIONS.items()}
    with _named("bad-settings"):
        return LoraConfig(
            aggregation=names[message.aggregation],
            rank=message.rank,
            alpha=message.alpha,
            targets=tuple(message.targets),
            init_seed=message.init_seed,
        )


def _read_train(message: work_pb2.TrainSettings) -> TrainConfig:
    names = {number: name for name, number in _OPTIMIZERS.items()}
    with _named("bad-settings"):
        return TrainConfig(
            optimizer=names[message.optimizer],
            learning_rate=message.learning_rate,
            momentum=message.momentum,
            local_steps=message.local_steps,
        )


def _tensors(tensors: Tensors) -> Iterator[work_pb2.Tensor]:
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype != np.float32:
            raise ContractError(
                "wrong-dtype", expected(f"dtype of {name}", str(tensor.dtype), "= float32")
            )
        yield work_pb2.Tensor(
            name=name,
            dtype=work_pb2.D_TYPE_FLOAT32,
            shape=tensor.shape,
            data=np.ascontiguousarray(tensor, dtype="<f4").tobytes(),
        )


def _arrays(messages: Iterable[work_pb2.Tensor]) -> Tensors:
    arrays: Tensors = {}
    last = ""
    for message in messages:
        name, shape, data = message.name, tuple(message.shape), message.data
        if name <= last:
            raise ContractError(
                "unsorted-tensors", expected("tensor", name[:80], f"after {last[:80]!r}, once")
            )
        if 0 in shape:
            raise ContractError("bad-shape", expected(f"shape of {name}", shape, "positive sizes"))
        if prod(shape) * _ITEM_BYTES != len(data):
            required = f"{len(data)} bytes, which is what it holds"
            raise ContractError("wrong-size", expected(f"shape of {name}", shape, required))
        arrays[name] = view_array("float32", shape, memoryview(data))
        last = name
    return arrays


def _specs(data: bytes) -> Iterator[TensorSpec]:
    try:
        listing = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError("the manifest is not JSON") from error
    for entry in listing if isinstance(listing, list) else [listing]:
        match entry:
            case [str(name), list(shape)] if all(type(size) is int for size in shape):
                yield TensorSpec(name, tuple(shape))
            case _:
                raise WireError("the manifest is not a list of names and shapes")


def _require_hash(data: bytes, sha256: str) -> None:
    if (found := canonical.sha256_hex(data)) != sha256:
        raise ContractError("wrong-hash", expected("sha256", found, f"= {sha256}"))


@contextmanager
def _named(reason: str) -> Iterator[None]:
    """Give the refusals of the records' own checks their word."""
    try:
        yield
    except ContractError:
        raise
    except (ConfigError, WireError, ValueError) as error:
        raise ContractError(reason, str(error)) from error
