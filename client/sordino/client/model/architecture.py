"""What a decoder looks like, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sordino.client.model.parts import (
    GEMMA3_PARTS,
    GPT2_PARTS,
    GPT_NEOX_PARTS,
    LLAMA_PARTS,
    QWEN3_PARTS,
    Parts,
    with_biases,
)
from sordino.client.model.ropes import Rope, read_rope
from sordino.core.errors import ModelError, expected
from sordino.core.families import FAMILIES, Family, family_of, sizes_of, widths

SUPPORTED = tuple(FAMILIES)


@dataclass(frozen=True, kw_only=True)
class Span:
    """What one layer's attention sees.

    Attributes:
        rope: How it turns queries and keys; None where positions are learned.
        window: How many tokens back it looks, itself included; None: all.
    """

    rope: Rope | None
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes, constants and parts of a decoder.

    Attributes:
        family: The names and shapes of the linears.
        parts: What else a block is made of, and what it is called.
        hidden: Width of the residual stream.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Width of one head.
        mlp: Width inside the MLP.
        vocabulary: Rows of the embedding.
        spans: One for each layer.
        attention_scale: What the products of queries and keys are multiplied with.
        embedding_scale: What the embedding is multiplied with.
        norm_eps: The norms' epsilon.
        tied: The head is the embedding.
        positions: Longest sequence that the model was made for.
    """

    family: Family
    parts: Parts
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    spans: tuple[Span, ...]
    attention_scale: float
    embedding_scale: float = 1.0
    norm_eps: float
    tied: bool
    positions: int

    @property
    def widths(self) -> dict[str, int]:
        """The widths that a linear's input or output can have, as `Family.linears` names them."""
        return widths(
            self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.mlp
        )


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Read the architecture from a `config.json` table.

    Raises:
        ModelError: The model type or one of its features isn't supported; names it and what is.
    """
    kind = config.get("model_type")
    if kind not in _READERS:
        raise ModelError(
            f"model type {kind!r} is not supported: supported types are {', '.join(SUPPORTED)}"
        )
    return _READERS[kind](config)


def _build(config: Mapping[str, Any], parts: Parts, **rest: Any) -> Architecture:
    """Join what all families have in common with what one of them says."""
    sizes = sizes_of(config)
    if sizes.heads % sizes.kv_heads:
        raise ModelError(f"{sizes.heads} heads can't share {sizes.kv_heads} keys and values evenly")
    common: dict[str, Any] = {
        "attention_scale": sizes.head_dim**-0.5,
        "positions": int(config.get("max_position_embeddings", 2048)),
    }
    return Architecture(
        family=family_of(config),
        parts=parts,
        hidden=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        mlp=sizes.inner,
        vocabulary=_vocabulary(config),
        **{**common, **rest},
    )


def _llama(config: Mapping[str, Any], parts: Parts = LLAMA_PARTS) -> Architecture:
    """Llama, and what differs from it by biases, by norms of heads, or by sliding windows."""
    _refuse(config, layer_sharing=(False, None))
    if config.get("attention_bias"):
        parts = with_biases(parts, "q", "k", "v", "o")
    if config.get("mlp_bias"):
        parts = with_biases(parts, "gate", "up", "down")
    rope = _rope(config, theta=10_000.0)
    return _build(
        config,
        parts.activated_by(str(config.get("hidden_act", "silu"))),
        spans=tuple(Span(rope=rope, window=window) for window in _windows(config)),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings") or config.get("share_embedding")),
    )


def _qwen2(config: Mapping[str, Any]) -> Architecture:
    return _llama(config, with_biases(LLAMA_PARTS, "q", "k", "v"))


def _qwen3(config: Mapping[str, Any]) -> Architecture:
    return _llama(config, QWEN3_PARTS)


def _gemma3(config: Mapping[str, Any]) -> Architecture:
    """Gemma 3's text model; its layers have one rotary base within windows and one without."""
    _refuse(
        config,
        attn_logit_softcapping=(None,),
        final_logit_softcapping=(None,),
        use_bidirectional_attention=(False, None),
        attention_bias=(False, None),
    )
    sizes = sizes_of(config)
    tables = config.get("rope_parameters") or {}
    whole = tables.get("full_attention") or config.get("rope_scaling") or {}
    theta, local = config.get("rope_theta", 1e6), config.get("rope_local_base_freq", 1e4)
    far = read_rope(whole, theta=theta, head_dim=sizes.head_dim)
    near = read_rope(tables.get("sliding_attention") or {}, theta=local, head_dim=sizes.head_dim)
    return _build(
        config,
        GEMMA3_PARTS.activated_by(str(config.get("hidden_activation", "gelu_pytorch_tanh"))),
        spans=tuple(Span(rope=near if w else far, window=w) for w in _windows(config)),
        attention_scale=float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
        embedding_scale=sizes.hidden**0.5,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", True)),
        positions=int(config.get("max_position_embeddings", 131_072)),
    )


def _gpt2(config: Mapping[str, Any]) -> Architecture:
    _refuse(
        config,
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    return _build(
        config,
        GPT2_PARTS.activated_by(str(config.get("activation_function", "gelu_new"))),
        spans=(Span(rope=None),) * sizes_of(config).layers,
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        tied=bool(config.get("tie_word_embeddings", True)),
        positions=int(config.get("n_positions", 1024)),
    )


def _gpt_neox(config: Mapping[str, Any]) -> Architecture:
    parts = with_biases(GPT_NEOX_PARTS, "up", "down")
    if config.get("attention_bias", True):
        parts = with_biases(parts, "qkv", "o")
    parts = replace(parts, parallel=bool(config.get("use_parallel_residual", True)))
    table = {"partial_rotary_factor": config.get("rotary_pct", 0.25), **_rope_table(config)}
    theta = float(config.get("rotary_emb_base", 10_000.0))
    rope = read_rope(table, theta=theta, head_dim=sizes_of(config).head_dim)
    return _build(
        config,
        parts.activated_by(str(config.get("hidden_act", "gelu"))),
        spans=(Span(rope=rope),) * sizes_of(config).layers,
        norm_eps=float(config.get("layer_norm_eps", 1e-5)),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


_READERS: Mapping[Any, Callable[[Mapping[str, Any]], Architecture]] = {
    "llama": _llama,
    "mobilellm": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}


def _vocabulary(config: Mapping[str, Any]) -> int:
    size = config.get("vocab_size")
    if not isinstance(size, int) or size < 1:
        raise ModelError(expected("vocab_size in config.json", size, "a whole number > 0"))
    return size


def _refuse(config: Mapping[str, Any], **allowed: tuple[object, ...]) -> None:
    """Refuse a feature that is set to something other than what is allowed."""
    for name, values in allowed.items():
        if config.get(name, values[0]) not in values:
            raise ModelError(
                f"{name} = {config[name]!r} is not supported for model type "
                f"{config.get('model_type')!r}: {values[0]!r} is"
            )


def _rope_table(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 writes `rope_parameters`; older files have `rope_theta` and `rope_scaling`.
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope(config: Mapping[str, Any], *, theta: float) -> Rope:
    base = float(config.get("rope_theta") or theta)
    return read_rope(_rope_table(config), theta=base, head_dim=sizes_of(config).head_dim)


def _windows(config: Mapping[str, Any]) -> list[int | None]:
    """How far back each layer looks; None: all the way."""
    layers, width = sizes_of(config).layers, config.get("sliding_window")
    kinds = config.get("layer_types") or _layer_types(config, layers)
    if len(kinds) != layers:
        raise ModelError(f"layer_types in config.json names {len(kinds)} layers of {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"layer type {kind!r} is not supported: full_attention and sliding_attention are"
            )
    if "sliding_attention" in kinds and not width:
        raise ModelError("sliding_window in config.json is missing: layers with a window need it")
    return [int(width) if width and kind == "sliding_attention" else None for kind in kinds]


def _layer_types(config: Mapping[str, Any], layers: int) -> list[str]:
    """The kinds of layers where the config doesn't list them, by each family's own rule."""
    if config.get("model_type") == "gemma3_text":
        each = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
        near = [bool((i + 1) % int(each)) for i in range(layers)]
    else:
        windowed = bool(config.get("use_sliding_window"))
        first = int(config.get("max_window_layers", 28))
        near = [windowed and i >= first for i in range(layers)]
    return ["sliding_attention" if n else "full_attention" for n in near]
