"""An adapter as llama.cpp has it: one GGUF file of LoRA tensors beside the base's own file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.client.adapter_files import SavedAdapter
from sordino.client.model.architecture import Architecture, architecture_of
from sordino.client.model.gguf_file import GgufIndex, rotary_heads
from sordino.client.model.gguf_names import gguf_names
from sordino.client.model.matrices import rotary_rows
from sordino.client.model.store import ModelFiles
from sordino.core.adapters import base_of, tensor_names
from sordino.core.errors import ModelError, expected


def save_gguf_adapter(path: Path, adapter: SavedAdapter, base: ModelFiles) -> None:
    """Write an adapter for llama.cpp (``--lora FILE``) to apply to the base's GGUF file.

    The values are float32 and unchanged. For the llama architecture a GGUF file holds the rows of
    q and k in another order; B's rows follow them.

    Args:
        path: The new file; written whole.
        adapter: From `load_adapter`.
        base: The base that it was trained on.

    Raises:
        ModelError: The base isn't a GGUF file, the adapter has a tensor that the base has no linear
            for, or the file can't be written.
    """
    if base.index is None:
        raise ModelError(
            expected("the base", base.name, "a GGUF file", "convert the model, and train on that")
        )
    tensors = list(_gguf_tensors(adapter, base.index, architecture_of(base.config)))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(part, base.index.architecture, adapter.alpha, tensors)
        part.replace(path)
    except OSError as error:
        raise ModelError(f"can't write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _gguf_tensors(
    adapter: SavedAdapter, index: GgufIndex, arch: Architecture
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    left, base = dict(adapter.tensors), base_of(adapter.tensors)
    for gguf_name, module in gguf_names(arch).items():
        for name, suffix in zip(tensor_names(f"{base}.{module}"), ("a", "b"), strict=True):
            tensor = left.pop(name, None)
            if tensor is not None:
                heads = rotary_heads(module, index, arch) if suffix == "b" else 0
                yield f"{gguf_name}.lora_{suffix}", _stored(tensor, heads)
    if left:
        raise ModelError(expected("tensor", min(left), "of a linear that the base's file has"))


def _stored(tensor: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """B's rows in the order of the file's."""
    if not heads:
        return np.ascontiguousarray(tensor)
    stored = np.empty_like(tensor)
    stored[rotary_rows(torch.arange(len(tensor)), len(tensor) // heads).numpy()] = tensor
    return stored


def _write(
    path: Path, architecture: str, alpha: float, tensors: list[tuple[str, NDArray[np.float32]]]
) -> None:
    import gguf  # noqa: PLC0415  (only where a file is written)

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
