"""From a model's name to an open base: what is shipped, what is fetched, what a user brings."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sordino.client.model.architecture import architecture_of
from sordino.client.model.decoder import Decoder
from sordino.client.model.describe import describe_gguf, is_described, read_config
from sordino.client.model.folder import open_folder, quantize_folder
from sordino.client.model.gguf_config import check_gguf_type
from sordino.client.model.gguf_file import GgufIndex, load_index, open_gguf
from sordino.client.model.registry import (
    KNOWN,
    POCKET,
    POCKET_FOLDER,
    KnownModel,
    index_path,
    model_folder,
)
from sordino.core.config import ModelConfig
from sordino.core.durable import locked
from sordino.core.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where the parts of a base lie; all a worker process needs to open it.

    Attributes:
        name: What people call it, never a path.
        weights: The file that is mapped.
        config: The table of the model's ``config.json``.
        tokenizer: Folder with ``tokenizer.json`` and ``tokenizer_config.json``.
        index: The tensors of a GGUF file; None for a quantized folder.
        sha256: Of `weights`: the base's identity.
        quantization: The commonest block type among the linears, or ``int8`` or ``nf4``.
        kind: What `weights` is: a GGUF file, or what was made of a Hugging Face folder.
    """

    name: str
    weights: Path
    config: Mapping[str, Any]
    tokenizer: Path
    index: GgufIndex | None
    sha256: str
    quantization: str
    kind: Literal["gguf", "folder"]


@dataclass(frozen=True)
class BaseModel:
    """An open base.

    Attributes:
        files: Where it came from.
        decoder: The frozen decoder over the mapped file.
    """

    files: ModelFiles
    decoder: Decoder


def cache_root() -> Path:
    """The folder for fetched models and what is made once of others.

    ``SORDINO_CACHE`` if it is set, else ``sordino`` in the user's cache folder.
    """
    if root := os.environ.get("SORDINO_CACHE"):
        return Path(root).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "sordino"


def resolve_model(config: ModelConfig, cache: Path) -> ModelFiles:
    """Find a model's files, and make once what has to be made of them.

    Args:
        config: ``name`` is ``pocket``, the name of a model that was fetched, a path that ends in
            ``.gguf``, or the folder of a Hugging Face model.
        cache: The model cache, such as `cache_root` gives.

    Raises:
        ModelError: There is no such model, it isn't complete, or it isn't supported; says what to
            do next.
    """
    name = config.name
    if name == POCKET:
        return _gguf_files(POCKET, POCKET_FOLDER / "pocket.gguf", POCKET_FOLDER, cache)
    if name in KNOWN:
        return _fetched_files(KNOWN[name], cache)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _own_gguf_files(path, cache)
    if path.is_dir():
        return _folder_files(path.resolve(), config.quantization, cache)
    raise ModelError(_unknown(name))


def open_base(files: ModelFiles) -> BaseModel:
    """Map the weights and lay the decoder over them: moments, whatever the size.

    Raises:
        ModelError: The architecture isn't supported, or a tensor is missing or misshapen.
    """
    architecture = architecture_of(files.config)
    if files.index is not None:
        return BaseModel(files, open_gguf(files.weights, files.index, architecture))
    return BaseModel(files, open_folder(files.weights, architecture, files.quantization))


def _unknown(name: str) -> str:
    names = [POCKET, *KNOWN]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"no model {name!r}: {hint}Known names are {', '.join(names)}; or give the path of a .gguf "
        "file or of a Hugging Face folder (config.json, tokenizer.json, *.safetensors)"
    )


def _gguf_files(name: str, weights: Path, description: Path, cache: Path) -> ModelFiles:
    if not weights.is_file():
        raise ModelError(f"there is no file {weights}")
    index = load_index(weights, index_path(weights, cache))
    return ModelFiles(
        name=name,
        weights=weights,
        config=read_config(description),
        tokenizer=description,
        index=index,
        sha256=index.sha256,
        quantization=index.file_type,
        kind="gguf",
    )


def _fetched_files(known: KnownModel, cache: Path) -> ModelFiles:
    folder = model_folder(cache, known.name)
    if not ((folder / known.file).is_file() and is_described(folder)):
        raise ModelError(
            f"model {known.name} is not in the cache ({folder}): run `sordino models fetch "
            f"{known.name}`"
        )
    files = _gguf_files(known.name, folder / known.file, folder, cache)
    if files.sha256 != known.sha256:
        raise ModelError(
            f"{files.weights} is not the file that {known.name} names: expected sha256 "
            f"{known.sha256}, got {files.sha256}; run `sordino models fetch {known.name}`"
        )
    return files


def _own_gguf_files(path: Path, cache: Path) -> ModelFiles:
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    path = path.resolve()
    index = load_index(path, index_path(path, cache))
    check_gguf_type(index.architecture)
    described = cache / "derived" / index.sha256[:16]
    if not is_described(described):
        with locked(described.with_suffix(".lock")):
            describe_gguf(path, described)
    return _gguf_files(path.stem, path, described, cache)


def _folder_files(folder: Path, quantization: Literal["int8", "nf4"], cache: Path) -> ModelFiles:
    config = read_config(folder)
    architecture = architecture_of(config)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json: save the model's fast tokenizer there")
    made = quantize_folder(folder, architecture, quantization, cache / "derived")
    return ModelFiles(
        name=folder.name,
        weights=made.path,
        config=config,
        tokenizer=folder,
        index=None,
        sha256=made.sha256,
        quantization=quantization,
        kind="folder",
    )
