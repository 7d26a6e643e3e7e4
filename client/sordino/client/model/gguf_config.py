"""What a GGUF file's metadata says that transformers leaves out of the config it makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.client.model.gguf_names import GGUF_TYPES
from sordino.core.errors import ModelError

# GGUF's key, after the architecture's name -> config.json's, for each architecture
_KEYS = {
    "qwen3": {"attention.key_length": "head_dim"},
    "gpt2": {"context_length": "n_positions", "feed_forward_length": "n_inner"},
    # The file doesn't say how scores are scaled: by the head's width, as llama.cpp has it.
    "gemma3": {"attention.key_length": "query_pre_attn_scalar"},
}
_SCALINGS = ("none", "linear")
_GEMMA_PATTERN = 6  # every sixth layer sees everything
_GEMMA_27B_LAYERS = 62


def check_gguf_type(name: str) -> None:
    """Refuse an architecture whose GGUF files can't be described.

    Raises:
        ModelError: Names it, and what is supported.
    """
    if name not in GGUF_TYPES:
        raise ModelError(
            f"GGUF architecture {name!r} is not supported: supported are {', '.join(GGUF_TYPES)}; "
            "docs/models.md says which more are supported from a Hugging Face folder"
        )


def corrected(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a config by what the file says.

    Args:
        config: As transformers made it.
        metadata: The file's fields by name.

    Raises:
        ModelError: The file has a feature that isn't supported; names it.
    """
    arch = str(metadata.get("general.architecture", ""))
    check_gguf_type(arch)
    own = {k.removeprefix(f"{arch}."): v for k, v in metadata.items() if k.startswith(f"{arch}.")}
    table = dict(config)
    for key, name in _KEYS.get(arch, {}).items():
        if key in own:
            table[name] = own[key]
    if arch == "gemma3":
        _gemma3(table, own)
    _scale(table, own)
    return table


def read_metadata(path: Path) -> dict[str, Any]:
    """Every field of a GGUF file but its lists of tokens."""
    import gguf  # noqa: PLC0415  (only where a description has to be made)

    fields = gguf.GGUFReader(path).fields
    return {n: f.contents() for n, f in fields.items() if not n.startswith(("GGUF.", "tokenizer."))}


def _gemma3(table: dict[str, Any], own: Mapping[str, Any]) -> None:
    if own.get("final_logit_softcapping"):
        raise ModelError("final_logit_softcapping of this GGUF file is not supported: none is")
    pattern = own.get("attention.sliding_window_pattern", _GEMMA_PATTERN)
    if pattern != _GEMMA_PATTERN:
        raise ModelError(
            f"sliding_window_pattern {pattern!r} of this GGUF file is not supported: "
            f"{_GEMMA_PATTERN} is"
        )
    if own.get("block_count") == _GEMMA_27B_LAYERS:
        table["query_pre_attn_scalar"] = own["embedding_length"] // own["attention.head_count"]
    if "rope.freq_base_swa" in own:
        ropes = dict(table.get("rope_parameters") or {})
        near = {**(ropes.get("sliding_attention") or {}), "rope_theta": own["rope.freq_base_swa"]}
        table["rope_parameters"] = {**ropes, "sliding_attention": near}


def _scale(table: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Take over how positions are stretched; Llama 3's way is a tensor of the file instead."""
    kind = own.get("rope.scaling.type", "none")
    if kind not in _SCALINGS:
        raise ModelError(
            f"rope.scaling.type {kind!r} of this GGUF file is not supported: "
            f"{', '.join(_SCALINGS)} are"
        )
    if kind == "none":
        return
    stretch = {"rope_type": "linear", "factor": own["rope.scaling.factor"]}
    ropes = dict(table.get("rope_parameters") or {})
    if "full_attention" in ropes:
        ropes["full_attention"] = {**ropes["full_attention"], **stretch}
    else:
        ropes |= stretch
    table["rope_parameters"] = ropes
