"""The adapter's tensors: names, shapes, initial values, and which of them train in a round.

Pure functions of public settings, so that coordinator and clients agree without sending anything:
under `ffa` the frozen A never travels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sordino.core.config import LoraConfig
from sordino.core.errors import ConfigError, ModelError, expected
from sordino.core.records import AdapterManifest, Tensors, TensorSpec, check_tensors

Aggregation = Literal["ffa", "rolora", "fedit"]

_PREFIX = "base_model.model.model.layers"
_A = ".lora_A.weight"
_B = ".lora_B.weight"


def linear_shapes(architecture: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """Shapes (out, in) of one decoder layer's linears, for the llama family.

    Args:
        architecture: The model's ``config.json``.

    Returns:
        For each of ``self_attn.q_proj`` … ``mlp.down_proj`` its (out, in).

    Raises:
        ModelError: A size is missing, or isn't a positive whole number.
    """
    hidden = _size(architecture, "hidden_size")
    heads = _size(architecture, "num_attention_heads")
    kv_heads = _size(architecture, "num_key_value_heads", heads)
    head_dim = _size(architecture, "head_dim", hidden // heads)
    inner = _size(architecture, "intermediate_size")
    return {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def adapter_manifest(architecture: Mapping[str, object], lora: LoraConfig) -> AdapterManifest:
    """Names and shapes of the adapter of a llama-family model, as PEFT calls them.

    Raises:
        ConfigError: A target is not a linear of a decoder layer.
        ModelError: The architecture lacks a size.
    """
    shapes = linear_shapes(architecture)
    by_target = {module.rpartition(".")[2]: module for module in shapes}
    unknown = [target for target in lora.targets if target not in by_target]
    if unknown:
        raise ConfigError(expected("lora.targets", unknown[0], f"one of {', '.join(by_target)}"))
    specs = []
    for layer in range(_size(architecture, "num_hidden_layers")):
        for target in set(lora.targets):
            module = by_target[target]
            out_features, in_features = shapes[module]
            stem = f"{_PREFIX}.{layer}.{module}"
            specs.append(TensorSpec(f"{stem}{_A}", (lora.rank, in_features)))
            specs.append(TensorSpec(f"{stem}{_B}", (out_features, lora.rank)))
    return AdapterManifest(tuple(sorted(specs, key=lambda spec: spec.name)))


def tensor_names(module: str) -> tuple[str, str]:
    """PEFT's names of A and B of one module, given as the model calls it.

    >>> tensor_names("model.layers.0.self_attn.q_proj")[0]
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    return f"base_model.model.{module}{_A}", f"base_model.model.{module}{_B}"


def is_lora_a(name: str) -> bool:
    """Whether the tensor is an A (rank x in)."""
    return name.endswith(_A)


def trained_manifest(
    manifest: AdapterManifest, aggregation: Aggregation, round_number: int
) -> AdapterManifest:
    """The tensors that train, travel up and are averaged in a round.

    `ffa`: only B. `rolora`: B in odd rounds and A in even ones (with B = 0 the gradient of A is 0,
    so B begins). `fedit`: both.
    """
    if round_number < 1:
        raise ConfigError(expected("round", round_number, ">= 1"))
    trains_a = aggregation == "fedit" or (aggregation == "rolora" and round_number % 2 == 0)
    trains_b = aggregation != "rolora" or round_number % 2 == 1
    return manifest.subset(
        name for name in manifest.names if (trains_a if is_lora_a(name) else trains_b)
    )


def initial_tensor(spec: TensorSpec, init_seed: int) -> NDArray[np.float32]:
    """One tensor of the initial adapter: B is zero, A is uniform in ±1/√in, as in PEFT.

    A's values come from the raw words of Philox, keyed by the seed and the name, so that every
    machine and every version of numpy makes the same bits: a bit generator's words are stable,
    what a `Generator` makes of them needn't be.
    """
    if not is_lora_a(spec.name):
        return np.zeros(spec.shape, dtype=np.float32)
    digest = hashlib.sha256(f"sordino/lora-init/{init_seed}/{spec.name}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(spec.size)
    uniform = (words >> np.uint64(40)).astype(np.float64) * 2.0**-24
    bound = 1.0 / float(np.sqrt(np.float64(spec.shape[-1])))
    return ((2.0 * uniform - 1.0) * bound).astype(np.float32).reshape(spec.shape)


def initial_adapter(manifest: AdapterManifest, init_seed: int) -> Tensors:
    """The public adapter that every run with this manifest and seed begins with."""
    return {spec.name: initial_tensor(spec, init_seed) for spec in manifest.tensors}


def changed_tensors(adapter: Tensors, manifest: AdapterManifest, init_seed: int) -> Tensors:
    """What of `adapter` has to travel down: the tensors that differ from the initial ones."""
    return {
        spec.name: adapter[spec.name]
        for spec in manifest.tensors
        if not np.array_equal(adapter[spec.name], initial_tensor(spec, init_seed))
    }


def complete_adapter(tensors: Tensors, manifest: AdapterManifest, init_seed: int) -> Tensors:
    """Fill what did not travel with the public initial values.

    Raises:
        UpdateRejectedError: A tensor isn't in the manifest, or isn't what the manifest says.
    """
    adapter = {
        spec.name: tensors[spec.name] if spec.name in tensors else initial_tensor(spec, init_seed)
        for spec in manifest.tensors
    }
    check_tensors({**adapter, **tensors}, manifest)
    return adapter


def _size(architecture: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = architecture.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(expected(f"{key} in the model's config.json", value, "a whole number > 0"))
    return value
