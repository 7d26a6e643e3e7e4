"""What GGUF calls a decoder's tensors: the same for every architecture that has the part."""

from __future__ import annotations

from sordino.client.model.architecture import Architecture
from sordino.client.model.parts import NormRole
from sordino.client.model.shapes import HEAD, bias_sizes
from sordino.core.families import Role

# GGUF's name of the architecture -> `model_type` in config.json
GGUF_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
}
ROPE_DIVISORS = "rope_freqs.weight"

_LINEARS: dict[Role, str] = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "qkv": "attn_qkv",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_NORMS: dict[NormRole, str] = {
    "before_attention": "attn_norm",
    "after_attention": "post_attention_norm",
    "before_mlp": "ffn_norm",
    "after_mlp": "post_ffw_norm",
    "query": "attn_q_norm",
    "key": "attn_k_norm",
}


def gguf_names(arch: Architecture) -> dict[str, str]:
    """The decoder's name of each tensor that a GGUF file of this architecture may have."""
    parts, layers = arch.parts, arch.family.layers
    stems = {"token_embd": parts.embedding, "output_norm": parts.last_norm, "output": HEAD}
    if parts.positions:
        stems["position_embd"] = parts.positions
    for i in range(arch.layers):
        for role, linear in arch.family.linears.items():
            stems[f"blk.{i}.{_LINEARS[role]}"] = f"{layers}.{i}.{linear.module}"
        for norm, name in parts.norms.items():
            stems[f"blk.{i}.{_NORMS[norm]}"] = f"{layers}.{i}.{name}"
    biases = bias_sizes(arch)
    names = {f"{stem}.weight": name for stem, name in stems.items()}
    with_bias = {s: f"{name}.bias" for s, name in stems.items() if f"{name}.bias" in biases}
    return {**names, **{f"{stem}.bias": name for stem, name in with_bias.items()}}


def supported_parts(arch: Architecture) -> list[str]:
    """GGUF's names of the parts of such a model, for people."""
    names = dict.fromkeys(name.split(".", 2)[-1] for name in gguf_names(arch) if "blk." in name)
    others = [name for name in gguf_names(arch) if "blk." not in name]
    return [*others, *names]
