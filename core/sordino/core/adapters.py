"""The adapter's tensors: names, shapes, initial values, and which of them train in a round.

Pure functions of public settings, so that coordinator and clients agree without sending anything:
under `ffa` the frozen A never travels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sordino.core.config import LoraConfig
from sordino.core.errors import ConfigError, expected
from sordino.core.families import (
    FAMILIES,
    Family,
    family_of,
    linear_shapes,
    sizes_of,
    target_modules,
    targeted,
)
from sordino.core.records import AdapterManifest, Tensors, TensorSpec, check_tensors

Aggregation = Literal["ffa", "rolora", "fedit"]

_ROOT = "base_model.model."
_A = ".lora_A.weight"
_B = ".lora_B.weight"


def adapter_manifest(architecture: Mapping[str, object], lora: LoraConfig) -> AdapterManifest:
    """Names and shapes of a model's adapter, as PEFT calls them.

    Args:
        architecture: The model's ``config.json``.
        lora: Rank and targets.

    Raises:
        ConfigError: A target is not a linear of a decoder layer.
        ModelError: The model type isn't supported, or the architecture lacks a size.
    """
    shapes, family = linear_shapes(architecture), family_of(architecture)
    adapted = targeted(family, lora.targets)
    specs = []
    for layer in range(sizes_of(architecture).layers):
        for module in adapted:
            out_features, in_features = shapes[module]
            name_a, name_b = tensor_names(family.path(layer, module))
            specs.append(TensorSpec(name_a, (lora.rank, in_features)))
            specs.append(TensorSpec(name_b, (out_features, lora.rank)))
    return AdapterManifest(tuple(sorted(specs, key=lambda spec: spec.name)))


@dataclass(frozen=True)
class AdapterName:
    """What the name of an adapter's tensor says.

    Attributes:
        family: A family that calls its linears so.
        module: The linear's place within its block.
        matrix: Which of the two it is.
    """

    family: Family
    module: str
    matrix: Literal["A", "B"]


def parse_name(name: str) -> AdapterName | None:
    """Take a tensor's PEFT name apart; None where it is no linear of a block that is known.

    >>> parse_name("base_model.model.transformer.h.3.attn.c_attn.lora_B.weight").module
    'attn.c_attn'
    """
    for family in FAMILIES.values():
        start = f"{_ROOT}{family.base}.{family.layers}."
        rest = name.removeprefix(start).removesuffix(_A).removesuffix(_B)
        layer, _, module = rest.partition(".")
        known = name.startswith(start) and name.endswith((_A, _B))
        if known and layer.isdecimal() and module in family.modules:
            return AdapterName(family, module, "A" if is_lora_a(name) else "B")
    return None


def peft_layout(names: Iterable[str]) -> dict[str, object]:
    """What PEFT's ``adapter_config.json`` says of which linears an adapter has.

    Returns:
        ``target_modules``, and ``fan_in_fan_out``: whether the linears are GPT-2's Conv1D.
    """
    parsed = [known for name in names if (known := parse_name(name))]
    if not parsed:
        return {"target_modules": [], "fan_in_fan_out": False}
    family = parsed[0].family
    return {
        "target_modules": target_modules(family, {known.module for known in parsed}),
        "fan_in_fan_out": family.transposed,
    }


def tensor_names(module: str) -> tuple[str, str]:
    """PEFT's names of A and B of one module, given as the model calls it.

    >>> tensor_names("model.layers.0.self_attn.q_proj")[0]
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    return f"{_ROOT}{module}{_A}", f"{_ROOT}{module}{_B}"


def base_of(names: Iterable[str]) -> str:
    """The decoder within the Hugging Face model that an adapter's tensors belong to.

    >>> base_of(["base_model.model.gpt_neox.layers.0.attention.dense.lora_A.weight"])
    'gpt_neox'
    >>> base_of([])
    ''
    """
    first = next(iter(names), "")
    return first.removeprefix(_ROOT).partition(".")[0]


def is_lora_a(name: str) -> bool:
    """Whether the tensor is an A (rank x in)."""
    return name.endswith(_A)


def other_of(name: str) -> str:
    """The name of the tensor that is multiplied with this one: B's for an A, and A's for a B."""
    if is_lora_a(name):
        return name.removesuffix(_A) + _B
    return name.removesuffix(_B) + _A


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
