"""What a decoder looks like, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sordino.core.errors import ModelError

SUPPORTED = ("llama",)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes and constants of a llama-family decoder.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Width of one head.
        mlp: Width inside the gated MLP.
        vocabulary: Rows of the embedding.
        rope_theta: Base of the rotary angles.
        norm_eps: RMSNorm's epsilon.
        tied: The head is the embedding.
        positions: Longest sequence that the model was made for.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    rope_theta: float
    norm_eps: float
    tied: bool
    positions: int


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Read the architecture from a `config.json` table.

    Raises:
        ModelError: The model type or one of its features isn't supported; names it and what is.
    """
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise ModelError(
            f"model type {kind!r} is not supported: supported types are {', '.join(SUPPORTED)}"
        )
    for feature in ("attention_bias", "mlp_bias"):
        if config.get(feature):
            raise ModelError(f"{feature} = true is not supported for model type {kind!r}")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act {config['hidden_act']!r} is not supported: silu is")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Architecture(
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        mlp=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        rope_theta=_rope_theta(config),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)),
        positions=int(config.get("max_position_embeddings", 2048)),
    )


def _rope_theta(config: Mapping[str, Any]) -> float:
    # transformers 5 writes `rope_parameters`; older files have `rope_theta` and `rope_scaling`.
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise ModelError(f"rope_type {kind!r} is not supported: default is")
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
