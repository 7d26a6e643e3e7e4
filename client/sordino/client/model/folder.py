"""A Hugging Face folder, quantized once into a file of one's own that every process then maps.

The file is written tensor by tensor: what is held at any time is one dense matrix. It is a
safetensors file whose bytes depend on the source and the quantization alone, so its hash is the
identity of the base: the same on every machine, for NF4 as far as bitsandbytes is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sordino.client.model.architecture import Architecture
from sordino.client.model.decoder import Decoder
from sordino.client.model.describe import read_json
from sordino.client.model.gguf_file import file_sha256
from sordino.client.model.matrices import Int8Matrix, Matrix, quantize_int8
from sordino.client.model.nf4 import BLOCK, Nf4Matrix, quantize_nf4
from sordino.client.model.shapes import (
    HEAD,
    block_matrices,
    check_complete,
    gain_sizes,
    matrix_shapes,
    vector_sizes,
)
from sordino.client.model.streamed import Shape, StreamedSafetensors
from sordino.core.durable import locked, write_whole
from sordino.core.errors import ModelError, expected

Quantization = Literal["int8", "nf4"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_TILE = 4096  # rows
# What older files carry along though it follows from the config: masks and frequencies.
_BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
)


@dataclass(frozen=True)
class QuantizedFile:
    """A quantized base on disk, and its hash."""

    path: Path
    sha256: str


def quantize_folder(
    folder: Path, architecture: Architecture, quantization: Quantization, derived: Path
) -> QuantizedFile:
    """Quantize a folder's weights, or find the file that was made of them before.

    Args:
        folder: Holds ``*.safetensors`` in float32, float16 or bfloat16, in one file or in shards.
        architecture: From the folder's ``config.json``.
        quantization: ``int8``: one scale a row, everywhere. ``nf4``: the linears in NF4, embedding
            and head in int8, since 4 bits cost most there.
        derived: Where such files are kept, each in a folder named by its source's hash.

    Raises:
        ModelError: A tensor is missing or misshapen, isn't a float, or the disk can't be written.
    """
    sources = _source_files(folder)
    if quantization == "nf4":
        quantize_nf4(torch.zeros(1, BLOCK))  # says at once that bitsandbytes is missing
    digest = _source_sha256(folder, sources, derived)
    made = derived / f"{digest[:16]}-{quantization}"
    with locked(made.with_suffix(".lock")):
        known = _known(made)
        if known is None:
            known = _quantize(folder, sources, architecture, quantization, made)
    return known


def open_folder(path: Path, architecture: Architecture, quantization: str) -> Decoder:
    """Map what `quantize_folder` made and lay a decoder over it; only norms and biases are copied.

    Raises:
        ModelError: The file isn't whole.
    """
    try:
        # Tensors from safe_open are views of one private map of the file: pages are shared.
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"can't read {path}: {error}; delete its folder to make it anew"
        ) from error
    vectors = {n: tensors[n].clone() for n in vector_sizes(architecture) if n in tensors}
    matrices: dict[str, Matrix] = {}
    for name, (rows, columns) in matrix_shapes(architecture).items():
        if f"{name}.codes" not in tensors:
            raise ModelError(f"{path} has no tensor for {name}; delete its folder to make it anew")
        codes, scales = tensors[f"{name}.codes"], tensors[f"{name}.scales"]
        if _is_nf4(name, architecture, quantization):
            matrices[name] = Nf4Matrix(codes, scales, rows, columns)
        else:
            matrices[name] = Int8Matrix(codes, scales)
    check_complete(architecture, matrices, vectors)
    return Decoder(architecture, matrices, vectors)


def _is_nf4(name: str, architecture: Architecture, quantization: str) -> bool:
    return quantization == "nf4" and name in block_matrices(architecture)


def _source_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor in the folder, by the tensor's name.

    A shard index is believed only as far as the files bear it out.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(read_json(index).get("weight_map", {}).values())
        paths = [folder / Path(str(shard)).name for shard in sorted(shards)]
    else:
        paths = [folder / "model.safetensors"]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        what = missing[0].name if missing else "model.safetensors"
        raise ModelError(f"{folder} has no {what}: save the model's weights as safetensors")
    files = {}
    for path in paths:
        with _open_source(path) as source:
            files.update(dict.fromkeys(source.keys(), path))
    return files


def _open_source(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"can't read {path}: {error}") from error


def _source_sha256(folder: Path, sources: Mapping[str, Path], derived: Path) -> str:
    """Hash the weight files; remembered for as long as their sizes and times stay as they are."""
    paths = sorted(set(sources.values()))
    stamp = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    place = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    memory = derived / "indexes" / f"{place}.json"
    if memory.is_file():
        table = read_json(memory)
        if table.get("stamp") == stamp:
            return str(table["sha256"])
    digest = hashlib.sha256("\n".join(file_sha256(path) for path in paths).encode()).hexdigest()
    write_whole(memory, json.dumps({"stamp": stamp, "sha256": digest}))
    return digest


def _known(made: Path) -> QuantizedFile | None:
    weights, identity = made / "weights.safetensors", made / "identity.json"
    if not (weights.is_file() and identity.is_file()):
        return None
    table = read_json(identity)
    stat = weights.stat()
    if table.get("stamp") != [stat.st_size, stat.st_mtime_ns]:
        return None
    return QuantizedFile(weights, str(table["sha256"]))


def _quantize(
    folder: Path,
    sources: Mapping[str, Path],
    architecture: Architecture,
    quantization: Quantization,
    made: Path,
) -> QuantizedFile:
    weights, part = made / "weights.safetensors", made / "weights.part"
    source = _Source(folder, sources, architecture)
    source.check_surplus()
    try:
        made.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            file = StreamedSafetensors(out, _layout(architecture, quantization))
            for name, shape in matrix_shapes(architecture).items():
                dense = source.read(name, shape)
                matrix = (
                    quantize_nf4(dense)
                    if _is_nf4(name, architecture, quantization)
                    else quantize_int8(dense)
                )
                file.write(f"{name}.codes", matrix.codes)
                file.write(f"{name}.scales", matrix.scales)
            for name, size in vector_sizes(architecture).items():
                file.write(name, source.read(name, (size,)))
            file.finish()
            out.flush()
            os.fsync(out.fileno())
        part.replace(weights)
        stat, digest = weights.stat(), file_sha256(weights)
        identity = {"stamp": [stat.st_size, stat.st_mtime_ns], "sha256": digest}
        write_whole(made / "identity.json", json.dumps(identity))
    except OSError as error:
        raise ModelError(f"can't write {made}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return QuantizedFile(weights, digest)


def _int8(dense: Tensor) -> Int8Matrix:
    """Quantize some rows at a time: a large vocabulary in float32 would be held several times."""
    tiles = [quantize_int8(rows) for rows in torch.split(dense, _TILE)]
    return Int8Matrix(torch.cat([t.codes for t in tiles]), torch.cat([t.scales for t in tiles]))


def _layout(
    architecture: Architecture, quantization: Quantization
) -> dict[str, tuple[torch.dtype, Shape]]:
    """Type and shape of every tensor of the quantized file."""
    layout: dict[str, tuple[torch.dtype, Shape]] = {}
    for name, (rows, columns) in matrix_shapes(architecture).items():
        if _is_nf4(name, architecture, quantization):
            values = rows * columns
            layout[f"{name}.codes"] = (torch.uint8, (values // 2,))
            layout[f"{name}.scales"] = (torch.float32, (-(-values // BLOCK),))
        else:
            layout[f"{name}.codes"] = (torch.int8, (rows, columns))
            layout[f"{name}.scales"] = (torch.float32, (rows, 1))
    for name, size in vector_sizes(architecture).items():
        layout[name] = (torch.float32, (size,))
    return layout


@dataclass(frozen=True)
class _Source:
    """The dense tensors of a folder, by the decoder's names."""

    folder: Path
    files: Mapping[str, Path]
    architecture: Architecture

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor as the decoder has it; its file is closed again, so no map of it stays.

        Raises:
            ModelError: It is missing, misshapen, or isn't a finite float.
        """
        known = self._names(name)
        key = next((key for key in known if key in self.files), None)
        if key is None:
            raise ModelError(f"{self.folder} has no tensor {known[0]}: is it complete?")
        stored = name in block_matrices(self.architecture) and self.architecture.family.transposed
        tensor = self._stored(key, shape[::-1] if stored else shape)
        if name in gain_sizes(self.architecture):
            offset = self.architecture.parts.gain_offset
            return tensor.float() + offset if offset else tensor.float()
        if name in vector_sizes(self.architecture):
            return tensor.float()
        return tensor.t() if stored else tensor

    def check_surplus(self) -> None:
        """Refuse a folder with a tensor that the decoder would not use.

        Raises:
            ModelError: Names it.
        """
        needed = [*matrix_shapes(self.architecture), *vector_sizes(self.architecture), HEAD]
        used = {key for name in needed for key in self._names(name)}
        surplus = sorted(k for k in self.files if k not in used and not k.endswith(_BUFFERS))
        if surplus:
            raise ModelError(
                f"{self.folder} has a tensor {surplus[0]}, which belongs to a layer that is not "
                "supported for this model type: docs/models.md says what is"
            )

    def _names(self, name: str) -> list[str]:
        """What files call a tensor: most with the decoder's own name before it, some without."""
        if name == HEAD:
            return [f"{HEAD}.weight", "embed_out.weight"]
        short = name if name.endswith(".bias") else f"{name}.weight"
        return [f"{self.architecture.family.base}.{short}", short]

    def _stored(self, key: str, shape: tuple[int, ...]) -> Tensor:
        with _open_source(self.files[key]) as file:
            tensor: Tensor = file.get_tensor(key)
        if tensor.dtype not in _FLOATS:
            raise ModelError(
                expected(f"tensor {key}", tensor.dtype, "in float32, float16 or bfloat16")
            )
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"tensor {key} has shape {tuple(tensor.shape)}, config.json says {shape}"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"tensor {key} holds a NaN or an infinity")
        return tensor
