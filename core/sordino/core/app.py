"""Flower's messages: envelopes ↔ `RecordDict`, and every private thing of flwr that we touch.

Flower's app model (`ClientApp`, `ServerApp`, `Grid`, `Message`) is public. A grid of one's own
needs four things that are not, and they are all here: the process-wide `TaskIdentity`, a message's
id, building a `Message` from given `Metadata`, and the console handler of flwr's logger. A test
fails when flwr leaves the versions that these were checked with.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.supercore import run as flwr_run
from flwr.supercore.task_identity import TaskIdentity
from numpy.lib import format as npy
from numpy.typing import NDArray

from sordino.core.errors import WireError, expected
from sordino.core.wire import Envelope, Scalar, check_declared, check_envelope, view_array

FLWR_VERSIONS = ((1, 41), (1, 42))
"""First minor version that the private parts were checked with, and the first that they weren't."""

Run = flwr_run.Run  # how a Grid describes the run it works for

FIELDS = "sordino"
TENSORS = "tensors"

ERROR_APP = 2  # Flower's own code for an app that raised
ERROR_REFUSED = 1001  # the client refused, and says with a stable word why
ERROR_WORKER = 1002  # the process that ran the client died
ERROR_EXPIRED = 1003  # the round was over before the client began
ERROR_MALFORMED = 1004  # the reply could not be carried
ERROR_REJECTED = 1005  # the grid's own check refused the reply, and says with a stable word why

_NPY_STYPE = "numpy.ndarray"
_MAX_NPY_HEADER = 1024


# --- envelopes ↔ Flower's records --------------------------------------------------------------


def to_records(envelope: Envelope) -> RecordDict:
    """Put an envelope in Flower's currency: one `ConfigRecord` and one `ArrayRecord`.

    Raises:
        WireError: The envelope holds something that can't travel.
    """
    check_envelope(envelope)
    arrays = ArrayRecord()
    for name, array in envelope.tensors.items():
        arrays[name] = _write_array(array)
    return RecordDict({FIELDS: ConfigRecord(dict(envelope.fields)), TENSORS: arrays})


def from_records(records: RecordDict) -> Envelope:
    """Read an envelope from Flower's records.

    Raises:
        WireError: There are other records, other types, or an array that isn't what it declares.
    """
    if set(records) != {FIELDS, TENSORS}:
        raise WireError(expected("records", sorted(records)[:4], f"= {FIELDS} and {TENSORS}"))
    fields, arrays = records[FIELDS], records[TENSORS]
    if not isinstance(fields, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise WireError(f"expected {FIELDS} to be a ConfigRecord and {TENSORS} an ArrayRecord")
    scalars = cast(dict[str, Scalar], dict(fields.items()))  # types are checked below
    envelope = Envelope(scalars, {name: _read_array(name, a) for name, a in arrays.items()})
    check_envelope(envelope)
    return envelope


def records_size(records: RecordDict) -> int:
    """Bytes of payload: what the arrays hold, names and scalars. Works on malformed records too."""
    size = 0
    for record in records.values():
        for name, value in record.items():
            size += len(name) + _value_size(value)
    return size


def _value_size(value: object) -> int:
    if isinstance(value, Array):
        return len(value.data)
    if isinstance(value, str | bytes):
        return len(value)
    return 8 * len(value) if isinstance(value, list) else 8


def _write_array(array: NDArray[Any]) -> Array:
    """What ``Array(array)`` makes, at a third of its cost: a header is made once for its shape."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = _npy_header_of(little.dtype.str, array.shape) + little.tobytes()
    return Array(array.dtype.name, array.shape, _NPY_STYPE, data)


@lru_cache(maxsize=4096)
def _npy_header_of(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, header)
    return stream.getvalue()


def _read_array(name: str, array: Array) -> NDArray[Any]:
    """Read a .npy without numpy's loader, which allocates what the header asks for."""
    size = check_declared(name, array.dtype, tuple(array.shape))
    start = 10 + int.from_bytes(array.data[8:10], "little")
    if array.stype != _NPY_STYPE or len(array.data) < start or start > _MAX_NPY_HEADER:
        raise WireError(f"{name} is not an array in numpy's format, version 1")
    dtype, shape = _npy_header(array.data[:start])
    if (dtype, shape) != (array.dtype, tuple(array.shape)) or len(array.data) - start != size:
        raise WireError(f"{name} does not hold the {array.dtype} {array.shape} that it declares")
    return view_array(dtype, shape, memoryview(array.data)[start:])


@lru_cache(maxsize=4096)
def _npy_header(header: bytes) -> tuple[str, tuple[int, ...]]:
    stream = BytesIO(header)
    try:
        if npy.read_magic(stream) != (1, 0):
            raise WireError("expected version 1 of numpy's format")
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    except ValueError as error:
        raise WireError("expected a header of numpy's format") from error
    if (fortran and len(shape) > 1) or dtype.byteorder == ">":
        raise WireError("expected a little-endian array in C order")
    return np.dtype(dtype).name, tuple(shape)


# --- Flower's private parts --------------------------------------------------------------------


@contextmanager
def task_identity(*, run_id: int, node_id: int, task_id: int = 1) -> Iterator[None]:
    """Say who this process is while the block runs; `Message()` raises without it."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name, value in zip(names, (run_id, node_id, task_id), strict=True):
        setattr(TaskIdentity, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would give it."""
    message.metadata.__dict__["_message_id"] = message_id


def is_expired(message: Message) -> bool:
    """Whether the message's time to live is over."""
    return time.time() > message.metadata.created_at + message.metadata.ttl


def empty_run(run_id: int) -> Run:
    """Flower's description of a run, with nothing in it but the id."""
    return Run.create_empty(run_id)


def metadata_fields(metadata: Metadata) -> dict[str, Scalar]:
    """A message's metadata as an envelope's fields; task ids stay behind."""
    return {
        "run-id": metadata.run_id,
        "message-id": metadata.message_id,
        "src-node-id": metadata.src_node_id,
        "dst-node-id": metadata.dst_node_id,
        "reply-to": metadata.reply_to_message_id,
        "group-id": metadata.group_id,
        "created-at": metadata.created_at,
        "ttl": float(metadata.ttl),
        "message-type": metadata.message_type,
    }


def rebuild_message(fields: dict[str, Any], content: RecordDict | Error) -> Message:
    """Make again, in another process, the message that `metadata_fields` described."""
    metadata = Metadata(
        run_id=fields["run-id"],
        message_id=fields["message-id"],
        src_node_id=fields["src-node-id"],
        dst_node_id=fields["dst-node-id"],
        reply_to_message_id=fields["reply-to"],
        group_id=fields["group-id"],
        created_at=fields["created-at"],
        ttl=fields["ttl"],
        message_type=fields["message-type"],
    )
    make = cast(Callable[..., Message], Message)  # `metadata` is in no public signature
    if isinstance(content, Error):
        return make(metadata=metadata, error=content)
    return make(metadata=metadata, content=content)


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Let flwr's own logger say only warnings while the block runs.

    Only flwr's logger is touched, never the root; a level that the user set with
    ``FLWR_LOG_LEVEL`` stays.
    """
    logger = logging.getLogger("flwr")
    before = logger.level
    if not os.environ.get("FLWR_LOG_LEVEL"):
        logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)
