"""The config and tokenizer of a GGUF file, made once and kept as in a Hugging Face folder.

transformers takes about 7 s and 6 s for the two, so nobody should do it twice.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.client.model.gguf_config import corrected, read_metadata
from sordino.core.durable import write_whole
from sordino.core.errors import ModelError

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
DESCRIPTION = (CONFIG, TOKENIZER, TOKENIZER_CONFIG)


def is_described(folder: Path) -> bool:
    """Whether the folder has everything but the weights."""
    return all((folder / name).is_file() for name in DESCRIPTION)


def describe_gguf(gguf: Path, folder: Path) -> None:
    """Write `config.json`, `tokenizer.json` and `tokenizer_config.json` of a GGUF file.

    Does nothing where they are there. Each is written whole; `config.json` comes last, and is
    what tells that all are there after a crash.

    Raises:
        ModelError: transformers can't read the file, or knows no fast tokenizer for it.
    """
    if is_described(folder):
        return
    with tempfile.TemporaryDirectory(prefix="sordino-") as made:
        _convert(gguf, Path(made))
        for name in reversed(DESCRIPTION):
            write_whole(folder / name, (Path(made) / name).read_bytes())


def read_config(folder: Path) -> Mapping[str, Any]:
    """Read a folder's `config.json`.

    Raises:
        ModelError: It isn't there, or isn't a JSON object.
    """
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelError: It can't be read, or isn't a JSON object.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read {path}: {error}") from error
    if not isinstance(table, dict):
        raise ModelError(f"can't read {path}: it is not a JSON object")
    return table


def _convert(gguf: Path, folder: Path) -> None:
    # Takes seconds to import, and only where a description has to be made.
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415

    where = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(str(gguf.parent), **where)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
        tokenizer.save_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError, NotImplementedError) as error:
        raise ModelError(f"can't read the config and tokenizer of {gguf}: {error}") from error
    if not (folder / TOKENIZER).is_file():
        raise ModelError(f"{gguf} has a tokenizer that tokenizer.json can't describe")
    _rewrite_tokenizer_config(folder / TOKENIZER_CONFIG, tokenizer.chat_template)
    _write_json(folder / CONFIG, corrected(_config_table(config.to_dict()), read_metadata(gguf)))


def _config_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out where the file lay and what only classifiers have."""
    kept = {k: v for k, v in table.items() if not k.startswith("_") and v is not None}
    for name in ("id2label", "label2id"):
        kept.pop(name, None)
    return kept


def _rewrite_tokenizer_config(path: Path, template: object) -> None:
    """Put the chat template where every reader looks for it: transformers 5 splits it off."""
    table = read_json(path)
    for name in ("is_local", "local_files_only", "name_or_path"):
        table.pop(name, None)
    if template and "chat_template" not in table:
        table["chat_template"] = template
    _write_json(path, table)


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
