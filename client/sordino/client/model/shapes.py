"""Which tensors an architecture needs, and whether a file brought them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sordino.client.model.architecture import Architecture
from sordino.client.model.matrices import Matrix
from sordino.core.errors import ModelError

LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")


def matrix_shapes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """``[rows, columns]`` of every matrix that the architecture needs."""
    query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    layer = {
        "self_attn.q_proj": (query, arch.hidden),
        "self_attn.k_proj": (key, arch.hidden),
        "self_attn.v_proj": (key, arch.hidden),
        "self_attn.o_proj": (arch.hidden, query),
        "mlp.gate_proj": (arch.mlp, arch.hidden),
        "mlp.up_proj": (arch.mlp, arch.hidden),
        "mlp.down_proj": (arch.hidden, arch.mlp),
    }
    shapes = {f"layers.{i}.{n}": s for i in range(arch.layers) for n, s in layer.items()}
    shapes["embed_tokens"] = (arch.vocabulary, arch.hidden)
    if not arch.tied:
        shapes["lm_head"] = (arch.vocabulary, arch.hidden)
    return shapes


def norm_names(arch: Architecture) -> list[str]:
    """Every norm that the architecture needs; each is as wide as the residual stream."""
    return [f"layers.{i}.{n}" for i in range(arch.layers) for n in LAYER_NORMS] + ["norm"]


def check_complete(
    arch: Architecture, matrices: Mapping[str, Matrix], norms: Mapping[str, Tensor]
) -> None:
    """Compare what a file held with what the architecture needs.

    Raises:
        ModelError: Names the first missing, surplus or wrongly shaped tensor.
    """
    shapes = matrix_shapes(arch)
    for name, shape in shapes.items():
        if name not in matrices:
            raise ModelError(f"the model file has no tensor for {name}: is it complete?")
        found = (matrices[name].rows, matrices[name].columns)
        if found != shape:
            raise ModelError(f"tensor {name} has shape {found}, config.json says {shape}")
    for name in norm_names(arch):
        if name not in norms:
            raise ModelError(f"the model file has no tensor for {name}: is it complete?")
        if norms[name].shape != (arch.hidden,):
            raise ModelError(
                f"tensor {name} has shape {tuple(norms[name].shape)}, config.json says "
                f"{(arch.hidden,)}"
            )
    surplus = sorted(
        (set(matrices) - set(shapes) - {"lm_head"}) | (set(norms) - set(norm_names(arch)))
    )
    if surplus:
        raise ModelError(f"the model file has a tensor {surplus[0]} that its config doesn't name")
