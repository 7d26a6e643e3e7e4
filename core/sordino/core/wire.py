"""The only codec between records and what travels: records ↔ envelopes ↔ bytes.

An envelope is named scalars and named arrays: the common ground of Flower's records, a pipe
between processes and a file. Decoding trusts nothing: every key, type and size is checked, sizes
before anything of that size is allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite, prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.errors import ConfigError, WireError, expected
from sordino.core.records import (
    MAX_NAME,
    Measurement,
    MetricTask,
    Receipt,
    Tensors,
    TrainTask,
    Update,
)
from sordino.core.settings import build, to_table

Scalar = str | bytes | int | float
ConfigT = TypeVar("ConfigT")

WIRE_VERSION = 1
MAX_TENSORS = 1 << 16
MAX_TENSOR_BYTES = 1 << 33
MAX_HEADER_BYTES = 1 << 25
_DIMENSIONS = 8
_MAGIC = b"SORDENV1"
_LENGTH = struct.Struct("<Q")
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float32", "float64", "int32", "int64", "uint8")
}


@dataclass(frozen=True)
class Envelope:
    """Named scalars and named arrays.

    Attributes:
        fields: Values are str, bytes, int of 64 bits, or finite float; never bool.
        tensors: Arrays of float32, float64, int32, int64 or uint8.
    """

    fields: Mapping[str, Scalar]
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)


# --- records ↔ envelopes ---------------------------------------------------------------------


def encode_task(task: TrainTask) -> Envelope:
    """Put a task in an envelope."""
    fields = _asked("train-task", task) | {"train": canonical_json(to_table(task.train))}
    return Envelope(fields, task.tensors)


def decode_task(envelope: Envelope) -> TrainTask:
    """Take a task out of an envelope.

    Raises:
        WireError: A field is missing, unknown, of the wrong type, or impossible.
    """
    fields = _Fields(envelope, "train-task")
    train = _settings(TrainConfig, "train", fields.take("train", str))
    task = TrainTask(**_take_asked(fields), train=train, tensors=_float_tensors(envelope))
    fields.finish()
    return task


def encode_update(update: Update) -> Envelope:
    """Put an update in an envelope."""
    return Envelope(_answered("update", update), update.tensors)


def decode_update(envelope: Envelope) -> Update:
    """Take an update out of an envelope; its tensors are still to be validated.

    Raises:
        WireError: A field is missing, unknown, of the wrong type, or impossible.
    """
    fields = _Fields(envelope, "update")
    receipt = _receipt(fields) if "ledger-head" in envelope.fields else None
    named = fields.take_all(run_id=str, round=int, plan_sha256=str)
    update = Update(**named, tensors=dict(envelope.tensors), receipt=receipt)
    fields.finish()
    return update


def encode_metric_task(task: MetricTask) -> Envelope:
    """Put a look at a metric in an envelope."""
    return Envelope(_asked("metric-task", task), task.tensors)


def decode_metric_task(envelope: Envelope) -> MetricTask:
    """Take a look at a metric out of an envelope.

    Raises:
        WireError: A field is missing, unknown, of the wrong type, or impossible.
    """
    fields = _Fields(envelope, "metric-task")
    task = MetricTask(**_take_asked(fields), tensors=_float_tensors(envelope))
    fields.finish()
    return task


def encode_measurement(measurement: Measurement) -> Envelope:
    """Put a noised value in an envelope."""
    return Envelope({**_answered("measurement", measurement), "value": measurement.value})


def decode_measurement(envelope: Envelope) -> Measurement:
    """Take a noised value out of an envelope; its bounds are still to be checked.

    Raises:
        WireError: A field is missing, unknown, of the wrong type, or impossible, or there is a
            tensor.
    """
    fields = _Fields(envelope, "measurement")
    named = fields.take_all(run_id=str, round=int, plan_sha256=str, value=float)
    measurement = Measurement(**named, receipt=_receipt(fields))
    fields.finish()
    if envelope.tensors:
        raise WireError(expected("tensors", sorted(envelope.tensors)[:4], "none beside a value"))
    return measurement


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


# --- envelopes ↔ bytes -----------------------------------------------------------------------


def pack(envelope: Envelope) -> bytes:
    """Encode as magic, header length, JSON header, then each array's little-endian bytes.

    Raises:
        WireError: The envelope holds something that can't travel.
    """
    check_envelope(envelope)
    header = {
        "fields": {name: _tagged(value) for name, value in envelope.fields.items()},
        "tensors": [[name, a.dtype.name, list(a.shape)] for name, a in envelope.tensors.items()],
    }
    text = canonical_json(header).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise WireError(expected("header size", len(text), f"<= {MAX_HEADER_BYTES}"))
    parts = [_MAGIC, _LENGTH.pack(len(text)), text]
    for array in envelope.tensors.values():
        parts.append(np.ascontiguousarray(array, dtype=_DTYPES[array.dtype.name]).tobytes())
    return b"".join(parts)


def unpack(data: bytes | memoryview) -> Envelope:
    """Decode what `pack` made. The arrays are read-only views of `data`.

    Raises:
        WireError: `data` is not exactly one envelope.
    """
    view = memoryview(data)
    start = len(_MAGIC) + _LENGTH.size
    if len(view) < start or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise WireError("expected an envelope, got other bytes")
    (length,) = _LENGTH.unpack(view[len(_MAGIC) : start])
    if length > min(MAX_HEADER_BYTES, len(view) - start):
        raise WireError(expected("header size", length, "within the message"))
    header = _parse_json(bytes(view[start : start + length]))
    if not isinstance(header, dict) or set(header) != {"fields", "tensors"}:
        raise WireError("expected a header of fields and tensors")
    envelope = Envelope(
        _untagged_fields(header["fields"]),
        _cut_tensors(header["tensors"], view[start + length :]),
    )
    check_envelope(envelope)
    return envelope


def check_envelope(envelope: Envelope) -> None:
    """Refuse what can't travel: names, scalar types, dtypes, sizes.

    Raises:
        WireError: Naming the field or the tensor.
    """
    for name, value in envelope.fields.items():
        _check_name(name)
        _check_scalar(name, value)
    if len(envelope.tensors) > MAX_TENSORS:
        raise WireError(expected("number of tensors", len(envelope.tensors), f"<= {MAX_TENSORS}"))
    for name, array in envelope.tensors.items():
        _check_name(name)
        if not isinstance(array, np.ndarray):
            raise WireError(expected(name, type(array).__name__, "an array"))
        check_declared(name, array.dtype.name, array.shape)


def check_declared(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Check a declared dtype and shape before anything of that size exists.

    Returns:
        The number of bytes that the array takes.

    Raises:
        WireError: The dtype isn't allowed, or the size is impossible or too large.
    """
    if dtype not in _DTYPES:
        raise WireError(expected(f"dtype of {name}", dtype, f"one of {', '.join(_DTYPES)}"))
    sizes_are_whole = all(type(n) is int and n >= 0 for n in shape)
    if len(shape) > _DIMENSIONS or not sizes_are_whole:
        raise WireError(expected(f"shape of {name}", shape, f"at most {_DIMENSIONS} whole sizes"))
    # An empty array has no bytes whatever its other sizes say: they must be possible too.
    most = prod(max(n, 1) for n in shape) * _DTYPES[dtype].itemsize
    if most > MAX_TENSOR_BYTES:
        raise WireError(expected(f"bytes of {name}", most, f"<= {MAX_TENSOR_BYTES}"))
    return prod(shape) * _DTYPES[dtype].itemsize


def view_array(dtype: str, shape: tuple[int, ...], buffer: memoryview) -> NDArray[Any]:
    """A read-only view of checked little-endian bytes as an array."""
    array: NDArray[Any] = np.frombuffer(buffer, dtype=_DTYPES[dtype]).reshape(shape)
    array.flags.writeable = False
    return array


# --- internals -------------------------------------------------------------------------------


class _Fields:
    """Takes each field of an envelope once; what is left over at the end is unknown."""

    def __init__(self, envelope: Envelope, kind: str) -> None:
        self._left = dict(envelope.fields)
        for name, wanted in (("kind", kind), ("version", WIRE_VERSION)):
            if (got := self._left.pop(name, None)) != wanted:
                raise WireError(expected(name, got, f"= {wanted!r}"))

    def take(self, name: str, kind: type[ConfigT]) -> ConfigT:
        value = self._left.pop(name, None)
        if type(value) is not kind:
            raise WireError(expected(name, type(value).__name__, f"of type {kind.__name__}"))
        return value

    def take_all(self, **kinds: type) -> dict[str, Any]:
        return {name: self.take(name.replace("_", "-"), kind) for name, kind in kinds.items()}

    def finish(self) -> None:
        if self._left:
            raise WireError(f"unknown field {sorted(self._left)[0]!r}")


def _asked(kind: str, task: TrainTask | MetricTask) -> dict[str, Scalar]:
    fields = _head(kind, task)
    fields |= {"plan": task.plan, "lora": canonical_json(to_table(task.lora))}
    return fields | {"base-sha256": task.base_sha256, "manifest-sha256": task.manifest_sha256}


def _take_asked(fields: _Fields) -> dict[str, Any]:
    lora = _settings(LoraConfig, "lora", fields.take("lora", str))
    named = fields.take_all(run_id=str, round=int, plan=bytes, base_sha256=str, manifest_sha256=str)
    return {**named, "lora": lora}


def _answered(kind: str, answer: Update | Measurement) -> dict[str, Scalar]:
    fields = _head(kind, answer) | {"plan-sha256": answer.plan_sha256}
    if answer.receipt is not None:
        fields["ledger-head"] = answer.receipt.ledger_head
        fields["ledger-entry"] = answer.receipt.entry_index
    return fields


def _head(kind: str, said: TrainTask | MetricTask | Update | Measurement) -> dict[str, Scalar]:
    return {"kind": kind, "version": WIRE_VERSION, "run-id": said.run_id, "round": said.round}


@lru_cache(maxsize=32)
def _settings(cls: type[ConfigT], where: str, text: str) -> ConfigT:
    table = _parse_json(text.encode())
    if not isinstance(table, dict):
        raise WireError(expected(where, text[:40], "a JSON object"))
    try:
        settings = build(cls, table, where)
    except ConfigError as error:
        raise WireError(str(error)) from error
    if canonical_json(to_table(settings)) != text:
        raise WireError(expected(where, text[:40], "complete and in its canonical form"))
    return settings


def _receipt(fields: _Fields) -> Receipt:
    return Receipt(
        ledger_head=fields.take("ledger-head", str), entry_index=fields.take("ledger-entry", int)
    )


def _float_tensors(envelope: Envelope) -> Tensors:
    for name, array in envelope.tensors.items():
        if array.dtype != np.float32:
            raise WireError(expected(f"dtype of {name}", str(array.dtype), "= float32"))
    return dict(envelope.tensors)


def _parse_json(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise WireError("a key appears twice in a JSON object")
        return table

    def refuse(name: str) -> None:
        raise WireError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WireError("expected JSON, got something else") from error


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise WireError(expected("name", str(name)[:40], f"1 to {MAX_NAME} printable characters"))


def _check_scalar(name: str, value: object) -> None:
    if type(value) not in (str, bytes, int, float):
        raise WireError(expected(name, type(value).__name__, "a str, bytes, int or float"))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise WireError(expected(name, value, "within 64 bits"))
    if isinstance(value, float) and not isfinite(value):
        raise WireError(expected(name, value, "finite"))


def _tagged(value: Scalar) -> list[Any]:
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, float):
        return ["float", value.hex()]
    return ["int" if isinstance(value, int) else "str", value]


def _untagged_fields(table: object) -> dict[str, Scalar]:
    if not isinstance(table, dict):
        raise WireError("expected the header's fields to be an object")
    return {name: _untagged(name, value) for name, value in table.items()}


def _untagged(name: str, tagged: object) -> Scalar:
    match tagged:
        case ["bytes", str(text)]:
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise WireError(f"{name} is not base64") from error
        case ["float", str(text)]:
            try:
                return float.fromhex(text)
            except (ValueError, OverflowError) as error:
                raise WireError(f"{name} is not a hexadecimal float") from error
        case ["int", int(number)]:
            return number
        case ["str", str(text)]:
            return text
    raise WireError(f"{name} is neither str, bytes, int nor float")


def _cut_tensors(listing: object, data: memoryview) -> dict[str, NDArray[Any]]:
    if not isinstance(listing, list) or len(listing) > MAX_TENSORS:
        raise WireError("expected the header's tensors to be a list of reasonable length")
    tensors: dict[str, NDArray[Any]] = {}
    offset = 0
    for entry in listing:
        match entry:
            case [str(name), str(dtype), list(sizes)] if name not in tensors:
                shape = tuple(sizes)
            case _:
                raise WireError("expected a tensor as [name, dtype, shape], each name once")
        size = check_declared(name, dtype, shape)
        if size > len(data) - offset:
            raise WireError(expected(f"bytes of {name}", size, "within the message"))
        tensors[name] = view_array(dtype, shape, data[offset : offset + size])
        offset += size
    if offset != len(data):
        raise WireError(expected("bytes after the last tensor", len(data) - offset, "= 0"))
    return tensors
