"""Tensors, adapters, and the manifests that list an adapter's names and shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from math import prod
from typing import Final

import numpy as np

from sordino.core.contract import gate
from sordino.core.contract.codec import named, parse, require_hash
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
    data = b"".join(encode_tensors(work_pb2.Adapter, tensors))
    gate.check(data, work_pb2.Adapter.DESCRIPTOR)
    return data


def decode_adapter(data: bytes, artefact: Artefact) -> Tensors:
    """Decode an adapter's artefact. That the tensors are the manifest's is still to check.

    Raises:
        ContractError: ``wrong-hash``: it isn't the one that was named; or as `decode_update`.
    """
    require_hash(data, artefact.sha256)
    gate.check(data, work_pb2.Adapter.DESCRIPTOR)
    _, items = gate.cut_out(data, work_pb2.Adapter.TENSORS_FIELD_NUMBER)
    return read_tensors(items)


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


def encode_tensors(
    kind: type[work_pb2.Adapter] | type[work_pb2.Update], tensors: Tensors
) -> Iterator[bytes]:
    """Encode the field `tensors` of a message of a kind, sorted by name, a tensor at a time.

    The encodings of a message's parts, one after another, are the encoding of the whole.

    Raises:
        ContractError: ``wrong-dtype``: one isn't float32.
    """
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype != np.float32:
            raise ContractError(
                "wrong-dtype", expected(f"dtype of {name}", str(tensor.dtype), "= float32")
            )
        message = kind()
        message.tensors.add(
            name=name,
            dtype=work_pb2.D_TYPE_FLOAT32,
            shape=tensor.shape,
            data=np.ascontiguousarray(tensor, dtype="<f4").tobytes(),
        )
        part: bytes = message.SerializeToString(deterministic=True)
        yield part


def read_tensors(items: Iterable[memoryview]) -> Tensors:
    """Read tensors of a message that passed the gate, from the bytes of each.

    Raises:
        ContractError: ``unsorted-tensors``, ``bad-shape`` or ``wrong-size``.
    """
    arrays: Tensors = {}
    last = ""
    for item in items:
        message = parse(item, work_pb2.Tensor)
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
