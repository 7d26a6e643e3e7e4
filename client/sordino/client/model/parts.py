"""What a decoder's block has beside its linears, as data: norms, biases, activation, order.

A block is always attention and then an MLP over a residual stream; a part that a family lacks
(a norm after the attention, a norm of the queries) is simply not named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sordino.core.errors import ModelError
from sordino.core.families import Role

Activation = Literal["silu", "gelu", "gelu_tanh"]
NormRole = Literal["before_attention", "after_attention", "before_mlp", "after_mlp", "query", "key"]
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a decoder, by the names that the Hugging Face model has for them.

    Attributes:
        embedding: Of the tokens.
        positions: The learned positions; None where there are none.
        last_norm: Before the head.
        norms: Those of a block, by where they are.
        norm: ``rms`` has a gain, ``layer`` a gain and a bias.
        gain_offset: What is added to a gain as a Hugging Face file has it. GGUF has it added.
        activation: Of the MLP. Where the family has a gate, it is the gate's.
        biases: Which linears have one.
        joined: How one linear gives queries, keys and values: all of each one after another, or
            a head of each in turn. None where they are three linears.
        parallel: Attention and MLP read the same residual stream, and both are added to it.
    """

    embedding: str
    positions: str | None = None
    last_norm: str
    norms: Mapping[NormRole, str]
    norm: Literal["rms", "layer"]
    gain_offset: float = 0.0
    activation: Activation = "silu"
    biases: frozenset[Role] = frozenset()
    joined: Literal["whole", "heads"] | None = None
    parallel: bool = False

    def activated_by(self, name: str) -> Parts:
        """The same with the activation that `config.json` names.

        Raises:
            ModelError: It isn't supported; names it and what is.
        """
        if name not in ACTIVATIONS:
            raise ModelError(f"activation {name!r} is not supported: {', '.join(ACTIVATIONS)} are")
        return replace(self, activation=ACTIVATIONS[name])


def with_biases(parts: Parts, *roles: Role) -> Parts:
    """The same with biases on more linears."""
    return replace(parts, biases=parts.biases | frozenset(roles))


LLAMA_PARTS = Parts(
    embedding="embed_tokens",
    last_norm="norm",
    norms={
        "before_attention": "input_layernorm",
        "before_mlp": "post_attention_layernorm",
    },
    norm="rms",
)
QWEN3_PARTS = replace(
    LLAMA_PARTS,
    norms={**LLAMA_PARTS.norms, "query": "self_attn.q_norm", "key": "self_attn.k_norm"},
)
GEMMA3_PARTS = replace(
    QWEN3_PARTS,
    norms={
        **QWEN3_PARTS.norms,
        "after_attention": "post_attention_layernorm",
        "before_mlp": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
    },
    gain_offset=1.0,
)
GPT2_PARTS = Parts(
    embedding="wte",
    positions="wpe",
    last_norm="ln_f",
    norms={"before_attention": "ln_1", "before_mlp": "ln_2"},
    norm="layer",
    biases=frozenset(("qkv", "o", "up", "down")),
    joined="whole",
)
GPT_NEOX_PARTS = Parts(
    embedding="embed_in",
    last_norm="final_layer_norm",
    norms={
        "before_attention": "input_layernorm",
        "before_mlp": "post_attention_layernorm",
    },
    norm="layer",
    joined="heads",
)
