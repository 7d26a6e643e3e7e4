"""Tensors, adapters, and the manifests that list an adapter's names and shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from math import prod
from typing import Final

import numpy as np

from sordino.core.contract.codec import from_bytes, named, require_hash, to_bytes
from sordino.core.contract.records import Artefact
from sordino.core.errors import ContractError, WireError, expected
from sordino.core.records import AdapterManifest, Tensors, TensorSpec
from sordino.core.wire import view_array
from sordino.protos.v1 import work_pb2

MAX_MANIFEST_BYTES: Final = 1 << 23
"""The largest manifest: 16384 tensors with long names."""

_ITEM_BYTES: Final = 4


def encode_adapter(tensors: Tensors) -> bytes:
    """Encode the tensors of a task's adapter: the artefact that the task names.

    Raises:
        ContractError: There are none, or they are too large to travel.
    """
    return to_bytes(work_pb2.Adapter(tensors=tensor_messages(tensors)))


def decode_adapter(data: bytes, artefact: Artefact) -> Tensors:
    """Decode an adapter's artefact. That the tensors are the manifest's is still to check.

    Raises:
        ContractError: ``wrong-hash``: it isn't the one that was named; or as `decode_update`.
    """
    require_hash(data, artefact.sha256)
    return read_tensors(from_bytes(data, work_pb2.Adapter).tensors)


def decode_manifest(data: bytes, artefact: Artefact) -> AdapterManifest:
    """Decode a manifest's artefact, for a device that can't derive it; `canonical()` encodes it.

    Raises:
        ContractError: ``wrong-hash``, ``too-long`` or ``bad-manifest``.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        required = f"<= {MAX_MANIFEST_BYTES}"
        raise ContractError("too-long", expected("bytes of the manifest", len(data), required))
    require_hash(data, artefact.sha256)
    with named("bad-manifest"):
        manifest = AdapterManifest(tuple(_specs(data)))
        if manifest.canonical() != data:
            raise WireError("the manifest is not in its canonical encoding")
    return manifest


def tensor_messages(tensors: Tensors) -> Iterator[work_pb2.Tensor]:
    """Tensors as they travel, sorted by name; one that isn't float32 is a ``wrong-dtype``."""
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


def read_tensors(messages: Iterable[work_pb2.Tensor]) -> Tensors:
    """Tensors from messages that passed the gate, as views of their bytes.

    Raises:
        ContractError: ``unsorted-tensors``, ``bad-shape`` or ``wrong-size``.
    """
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
