"""A GGUF file as an index of tensors over one memory map."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sordino.client.model.architecture import Architecture
from sordino.client.model.blocks import block_format
from sordino.client.model.decoder import Decoder
from sordino.client.model.gguf_names import ROPE_DIVISORS, gguf_names, supported_parts
from sordino.client.model.matrices import BlockMatrix, Matrix
from sordino.client.model.shapes import check_complete, vector_sizes
from sordino.core.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of the file: its block type, its shape as ``[rows, columns]``, where it lies."""

    name: str
    type: str
    rows: int
    columns: int
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class GgufIndex:
    """What is needed to open a file again without parsing it.

    Attributes:
        sha256: Of the whole file.
        size: Bytes of the file.
        mtime_ns: When the file was last changed; with `size`, tells whether the index still holds.
        architecture: GGUF's name of the architecture.
        file_type: The commonest block type among the linears, for people.
        tensors: In the file's order.
    """

    sha256: str
    size: int
    mtime_ns: int
    architecture: str
    file_type: str
    tensors: tuple[TensorEntry, ...]

    def to_json(self) -> str:
        """Encode for the file beside the model."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GgufIndex:
        """Decode what `to_json` wrote."""
        table: dict[str, Any] = json.loads(text)
        tensors = tuple(TensorEntry(**entry) for entry in table.pop("tensors"))
        return cls(tensors=tensors, **table)


def file_sha256(path: Path) -> str:
    """Hash a file without reading it all into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_index(path: Path) -> GgufIndex:
    """Parse a GGUF file's header.

    Raises:
        ModelError: The file isn't GGUF, or is cut short.
    """
    import gguf  # noqa: PLC0415  (only where there is no stored index)

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"can't read {path} as a GGUF file: {error}") from error
    field = reader.fields.get("general.architecture")
    stat = path.stat()
    tensors = tuple(_entry(tensor) for tensor in reader.tensors)
    types = [t.type for t in tensors if t.name.startswith("blk.") and t.rows > 1]
    return GgufIndex(
        sha256=file_sha256(path),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        architecture=str(field.contents()) if field else "",
        file_type=max(set(types), key=types.count) if types else "F32",
        tensors=tensors,
    )


def load_index(path: Path, beside: Path) -> GgufIndex:
    """Return the stored index if the file hasn't changed since, else parse it and store it.

    Args:
        path: The GGUF file.
        beside: Where the index is kept; where it can't be written, it is only returned.
    """
    stat = path.stat()
    try:
        stored = GgufIndex.from_json(beside.read_text(encoding="utf-8"))
        if (stored.size, stored.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return stored
    except (OSError, ValueError, TypeError, KeyError):
        pass  # none yet, or of another version: it is only a cache
    index = read_index(path)
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        part = beside.with_suffix(f".{os.getpid()}.part")
        part.write_text(index.to_json(), encoding="utf-8")
        part.replace(beside)
    except OSError:
        pass  # a read-only cache costs a second at each opening, nothing else
    return index


def open_gguf(path: Path, index: GgufIndex, architecture: Architecture) -> Decoder:
    """Map a GGUF file and lay a decoder over it.

    Nothing is copied but the norms and biases: every process that maps the file shares its pages.

    Raises:
        ModelError: A tensor is missing, has the wrong shape, or its block type isn't supported.
    """
    mapped = torch.from_file(str(path), shared=False, size=index.size, dtype=torch.uint8)
    names, sizes = gguf_names(architecture), vector_sizes(architecture)
    matrices: dict[str, Matrix] = {}
    vectors: dict[str, Tensor] = {}
    for entry in index.tensors:
        if entry.name == ROPE_DIVISORS:
            architecture = _with_divisors(architecture, _vector(mapped, entry))
            continue
        if entry.name not in names:
            raise ModelError(
                f"tensor {entry.name} belongs to a layer that is not supported: supported parts "
                f"are {', '.join(supported_parts(architecture))}"
            )
        name = names[entry.name]
        if name in sizes:
            vectors[name] = _vector(mapped, entry)
        else:
            matrices[name] = _matrix(mapped, entry, rotary_heads(name, index, architecture))
    check_complete(architecture, matrices, vectors)
    return Decoder(architecture, matrices, vectors)


def _with_divisors(arch: Architecture, divisors: Tensor) -> Architecture:
    """The same with the frequencies that the file scales, as Llama 3's files do."""
    values = tuple(divisors.tolist())
    for span in arch.spans:
        if span.rope is None or span.window is not None or len(values) != span.rope.dims // 2:
            raise ModelError(
                f"tensor {ROPE_DIVISORS} of {len(values)} values doesn't fit this model's "
                "rotary embedding"
            )
    spans = [replace(s, rope=replace(s.rope, divisors=values)) for s in arch.spans if s.rope]
    return replace(arch, spans=tuple(spans))


def _entry(tensor: Any) -> TensorEntry:
    shape = [int(n) for n in reversed(tensor.shape)]
    rows, columns = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
    return TensorEntry(
        name=str(tensor.name),
        type=str(tensor.tensor_type.name),
        rows=rows,
        columns=columns,
        offset=int(tensor.data_offset),
        nbytes=int(tensor.n_bytes),
    )


def rotary_heads(name: str, index: GgufIndex, arch: Architecture) -> int:
    """Heads of a linear whose rows the file holds in rotary order; 0: they are as they are."""
    if index.architecture != "llama":
        return 0
    if name.endswith("q_proj"):
        return arch.heads
    return arch.kv_heads if name.endswith("k_proj") else 0


def _matrix(mapped: Tensor, entry: TensorEntry, rotary_heads: int) -> BlockMatrix:
    fmt = block_format(entry.type, entry.name)
    raw = mapped[entry.offset : entry.offset + entry.nbytes].view(entry.rows, -1)
    return BlockMatrix(raw, fmt, entry.columns, rotary_heads)


def _vector(mapped: Tensor, entry: TensorEntry) -> Tensor:
    fmt = block_format(entry.type, entry.name)
    raw = mapped[entry.offset : entry.offset + entry.nbytes].view(-1, fmt.bytes)
    return fmt.dequantize(raw).flatten().clone()
