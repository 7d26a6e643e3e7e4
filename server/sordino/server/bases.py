"""Bases as a coordinator knows them: a folder of `config.json` and one GGUF file, never opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from sordino.core.errors import ModelError, expected


def read_architecture(base: Path) -> Mapping[str, object]:
    """The table of a base's ``config.json``, in its folder or beside its file.

    Raises:
        ModelError: It can't be read, or isn't a JSON object.
    """
    path = (base if base.is_dir() else base.parent) / "config.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read {path}: {error}") from error
    if not isinstance(table, dict):
        raise ModelError(expected(str(path), type(table).__name__, "a JSON object"))
    return table


def gguf_file(base: Path, field: str, todo: str = "") -> Path:
    """The one GGUF file of a base's folder, or the file itself.

    Args:
        base: The folder, or the file.
        field: What the setting is called that names it.
        todo: What else may be done where there isn't one.

    Raises:
        ModelError: There isn't exactly one.
    """
    files = sorted(base.glob("*.gguf")) if base.is_dir() else [base]
    if len(files) != 1:
        raise ModelError(expected(field, str(base), "to hold one .gguf file", todo))
    return files[0]


def file_sha256(path: Path) -> str:
    """A file's hash."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
